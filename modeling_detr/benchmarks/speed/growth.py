"""How time and memory grow with the size of the work: measurements of the same work at several sizes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from modeling_detr.benchmarks.speed.measurement import OURS, Growth, Measurement, Quantity, SectionResult


TOLERANCE = 0.5  # of an exponent, which caches, page faults and the clock change by a few tenths


@dataclass(frozen=True)
class GrowthCurve:
    """One quantity of a series of work, by increasing size; at least two sizes.

    Attributes:
        work: What is done.
        axis: What grows.
        quantity: Time or memory.
        points: The measurements.
    """

    work: str
    axis: str
    quantity: Quantity
    points: Sequence[Measurement]

    @property
    def sizes(self) -> list[int]:
        """The sizes."""
        return [growth_of(point).size for point in self.points]

    @property
    def costs(self) -> list[float]:
        """The median at each size."""
        return [point.median(OURS) for point in self.points]

    @property
    def expected(self) -> float:
        """The largest exponent expected."""
        return growth_of(self.points[-1]).expected

    @property
    def exponent(self) -> float:
        """The slope of cost over size, both logarithmic, between the two largest sizes.

        Fixed costs count least there. 1 is linear, 2 quadratic. Of several rounds, it is the median. NaN if nothing
        was measured at one of the two, such as memory below the resolution.
        """
        before, last = self.points[-2:]
        ratio = math.log(self.sizes[-1] / self.sizes[-2])
        pairs = [*zip(before.samples[OURS], last.samples[OURS], strict=False)]
        if any(cost <= 0 for pair in pairs for cost in pair):
            return math.nan
        return statistics.median(math.log(larger / smaller) / ratio for smaller, larger in pairs)

    @property
    def exceeds(self) -> bool:
        """Whether the cost grows faster than expected, by more than the tolerance."""
        return self.exponent > self.expected + TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """All values for JSON, in the unit of the quantity."""
        return {
            "work": self.work,
            "axis": self.axis,
            "unit": self.quantity.unit,
            "sizes": self.sizes,
            "costs": [cost * self.quantity.factor for cost in self.costs],
            "exponent": None if math.isnan(self.exponent) else self.exponent,
            "expected": self.expected,
            "reason": growth_of(self.points[-1]).reason,
            "exceeds": self.exceeds,
        }


def growth_of(measurement: Measurement) -> Growth:
    """The place of a measurement in its series."""
    if measurement.growth is None:
        raise ValueError(f"{measurement.work}: not a measurement of a series.")
    return measurement.growth


def growth_curves(results: Sequence[SectionResult]) -> list[GrowthCurve]:
    """The curves of all measurements that belong to a series, in the order of the first ones."""
    series: dict[tuple[str, str, Quantity], list[Measurement]] = {}
    for point in (point for result in results for point in result.measurements):
        if point.growth is not None:
            series.setdefault((point.growth.work, point.growth.axis, point.quantity), []).append(point)
    curves = [
        GrowthCurve(work, axis, quantity, sorted(members, key=lambda point: growth_of(point).size))
        for (work, axis, quantity), members in series.items()
    ]
    return [curve for curve in curves if len(curve.points) > 1]


def by_work(curves: Sequence[GrowthCurve]) -> list[list[GrowthCurve]]:
    """The curves of each piece of work and axis, time and memory together."""
    return [[*group] for _, group in groupby(curves, key=lambda curve: (curve.work, curve.axis))]
