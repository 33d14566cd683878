"""What to do about a kind of error, in a sentence, from what the errors have in common.

Another kind of error is a function and a line in `ADVICE`.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.judgement import ErrorKind, Judgement


_SMALL_AREA = 32**2  # square pixels, as COCO's small objects
_SURE = 0.5  # score
_MOST = 0.6  # a share worth telling
_STRIKING = 1.2  # times the share among all objects


class _Errors(NamedTuple):
    """What the advice is about."""

    evidence: Evidence
    judgement: Judgement
    detections: NDArray[np.int64]  # the false detections of this kind
    objects: NDArray[np.int64]  # the objects that they belong to, or that are missed

    @property
    def small_share(self) -> float:
        """The share of the objects that are small."""
        areas = self.evidence.scoring.truth.areas[self.objects]
        return float((areas < _SMALL_AREA).mean()) if len(areas) else 0.0

    @property
    def sure(self) -> int:
        """The number of detections with a score of at least .5."""
        return int((self.evidence.scoring.detections.scores[self.detections] >= _SURE).sum())

    def striking_class(self) -> tuple[str, float] | None:
        """The class of most of the objects, and its share; None if as many of all annotated objects are of it."""
        truth = self.evidence.scoring.truth
        labels, all_labels = truth.labels[self.objects], truth.labels[~truth.is_crowd]
        if not len(labels):
            return None
        label, count = Counter(labels.tolist()).most_common(1)[0]
        share = count / len(labels)
        if share <= _MOST or share < _STRIKING * (all_labels == label).mean():
            return None
        return self.evidence.class_names[label], share


def advice(kind: ErrorKind, evidence: Evidence, judgement: Judgement) -> str:
    """What to do about the errors of a kind, of which there is at least one."""
    detections = np.flatnonzero(judgement.detections == kind)
    objects = np.flatnonzero(judgement.objects == kind) if kind == "missed" else judgement.explained_by[detections]
    return ADVICE[kind](_Errors(evidence, judgement, detections, objects[objects >= 0]))


def _on_class(errors: _Errors) -> str:
    found, truth = errors.evidence.scoring.detections.labels, errors.evidence.scoring.truth.labels
    rows = errors.detections[errors.judgement.explained_by[errors.detections] >= 0]
    pairs = Counter(zip(truth[errors.judgement.explained_by[rows]].tolist(), found[rows].tolist(), strict=True))
    if not pairs:
        return "Objects are given the name of another class."
    (true, predicted), _ = pairs.most_common(1)[0]
    names = errors.evidence.class_names
    return (
        f"Most often '{names[true]}' is taken for '{names[predicted]}': check that they are annotated alike "
        "everywhere, add images of the rarer one, or merge them."
    )


def _on_location(errors: _Errors) -> str:
    if errors.small_share > _MOST:
        return f"{errors.small_share:.0%} of these objects are smaller than 32 x 32 pixels: use larger images."
    return "Train longer, or use larger images; if the annotators drew boxes loosely, no model can place them better."


def _on_both(_errors: _Errors) -> str:
    return "Close to objects of other classes: usually fewer after longer training; see the pictures."


def _on_duplicate(_errors: _Errors) -> str:
    return (
        "Several queries find the same object: train longer, with local_start and anchored_matching 10; if the model "
        "cannot be trained again, remove duplicates after prediction (non-maximum suppression)."
    )


def _on_background(errors: _Errors) -> str:
    if errors.sure:
        return (
            f"{errors.sure:,} of them score at least .5: look at the suspected labels first. If the labels are right, "
            "add images of what is mistaken for objects, without boxes."
        )
    return "None of them scores .5 or more: a threshold of .5 removes them."


def _on_missed(errors: _Errors) -> str:
    if errors.small_share > _MOST:
        return f"{errors.small_share:.0%} of the missed objects are smaller than 32 x 32 pixels: use larger images."
    striking = errors.striking_class()
    if striking is not None:
        name, share = striking
        return f"{share:.0%} of the missed objects are of the class '{name}': add images of it."
    return "Add images that resemble those with missed objects, and train longer."


ADVICE: dict[ErrorKind, Callable[[_Errors], str]] = {
    "class": _on_class,
    "location": _on_location,
    "both": _on_both,
    "duplicate": _on_duplicate,
    "background": _on_background,
    "missed": _on_missed,
}
