"""Labels that are probably wrong, judged by a model: objects nobody annotated, wrong classes, boxes that are off.

A model that was trained on the same labels has learned some of their faults; one that was trained on others, or has
only seen each image a few times, finds more.

Shapes: k detections and n objects of one image.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_detr.analysis.evidence import NOT_COUNTED, Evidence, ImageOverlaps


Suspicion = Literal["not annotated", "wrong class", "badly placed", "no such object"]

_SAME_IOU = 0.5  # a detection and an annotation that mean the same object
_NEAR_IOU = 0.1  # … that may mean the same object
_LEAST_SCORE = 0.3  # of a detection that can cast doubt on a label
_OVERLOOKED = 0.5  # certainty of an object that the model does not see at all: it overlooks more than people invent


class SuspectedLabel(NamedTuple):
    """A label that is probably wrong, or missing.

    suspicion: What is wrong. certainty: from 0 to 1; for ranking, not a probability. image_index: index of the image
    in `DetectionIndex.images`. annotation: row in `DetectionIndex.annotations`, or -1 if there is none. detection: row
    in `CocoScoring.detections`, or -1: the model sees nothing there. label: the detected class, or the annotated one
    if nothing is detected. box_xyxy: the detected box, or the annotated one.
    """

    suspicion: Suspicion
    certainty: float
    image_index: int
    annotation: int
    detection: int
    label: int
    box_xyxy: tuple[float, float, float, float]


def suspected_labels(evidence: Evidence) -> list[SuspectedLabel]:
    """All suspected labels, the most certain first; one at most for each annotation."""
    found = [one for overlaps in evidence.overlaps for one in _in_image(evidence, overlaps)]
    return sorted(found, key=lambda one: -one.certainty)


def _in_image(evidence: Evidence, overlaps: ImageOverlaps) -> Iterator[SuspectedLabel]:
    truth, found = evidence.scoring.truth, evidence.scoring.detections
    rows, objects, ious = overlaps.detections, overlaps.objects, overlaps.ious
    scores, is_same = found.scores[rows], found.labels[rows][:, None] == truth.labels[objects]
    # How much speaks for each annotated object: the best score of a detection of its class that is well on it.
    support = np.where(is_same & (ious >= _SAME_IOU), scores[:, None], 0.0).max(0, initial=0.0)
    doubts: dict[int, SuspectedLabel] = {}
    for row in _sure_and_distinct(evidence, overlaps, scores):
        if evidence.matched_object[rows[row]] == NOT_COUNTED or (is_same[row] & (ious[row] >= _SAME_IOU)).any():
            continue  # as annotated, or in a crowd region
        kind, column = _disagreement(ious[row], is_same[row], support)
        if column < 0:
            yield _suspected(evidence, overlaps, kind, float(scores[row]), -1, int(rows[row]))
            continue
        # Two things speak against the label: an object that has none, and a label that has no object.
        certainty = float(np.sqrt(scores[row] * (1 - support[column])))
        if column not in doubts or certainty > doubts[column].certainty:
            doubts[column] = _suspected(evidence, overlaps, kind, certainty, int(objects[column]), int(rows[row]))
    for column in range(len(objects)):
        near = float(np.where(ious[:, column] >= _NEAR_IOU, scores, 0.0).max(initial=0.0))
        if column not in doubts and near < _LEAST_SCORE:
            certainty = _OVERLOOKED * (1 - near) ** 2
            doubts[column] = _suspected(evidence, overlaps, "no such object", certainty, int(objects[column]), -1)
    yield from doubts.values()


def _disagreement(
    ious: NDArray[np.float64], is_same: NDArray[np.bool_], support: NDArray[np.float64]
) -> tuple[Suspicion, int]:
    """What a detection without an annotation of its class says, and which of the objects (n,) it is about, or -1."""
    if ious.max(initial=0.0) >= _SAME_IOU:
        return "wrong class", int(ious.argmax())
    free = np.where(is_same & (support < _LEAST_SCORE), ious, 0.0)
    if free.max(initial=0.0) >= _NEAR_IOU:
        return "badly placed", int(free.argmax())
    return "not annotated", -1


def _sure_and_distinct(evidence: Evidence, overlaps: ImageOverlaps, scores: NDArray[np.float64]) -> list[int]:
    """The detections (k) that are sure enough, the surest first, without second ones of the same thing."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= _LEAST_SCORE]
    ious = evidence.overlaps_of_detections(overlaps.detections[order])
    chosen: list[int] = []  # places in `order`
    for place in range(len(order)):
        if ious[place, chosen].max(initial=0.0) < _SAME_IOU:
            chosen.append(place)
    return [int(row) for row in order[chosen]]


def _suspected(
    evidence: Evidence, overlaps: ImageOverlaps, kind: Suspicion, certainty: float, annotation: int, detection: int
) -> SuspectedLabel:
    source = evidence.scoring.detections if detection >= 0 else evidence.scoring.truth
    row = detection if detection >= 0 else annotation
    x, y, width, height = source.boxes_xywh[row].tolist()
    box = (x, y, x + width, y + height)
    return SuspectedLabel(kind, certainty, overlaps.image_index, annotation, detection, int(source.labels[row]), box)
