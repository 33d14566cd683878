"""How far AP could be off by the choice of images: bootstrap intervals, computed by hotcoco."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.evaluation.coco_engines import hotcoco_evaluation
from modeling_detr.evaluation.metrics import Metrics, MetricTable


CONFIDENCE = 0.95
SAMPLES, LEAST_SAMPLES = 200, 100  # draws of images by default: for few and for many detections
_DETECTIONS_DRAWN = 50_000_000  # by all draws together, which takes ten to twenty seconds
_NAMES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and the range in which 95% of the values lie if images are drawn again, with replacement."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Intervals(Metrics):
    """Bootstrap intervals over the images.

    Attributes:
        ap: AP.
        ap50: AP50.
        ap75: AP75.
        samples: How often images were drawn.
    """

    key: ClassVar[str] = "intervals"

    ap: Interval
    ap50: Interval
    ap75: Interval
    samples: int

    def tables(self) -> tuple[MetricTable, ...]:
        """The intervals."""
        if math.isnan(self.ap.value):
            return ()
        rows = [
            (name, interval.value, interval.low, interval.high)
            for name, interval in zip(_NAMES.values(), (self.ap, self.ap50, self.ap75), strict=True)
        ]
        header = ("metric", "value", "low", "high")
        return (MetricTable(f"95% intervals over the images ({self.samples} draws)", header, rows),)


def default_samples(evidence: Evidence) -> int:
    """How often images are drawn by default: the time grows with the detections, of which 250,000 are drawn 200 times,
    and 500,000 or more 100 times."""
    detections = len(evidence.scoring.detections.labels)
    return min(SAMPLES, max(LEAST_SAMPLES, _DETECTIONS_DRAWN // max(1, detections)))


def intervals(evidence: Evidence, samples: int | None = None, seed: int = 0) -> Intervals:
    """The bootstrap intervals of AP, AP50 and AP75: percentiles over draws of as many images, with replacement.

    Args:
        evidence: What was detected.
        samples: How often images are drawn; None: `default_samples`.
        seed: Seed of the draws.
    """
    samples = default_samples(evidence) if samples is None else samples
    if not any(len(overlaps.objects) for overlaps in evidence.overlaps):
        nothing = Interval(math.nan, math.nan, math.nan)
        return Intervals(nothing, nothing, nothing, samples)
    found = difference(_without_detections(evidence), evidence.evaluation, samples, seed)
    return Intervals(**found, samples=samples)


def difference(before: Any, after: Any, samples: int = SAMPLES, seed: int = 0) -> dict[str, Interval]:
    """By how much metrics rise from one evaluation of hotcoco to another on the same images.

    Both see the same draws of images, so that what is hard or easy for both cancels out.

    Args:
        before: An evaluated `COCOeval`.
        after: Another one.
        samples: How often images are drawn.
        seed: Seed of the draws.

    Returns:
        `ap`, `ap50` and `ap75` → the difference.
    """
    import hotcoco

    found = hotcoco.compare(before, after, n_bootstrap=samples, seed=seed, confidence=CONFIDENCE)
    return {
        field: Interval(found["deltas"][name], found["ci"][name]["lower"], found["ci"][name]["upper"])
        for field, name in _NAMES.items()
    }


def _without_detections(evidence: Evidence) -> Any:
    """The evaluation of a model that finds nothing: the difference to it is the metric itself."""
    nothing = evidence.scoring.detections.take(np.zeros(0, np.int64))
    evaluation = hotcoco_evaluation(evidence.scoring._replace(detections=nothing))
    evaluation.evaluate()
    return evaluation
