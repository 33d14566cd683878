"""What a benchmark measures: how long each contender takes for the same work, or what share it wastes."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


OURS, STOCK, ORIGINAL = "modeling_detr", "transformers", "original"


@dataclass(frozen=True)
class Quantity:
    """A quantity that is measured.

    Attributes:
        unit: Its unit in tables.
        higher_is_better: Whether a larger value is better.
        factor: Multiplies values, which are in seconds, per second or a share of 1, to give the unit.
    """

    unit: str
    higher_is_better: bool = False
    factor: float = 1.0


TIME = Quantity("ms", factor=1000.0)
RATE = Quantity("images per s", higher_is_better=True)
SHARE = Quantity("%", factor=100.0)
MEMORY = Quantity("MB", factor=1e-6)


@dataclass(frozen=True)
class Growth:
    """The place of a measurement in a series: the same work at several sizes.

    Attributes:
        work: What is done at all sizes.
        axis: What grows, such as `queries`.
        size: How many there are here.
        expected: The largest exponent expected: 1 for a cost in proportion to the size, 2 for its square.
        reason: Why, in a few words.
    """

    work: str
    axis: str
    size: int
    expected: float
    reason: str


@dataclass(frozen=True)
class Measurement:
    """One piece of work, measured several times for each contender.

    Attributes:
        work: What is done, such as `batch 8 x 7 boxes`.
        quantity: What is measured.
        samples: Contender → its value in each round. Round i of all contenders ran at about the same time.
        differences: Contender → the largest difference of its outputs from this package's, relative to the largest
            value of each output.
        growth: Its place in a series; None if it is a piece of work by itself.
    """

    work: str
    quantity: Quantity
    samples: Mapping[str, Sequence[float]]
    differences: Mapping[str, float] = field(default_factory=dict)
    growth: Growth | None = None

    def median(self, contender: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.samples[contender])

    def minimum(self, contender: str) -> float:
        """The smallest value of a round."""
        return min(self.samples[contender])

    def spread(self, contender: str) -> float:
        """The range of the values, from the lowest to the highest, as a share of the median."""
        values = self.samples[contender]
        median = self.median(contender)
        return (max(values) - min(values)) / median if median else 0.0

    def ratio(self, contender: str) -> float | None:
        """How many times better this package is than a contender: the median over rounds of the ratio in a round.

        None if this package was not measured, or a value is 0.
        """
        pairs = [*zip(self.samples.get(OURS, ()), self.samples[contender], strict=False)]
        if not pairs or any(ours <= 0 or theirs <= 0 for ours, theirs in pairs):
            return None
        ratios = [ours / theirs if self.quantity.higher_is_better else theirs / ours for ours, theirs in pairs]
        return statistics.median(ratios)

    def as_dict(self) -> dict[str, Any]:
        """All values for JSON, in the unit of the quantity."""
        factor = self.quantity.factor
        contenders = {
            name: {
                "median": self.median(name) * factor,
                "minimum": self.minimum(name) * factor,
                "spread": self.spread(name),
                "rounds": [value * factor for value in values],
                "ratio": None if name == OURS else self.ratio(name),
                "difference": self.differences.get(name),
            }
            for name, values in self.samples.items()
        }
        return {
            "work": self.work,
            "unit": self.quantity.unit,
            "higher_is_better": self.quantity.higher_is_better,
            "contenders": contenders,
        }


@dataclass(frozen=True)
class SectionResult:
    """The measurements of a section.

    Attributes:
        name: Its key in `SECTIONS`.
        measurements: What was measured.
        notes: What the reader has to know about the contenders, one sentence each.
        refused: Why the section was not measured, or not to its end; empty if it was.
        skipped: What it left out, and why, one sentence each.
        seconds: How long the section took.
    """

    name: str
    measurements: Sequence[Measurement]
    notes: Sequence[str] = ()
    refused: str = ""
    skipped: Sequence[str] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All values for JSON."""
        return {
            "section": self.name,
            "measurements": [measurement.as_dict() for measurement in self.measurements],
            "notes": list(self.notes),
            "refused": self.refused or None,
            "skipped": list(self.skipped),
            "seconds": self.seconds,
        }
