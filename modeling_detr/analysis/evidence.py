"""What the analyses look at: the objects of a dataset, the detections of a model, and how they overlap.

Shapes: K detections · N annotated objects, crowd regions included; rows as in `CocoScoring`.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_detr.data.file_names import distinct_names
from modeling_detr.evaluation.coco_engines import CocoScoring, ScoredObjects, hotcoco_evaluation
from modeling_detr.evaluation.evaluator import Evaluator
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.matches import DetectionMatches
from modeling_detr.evaluation.metrics import unique_class_names
from modeling_detr.structures_detr import DetectionIndex, DetectionResult


MATCH_IOU = 0.5  # a detection of the right class with at least this overlap finds an object
NOT_COUNTED = -2  # see `Evidence.matched_object`


class ImageOverlaps(NamedTuple):
    """The overlaps in one image.

    image_index: index of the image in `DetectionIndex.images`. detections: (k,) rows. objects: (n,) rows, without
    crowd regions. ious: (k, n) float64.
    """

    image_index: int
    detections: NDArray[np.int64]
    objects: NDArray[np.int64]
    ious: NDArray[np.float64]


class Evidence:
    """The detections that an evaluator has collected, with what several analyses need computed once.

    Args:
        evaluator: An evaluator of boxes or masks, after `gather`.

    Attributes:
        evaluator: The evaluator.
        index: Its dataset.
        class_names: A unique name of each class.
    """

    def __init__(self, evaluator: CocoEvaluator) -> None:
        self.evaluator = evaluator
        self.index = evaluator.index
        self.class_names = unique_class_names(evaluator.index)

    @classmethod
    def of(cls, evaluators: Iterable[Evaluator]) -> "Evidence | None":
        """That of the evaluator of masks, or else of boxes; None if there is neither."""
        scored = [one for one in evaluators if isinstance(one, CocoEvaluator)]
        return cls(max(scored, key=lambda one: one.masks)) if scored else None

    @classmethod
    def of_rows(
        cls,
        index: DetectionIndex,
        image_index: NDArray[np.int64],
        category_ids: NDArray[np.int64],
        boxes_xyxy: NDArray[np.float64],
        scores: NDArray[np.float64],
    ) -> "Evidence":
        """The evidence of detections (K,) that are already there, such as those of a results file.

        Args:
            index: The dataset.
            image_index: (K,) index of the image of each detection in `index.images`.
            category_ids: (K,) the dataset's ids of the classes; detections of other classes are left out.
            boxes_xyxy: (K, 4) corners in pixels.
            scores: (K,) scores.

        Raises:
            PredictionError: A box or score is NaN or infinite.
        """
        label_of = {category.id: label for label, category in enumerate(index.categories)}
        labels = np.array([label_of.get(category, -1) for category in category_ids.tolist()], np.int64)
        rows_of, nothing = _rows_by_image(image_index), np.zeros(0, np.int64)
        evaluator = CocoEvaluator(index)
        for image in range(len(index)):
            rows = rows_of.get(image, nothing)
            rows = rows[labels[rows] >= 0]
            result: DetectionResult = {
                "scores": torch.from_numpy(scores[rows]),
                "labels": torch.from_numpy(labels[rows]),
                "boxes": torch.from_numpy(boxes_xyxy[rows]),
            }
            evaluator.update([image], [result])
        return cls(evaluator)

    def in_labels_of(self, index: DetectionIndex) -> "Evidence":
        """The same detections of boxes with the labels of another index of the same images.

        Models with another order of classes compare in the labels of the dataset. Detections of classes that it does
        not have are left out.
        """
        found = self.scoring.detections
        category_ids = np.array([category.id for category in self.index.categories], np.int64)
        boxes = corners(found.boxes_xywh)
        return self.of_rows(
            index, self.image_indices(found.image_ids), category_ids[found.labels], boxes, found.scores
        )

    @cached_property
    def image_names(self) -> list[str]:
        """The name of each image's file, with its folders if several files have the same name."""
        return distinct_names([image.path for image in self.index.images])

    @cached_property
    def scoring(self) -> CocoScoring:
        """The objects and the detections."""
        return self.evaluator.scoring()

    @cached_property
    def evaluation(self) -> Any:
        """hotcoco's `COCOeval`, evaluated."""
        evaluation = hotcoco_evaluation(self.scoring)
        evaluation.evaluate()
        return evaluation

    @cached_property
    def image_of(self) -> dict[int, int]:
        """Image id of `scoring` → index of the image."""
        return {image["id"]: number for number, image in enumerate(self.scoring.images)}

    @cached_property
    def matched_object(self) -> NDArray[np.int64]:
        """(K,) the object that each detection finds by COCO's rules; -1: none; `NOT_COUNTED`.

        Detections do not count in crowd regions, beyond the evaluator's limit per image and class, and if their class
        is not scored.
        """
        found = self.evaluation.image_diagnostics(iou_thr=MATCH_IOU)
        matched = np.full(len(self.scoring.detections.labels), NOT_COUNTED, np.int64)
        for detection, status in found["dt_status"].items():
            matched[detection - 1] = -1 if status == "fp" else found["dt_match"][detection] - 1
        return matched

    @cached_property
    def matches(self) -> DetectionMatches:
        """The detections that count, with the objects that they find."""
        truth, found = self.scoring.truth, self.scoring.detections
        counts = np.flatnonzero(self.matched_object != NOT_COUNTED)
        counts = counts[np.argsort(-found.scores[counts], kind="stable")]
        objects = ~truth.is_crowd & np.isin(truth.labels, self.scoring.scored_labels)
        return DetectionMatches(
            class_names=tuple(self.class_names),
            num_images=len(self.index),
            image_index=self.image_indices(found.image_ids[counts]),
            label=found.labels[counts],
            score=found.scores[counts],
            annotation=self.matched_object[counts],
            object_image_index=self.image_indices(truth.image_ids[objects]),
            object_label=truth.labels[objects],
        )

    def image_indices(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each image, from ids (K,) of `scoring`."""
        return np.array([self.image_of[image_id] for image_id in image_ids.tolist()], np.int64)

    @cached_property
    def overlaps(self) -> list[ImageOverlaps]:
        """The overlaps in each image, in the order of the dataset."""
        return [*self._overlaps()]

    def _overlaps(self) -> Iterator[ImageOverlaps]:
        truth, found = self.scoring.truth, self.scoring.detections
        scored = np.isin(truth.labels, self.scoring.scored_labels) & ~truth.is_crowd
        objects_of, detections_of = _rows_by_image(truth.image_ids), _rows_by_image(found.image_ids)
        nothing = np.zeros(0, np.int64)
        for image_id, image_index in self.image_of.items():
            objects = objects_of.get(image_id, nothing)
            objects, detections = objects[scored[objects]], detections_of.get(image_id, nothing)
            yield ImageOverlaps(image_index, detections, objects, self._ious(detections, objects))

    def _ious(self, detections: NDArray[np.int64], objects: NDArray[np.int64]) -> NDArray[np.float64]:
        return _ious(self.scoring.detections, detections, self.scoring.truth, objects)

    def overlaps_of_detections(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """IoU (k, k) of detections (k,) of one image."""
        return _ious(self.scoring.detections, rows, self.scoring.detections, rows)


def _ious(
    first: ScoredObjects, rows: NDArray[np.int64], second: ScoredObjects, others: NDArray[np.int64]
) -> NDArray[np.float64]:
    """IoU (rows, others) of masks, if there are any, otherwise of boxes."""
    from pycocotools import mask as coco_mask

    if not len(rows) or not len(others):
        return np.zeros((len(rows), len(others)))
    shapes: list[Any] = [
        objects.boxes_xywh[chosen] if objects.masks is None else [objects.masks[row] for row in chosen]
        for objects, chosen in ((first, rows), (second, others))
    ]
    return np.asarray(coco_mask.iou(*shapes, [0] * len(others)), np.float64)


def corners(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) x, y, width and height → corners."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def _rows_by_image(image_ids: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Image id → its rows, in their order."""
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(ids) else {}
