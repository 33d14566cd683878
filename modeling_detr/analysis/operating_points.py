"""Which score a detection of each class should have to count: the best F1, or a given precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.evaluation.matches import PrecisionRecall
from modeling_detr.evaluation.metrics import Metrics, MetricTable
from modeling_detr.pages import Block, Chart, Line, Section, Table, Text


_POINTS = 101  # of a curve
_MOST_CHARTS = 12
_COLOURS = 4  # lines of a chart that can be told apart


@dataclass(frozen=True, slots=True)
class ClassThreshold:
    """The threshold of a class, what it achieves, and the number of objects of the class."""

    threshold: float
    precision: float
    recall: float
    f1: float
    num_objects: int


@dataclass(frozen=True, slots=True)
class OperatingPoints(Metrics):
    """The score threshold of each class.

    Attributes:
        at_precision: The lowest precision that was asked for; None: the best F1.
        thresholds: Class name → its threshold. Classes that no threshold suits are left out: without objects, without
            hits, or that never reach the precision.
        curves: Class name → its precision and recall at each score. Not in `as_dict`.
    """

    key: ClassVar[str] = "operating_points"

    at_precision: float | None
    thresholds: Mapping[str, ClassThreshold]
    curves: Mapping[str, PrecisionRecall]

    @property
    def criterion(self) -> str:
        """What the thresholds were chosen for."""
        return "best F1" if self.at_precision is None else f"precision {self.at_precision:g}"

    def tables(self) -> tuple[MetricTable, ...]:
        """The thresholds."""
        rows = [
            (name, one.num_objects, one.threshold, one.precision, one.recall, one.f1)
            for name, one in self.thresholds.items()
        ]
        header = ("class", "objects", "threshold", "precision", "recall", "F1")
        return (MetricTable(f"Thresholds for {self.criterion}", header, rows),) if rows else ()

    def sections(self) -> list[Section]:
        """The thresholds, precision over recall, and precision, recall and F1 over the threshold."""
        found = self.tables()
        if not found:
            return []
        most = sorted(self.thresholds, key=lambda name: -self.thresholds[name].num_objects)[:_MOST_CHARTS]
        blocks: list[Block] = [Table(found[0].header, found[0].rows)]
        if len(most) < len(self.thresholds):
            blocks.append(Text(f"The curves are those of the {len(most)} classes with most objects."))
        quiet = len(most) > _COLOURS
        lines = [Line(name, _precision_at_recalls(self.curves[name]), quiet=quiet) for name in most]
        if len(most) > 1:
            mean = np.mean([line.values for line in lines], axis=0).tolist()
            lines = [*lines, Line("mean", mean)] if quiet else lines
        if quiet:
            lines = [Line("one class each", line.values, quiet=True) if line.quiet else line for line in lines]
        blocks.append(Chart("precision", "recall", lines))
        blocks += [Chart(name, "threshold", _over_threshold(self.curves[name])) for name in most]
        return [Section(found[0].title, blocks)]

    def as_dict(self) -> dict[str, object]:
        """The thresholds, and what they achieve."""
        thresholds = {
            name: {field: getattr(one, field) for field in ClassThreshold.__dataclass_fields__}
            for name, one in self.thresholds.items()
        }
        return {"at_precision": self.at_precision, "thresholds": thresholds}


def operating_points(evidence: Evidence, at_precision: float | None = None) -> OperatingPoints:
    """The threshold of each class.

    Args:
        evidence: What was detected.
        at_precision: The lowest threshold with at least this precision; None: the threshold with the best F1.
    """
    curves = evidence.matches.curves()
    objects = np.bincount(evidence.matches.object_label, minlength=len(curves)).tolist()
    thresholds = {}
    for (name, curve), count in zip(curves.items(), objects, strict=True):
        point = curve.best_f1() if at_precision is None else curve.at_precision(at_precision)
        if count and point is not None:
            thresholds[name] = ClassThreshold(*point, point.f1, count)
    return OperatingPoints(at_precision, thresholds, curves)


def _precision_at_recalls(curve: PrecisionRecall) -> Sequence[float]:
    """The highest precision at each recall 0, .01, … 1 or above, as in COCO's AP; 0 where none is reached."""
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    rows = np.searchsorted(curve.recall, np.linspace(0, 1, _POINTS))
    return [float(value) for value in np.append(best, 0.0)[np.minimum(rows, len(best))]]


def _over_threshold(curve: PrecisionRecall) -> list[Line]:
    """Precision, recall and F1 at the thresholds 0, .01, … 1; above the highest score, the recall is 0."""
    # thresholds descend: the last row whose score is at least t
    rows = np.searchsorted(-curve.thresholds, -np.linspace(0, 1, _POINTS), side="right") - 1
    recall = np.where(rows < 0, 0.0, curve.recall[rows])
    precision = curve.precision[np.maximum(rows, 0)]
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return [Line("F1", f1.tolist()), Line("precision", precision.tolist()), Line("recall", recall.tolist())]
