"""Whether scores mean what they say: of the detections with score .8, 80% should be hits (arXiv 1706.04599).

Shapes: K detections.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from modeling_detr.analysis.evidence import MATCH_IOU, Evidence
from modeling_detr.evaluation.metrics import Metrics
from modeling_detr.pages import Chart, Line, Section, Table, Text
from modeling_detr.saved_thresholds import Calibration


BINS = 10
_LOG_TEMPERATURES, _SHIFTS = (-3.0, 3.0), (-20.0, 20.0)
_TINY = 1e-12  # keeps logarithms finite


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """Detections with similar scores: their range, number, mean score, and the share that are hits."""

    low: float
    high: float
    count: int
    mean_score: float
    hit_share: float


@dataclass(frozen=True, slots=True)
class Reliability(Metrics):
    """How well scores predict which detections are hits.

    Attributes:
        ece: Expected calibration error: the mean distance of score and share of hits, in [0, 1], weighted by the
            number of detections; NaN without detections.
        bins: The detections by score, in ten ranges.
        calibration: What makes the scores fit best.
        ece_calibrated: `ece` of the calibrated scores, on the same images.
    """

    key: ClassVar[str] = "reliability"

    ece: float
    bins: Sequence[ScoreBin]
    calibration: Calibration
    ece_calibrated: float

    def sections(self) -> list[Section]:
        """The reliability curve, and its numbers."""
        if math.isnan(self.ece):
            return []
        shares, middles = self._curve(), [(one.low + one.high) / 2 for one in self.bins]
        chart = Chart("share of hits", "score", [Line("as it should be", middles, quiet=True), Line("hits", shares)])
        rows = [(f"{one.low:.1f} to {one.high:.1f}", one.count, one.mean_score, one.hit_share) for one in self.bins]
        table = Table(("score", "detections", "mean score", "share of hits"), rows)
        return [
            Section("Are the scores right?", [Text(self._verdict()), chart, Section("Numbers", [table], folded=True)])
        ]

    def as_dict(self) -> dict[str, object]:
        """All fields."""
        bins = [{name: getattr(one, name) for name in ScoreBin.__dataclass_fields__} for one in self.bins]
        return {**super(Reliability, self).as_dict(), "bins": bins, "calibration": self.calibration._asdict()}

    def _verdict(self) -> str:
        expected = sum(one.count * one.mean_score for one in self.bins)
        hits = sum(one.count * one.hit_share for one in self.bins)
        side = "too high" if expected > hits else "too low"
        return (
            f"Scores differ from the share of hits by {self.ece:.3f} on average (ECE); on the whole they are {side}. "
            f"After calibration, it would be {self.ece_calibrated:.3f} on these images (temperature "
            f"{self.calibration.temperature:.2f}, shift {self.calibration.shift:+.2f})."
        )

    def _curve(self) -> list[float]:
        """The share of hits in each bin, in empty ones that between their neighbours."""
        filled = [number for number, one in enumerate(self.bins) if one.count]
        return np.interp(range(len(self.bins)), filled, [self.bins[number].hit_share for number in filled]).tolist()


def reliability(evidence: Evidence) -> Reliability:
    """The calibration of all detections that count."""
    scores, is_hit = evidence.matches.score, evidence.matches.annotation >= 0
    if not len(scores):
        return Reliability(math.nan, (), Calibration(), math.nan)
    found = evidence.evaluation.calibration(n_bins=BINS, iou_threshold=MATCH_IOU)
    bins = [
        ScoreBin(one["bin_lower"], one["bin_upper"], one["count"], one["avg_confidence"], one["avg_accuracy"])
        for one in found["bins"]
    ]
    fitted = fit_calibration(scores, is_hit)
    return Reliability(found["ece"], bins, fitted, calibration_error(fitted(scores), is_hit))


def calibration_error(scores: NDArray[np.float64], is_hit: NDArray[np.bool_]) -> float:
    """The expected calibration error of scores (K,) in `BINS` ranges of equal width."""
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, scores, BINS) - np.bincount(bins, is_hit, BINS)
    return float(np.abs(gaps).sum() / len(scores))


def fit_calibration(scores: NDArray[np.float64], is_hit: NDArray[np.bool_]) -> Calibration:
    """The calibration with which the scores (K,) predict best which detections are hits (smallest cross-entropy).

    Without both hits and false detections there is nothing to fit.
    """
    from scipy.optimize import minimize

    if is_hit.all() or not is_hit.any():
        return Calibration()

    def cross_entropy(parameters: NDArray[np.float64]) -> float:
        log_temperature, shift = parameters.tolist()
        fitted = np.clip(Calibration(math.exp(log_temperature), shift)(scores), _TINY, 1 - _TINY)
        return -float(np.where(is_hit, np.log(fitted), np.log(1 - fitted)).mean())

    found = minimize(cross_entropy, np.zeros(2), method="L-BFGS-B", bounds=[_LOG_TEMPERATURES, _SHIFTS])
    return Calibration(math.exp(found.x[0]), float(found.x[1]))
