"""Predictions matched with the ground truth: hits, misses and false positives, per image and per class.

`CocoEvaluator.matches` makes them, by the rules of pycocotools. They answer which images a model gets wrong, and which
score a class needs.

    matches = evaluator.matches(iou=0.5)
    matches.worst_images(20)
    matches.curves()["cat"].best_f1().threshold

Shapes: K predictions · N objects of the dataset, without crowd regions · S distinct scores of a class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


DEFAULT_THRESHOLD = 0.5  # of classes whose predictions include no hit


class OperatingPoint(NamedTuple):
    """What a score threshold achieves: predictions count if their score is at least `threshold`."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionRecall:
    """Precision and recall of one class at each of its scores.

    Attributes:
        thresholds: (S,) distinct scores, descending.
        precision: (S,) share of the predictions with at least this score that are hits.
        recall: (S,) share of the objects that they find; NaN if the class has no objects.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def best_f1(self) -> OperatingPoint | None:
        """The threshold with the highest F1, the highest one of several; None if no prediction is a hit."""
        points = [point for point in self._points() if point.f1 > 0]
        return max(points, key=lambda point: point.f1, default=None)

    def at_precision(self, precision: float) -> OperatingPoint | None:
        """The lowest threshold with at least this precision, which has the highest recall; None if there is none."""
        points = [point for point in self._points() if point.precision >= precision and point.recall > 0]
        return points[-1] if points else None

    def _points(self) -> list[OperatingPoint]:
        columns = (self.thresholds.tolist(), self.precision.tolist(), self.recall.tolist())
        return [OperatingPoint(*values) for values in zip(*columns, strict=True)]


class ImageErrors(NamedTuple):
    """Hits and errors in one image.

    image_index: index of the image in `DetectionIndex.images`. hits: objects that are found. misses: objects that are
    not. false_positives: predictions that match no object.
    """

    image_index: int
    hits: int
    misses: int
    false_positives: int

    @property
    def f1(self) -> float:
        """Twice the hits by objects and predictions together; 1 if there are neither."""
        total = 2 * self.hits + self.misses + self.false_positives
        return 2 * self.hits / total if total else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class DetectionMatches:
    """Every prediction of an evaluation, and the object that it matches. Rows of the columns belong together.

    Predictions beyond the evaluator's last limit of detections and those that match a crowd region are left out.

    Attributes:
        class_names: Name of each label.
        num_images: Number of images of the dataset.
        image_index: (K,) int64, index of the image in `DetectionIndex.images`.
        label: (K,) int64, the predicted class.
        score: (K,) float64.
        annotation: (K,) int64, row of the matched object in `DetectionIndex.annotations`; -1: a false positive.
        object_image_index: (N,) int64, index of the image of each object.
        object_label: (N,) int64, the class of each object.
    """

    class_names: tuple[str, ...]
    num_images: int
    image_index: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    annotation: NDArray[np.int64]
    object_image_index: NDArray[np.int64]
    object_label: NDArray[np.int64]

    def curves(self) -> dict[str, PrecisionRecall]:
        """Precision and recall of each class, by its name."""
        return {name: self._curve(label) for label, name in enumerate(self.class_names)}

    def worst_images(self, count: int, thresholds: Mapping[str, float] | None = None) -> list[ImageErrors]:
        """The images with the lowest F1, those with more errors first if it is equal.

        Args:
            count: How many.
            thresholds: Class name → lowest score that counts. None, or for classes that are not named: the one with
                the class's best F1.
        """
        images = sorted(
            self.per_image(thresholds), key=lambda image: (image.f1, -image.misses - image.false_positives)
        )
        return images[:count]

    def per_image(self, thresholds: Mapping[str, float] | None = None) -> list[ImageErrors]:
        """Hits and errors of every image, in the order of the dataset; see `worst_images`."""
        lowest = np.array([self._threshold(name, curve, thresholds or {}) for name, curve in self.curves().items()])
        counts = self.score >= lowest[self.label] if len(lowest) else np.zeros(0, np.bool_)
        is_hit = self.annotation >= 0
        hits, false_positives, objects = (
            np.bincount(image_index, minlength=self.num_images).tolist()
            for image_index in (
                self.image_index[counts & is_hit],
                self.image_index[counts & ~is_hit],
                self.object_image_index,
            )
        )
        rows = zip(hits, objects, false_positives, strict=True)
        return [ImageErrors(image, hit, number - hit, false) for image, (hit, number, false) in enumerate(rows)]

    @staticmethod
    def _threshold(name: str, curve: PrecisionRecall, thresholds: Mapping[str, float]) -> float:
        if name in thresholds:
            return thresholds[name]
        best = curve.best_f1()
        return DEFAULT_THRESHOLD if best is None else best.threshold

    def _curve(self, label: int) -> PrecisionRecall:
        rows = np.flatnonzero(self.label == label)
        rows = rows[np.argsort(-self.score[rows], kind="stable")]
        scores, hits = self.score[rows], np.cumsum(self.annotation[rows] >= 0)
        last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of the predictions with the same score
        num_objects = int((self.object_label == label).sum())
        recall = hits[last] / num_objects if num_objects else np.full(len(last), np.nan)
        return PrecisionRecall(scores[last], hits[last] / (last + 1), recall)
