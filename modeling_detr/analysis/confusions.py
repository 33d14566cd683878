"""Which classes are taken for which, and for the background."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from modeling_detr.analysis.evidence import MATCH_IOU, Evidence
from modeling_detr.evaluation.metrics import Metrics, MetricTable
from modeling_detr.pages import Section, Table, Text


MIN_SCORE = 0.5
NOTHING = "(nothing)"
_MOST_ROWS = 20
_LARGEST_MATRIX = 16  # classes


class Confusion(NamedTuple):
    """So many objects of a class are detected as another; or as `NOTHING`, or `NOTHING` as a class."""

    truth: str
    predicted: str
    number: int


@dataclass(frozen=True, slots=True)
class Confusions(Metrics):
    """What objects are taken for. Each object is matched with the detection that overlaps it most, of any class.

    Attributes:
        class_names: Names of the classes.
        matrix: Counts: a row per true class, a column per predicted one; the last of both is `NOTHING`.
        min_score: Detections with a lower score do not count.
    """

    key: ClassVar[str] = "confusions"

    class_names: Sequence[str]
    matrix: Sequence[Sequence[int]]
    min_score: float

    @property
    def pairs(self) -> list[Confusion]:
        """All confusions, the most frequent first."""
        names = [*self.class_names, NOTHING]
        pairs = [
            Confusion(names[row], names[column], count)
            for row, counts in enumerate(self.matrix)
            for column, count in enumerate(counts)
            if row != column and count
        ]
        return sorted(pairs, key=lambda pair: -pair.number)

    def tables(self) -> tuple[MetricTable, ...]:
        """The most frequent confusions."""
        rows = self.pairs[:_MOST_ROWS]
        return (MetricTable("Confusions", ("truth", "predicted", "number"), rows),) if rows else ()

    def sections(self) -> list[Section]:
        """The matrix if it is small, otherwise the most frequent confusions."""
        names = [*self.class_names, NOTHING]
        note = Text(
            f"Detections with a score of at least {self.min_score:g}, at IoU {MATCH_IOU:g}. Rows: what is annotated; "
            f"columns: what is detected. {NOTHING}: missed, or not annotated."
        )
        if len(self.class_names) > _LARGEST_MATRIX:
            table = Table(("truth", "predicted", "number"), self.pairs[:_MOST_ROWS])
        else:
            rows = [(name, *counts) for name, counts in zip(names, self.matrix, strict=True)]
            table = Table(("truth", *names), rows)
        return [Section("Confusions", [note, table])] if self.class_names else []


def confusions(evidence: Evidence, min_score: float = MIN_SCORE) -> Confusions:
    """The confusions of detections with at least a score."""
    found = evidence.evaluation.confusion_matrix(iou_thr=MATCH_IOU, min_score=min_score)
    matrix = np.asarray(found["matrix"]).astype(np.int64).tolist()
    return Confusions([evidence.class_names[label] for label in found["cat_ids"]], matrix, min_score)
