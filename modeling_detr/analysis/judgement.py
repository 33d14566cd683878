"""What became of every detection and every object: hits, and the kinds of errors of TIDE (arXiv 2008.08115).

Shapes: K detections · N annotated objects, rows as in `CocoScoring`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_detr.analysis.evidence import MATCH_IOU, NOT_COUNTED, Evidence, ImageOverlaps


BACKGROUND_IOU = 0.1  # below, a detection has nothing to do with an object

ErrorKind = Literal["class", "location", "both", "duplicate", "background", "missed"]


class KindEntry(NamedTuple):
    """meaning: what an error of this kind is. hotcoco: its name there."""

    meaning: str
    hotcoco: str


KINDS: dict[ErrorKind, KindEntry] = {
    "class": KindEntry("detections on an object of another class", "Cls"),
    "location": KindEntry("detections that are badly placed", "Loc"),
    "both": KindEntry("detections that are badly placed, near an object of another class", "Both"),
    "duplicate": KindEntry("second detections of an object", "Dupe"),
    "background": KindEntry("detections where nothing is annotated", "Bkg"),
    "missed": KindEntry("objects that no detection comes near", "Miss"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What became of every detection and every object, if detections with at least some score count.

    Attributes:
        detections: (K,) `hit`, a kind of error, or empty: it does not count.
        explained_by: (K,) the object that a detection finds or, if it is false, belongs to; -1: none.
        objects: (N,) `found`, `missed`, a kind of error that explains why it is not found, or empty: not scored.
    """

    detections: NDArray[np.str_]
    explained_by: NDArray[np.int64]
    objects: NDArray[np.str_]


def judge(evidence: Evidence, min_score: float = 0.0) -> Judgement:
    """Gives every detection and every object its kind.

    Args:
        evidence: What was detected.
        min_score: Detections with a lower score do not count.
    """
    truth, found = evidence.scoring.truth, evidence.scoring.detections
    counts = (evidence.matched_object != NOT_COUNTED) & (found.scores >= min_score)
    kinds = np.full(len(found.labels), "", "<U10")
    explained = np.full(len(found.labels), -1, np.int64)
    objects = np.full(len(truth.labels), "", "<U10")
    is_hit = counts & (evidence.matched_object >= 0)
    kinds[is_hit], explained[is_hit] = "hit", evidence.matched_object[is_hit]
    for overlaps in evidence.overlaps:
        objects[overlaps.objects] = "missed"
        for row, detection in enumerate(overlaps.detections):
            if counts[detection] and not is_hit[detection]:
                kinds[detection], explained[detection] = _kind_of_error(
                    truth.labels[overlaps.objects] == found.labels[detection], overlaps, row
                )
    for kind in ("location", "class"):
        objects[explained[kinds == kind]] = kind
    objects[explained[is_hit]] = "found"
    return Judgement(kinds, explained, objects)


def _kind_of_error(is_same_class: NDArray[np.bool_], overlaps: ImageOverlaps, row: int) -> tuple[ErrorKind, int]:
    """The kind of a false detection, in TIDE's order, and the row of the object that it belongs to, or -1."""
    ious = overlaps.ious[row]
    if not len(ious):
        return "background", -1
    same, other = np.where(is_same_class, ious, 0.0), np.where(is_same_class, 0.0, ious)
    if BACKGROUND_IOU <= same.max() < MATCH_IOU:
        return "location", int(overlaps.objects[same.argmax()])
    if other.max() >= MATCH_IOU:
        return "class", int(overlaps.objects[other.argmax()])
    if same.max() >= MATCH_IOU:
        return "duplicate", int(overlaps.objects[same.argmax()])
    if ious.max() < BACKGROUND_IOU:
        return "background", -1
    return "both", int(overlaps.objects[ious.argmax()])
