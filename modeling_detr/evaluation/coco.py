"""COCO average precision, by pycocotools, on ground truth built in memory: every dataset format evaluates alike.

Shapes: K predictions of one image · T IoU thresholds · R recall thresholds · C classes · A object sizes (all, small,
medium, large) · M numbers of detections an image.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_detr.structures_detr import DetectionIndex, DetectionResult


if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Figures of one class, in [0, 1]; nan where it has no ground truth.

    Attributes:
        ap: Mean over the IoU thresholds .50, .55, … .95.
        ap50: At IoU .50.
        ap75: At IoU .75.
        ar_100: Recall, mean over the IoU thresholds.
        num_boxes: Boxes of the ground truth, crowd regions not counted.
    """

    ap: float
    ap50: float
    ap75: float
    ar_100: float
    num_boxes: int


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """The twelve figures of COCO, in [0, 1], and those of each class; nan where there is no ground truth.

    Classes, and object sizes, without ground truth are left out of the means, as pycocotools leaves them out.

    Attributes:
        ap: Mean over the IoU thresholds .50, .55, … .95 and the classes.
        ap50: At IoU .50.
        ap75: At IoU .75.
        ap_small: Of objects of less than 32² square pixels.
        ap_medium: Of objects of 32² to 96² square pixels.
        ap_large: Of larger objects.
        ar_1: Recall with one detection an image and class (the first of `max_detections`).
        ar_10: With 10 (the second).
        ar_100: With 100 (the last).
        ar_small: With 100, of small objects.
        ar_medium: With 100, of medium objects.
        ar_large: With 100, of large objects.
        per_class: Class name → its figures, in the order of the labels.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: Mapping[str, ClassMetrics]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers for JSON, nan as None."""
        figures = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        classes = {name: dataclasses.asdict(metrics) for name, metrics in self.per_class.items()}
        plain: dict[str, Any] = nan_to_none(figures | {"per_class": classes})
        return plain


@dataclass(frozen=True, slots=True, eq=False)
class _Predictions:
    """Predictions of one image: scores (K,), labels (K,), boxes_xyxy (K, 4), and masks as K compressed run lengths, or
    none."""

    scores: NDArray[np.floating[Any]]
    labels: NDArray[np.int64]
    boxes_xyxy: NDArray[np.floating[Any]]
    masks: list[Any]


class CocoEvaluator:
    """Collects predictions and judges them with pycocotools: `update` for each batch, `gather`, `compute`.

    All images of the index count: one without predictions has none. Predictions are kept by the position of their
    image, so one that comes twice is counted once. Classes of stuff have no single objects to find and are not judged,
    unless there are no others.

    Args:
        index: The dataset; its labels are those of the predictions.
        max_detections: Detections an image and class that count, for the three figures of recall; the last, for AP.
        masks: Judge masks instead of boxes: results have `masks`, which are kept as run lengths.

    Raises:
        ValueError: Masks are to be judged and the dataset has none.
    """

    def __init__(
        self, index: DetectionIndex, max_detections: tuple[int, int, int] = (1, 10, 100), masks: bool = False
    ) -> None:
        if masks and index.annotations.masks is None:
            raise ValueError(f"{index.name} has no masks to judge by; open it with task='instance'.")
        self.index = index
        self.max_detections = max_detections
        self.masks = masks
        things = [label for label, category in enumerate(index.categories) if category.is_thing]
        self._judged = things or list(range(len(index.categories)))
        self._predictions: dict[int, _Predictions] = {}
        self._image_ids = _ids_in_order(index)

    def update(self, image_indices: Sequence[int], results: Sequence[DetectionResult]) -> None:
        """Takes the predictions of some images.

        Args:
            image_indices: The position of each image in `index.images`.
            results: The predictions of each, boxes xyxy in pixels of the original image.

        Raises:
            ValueError: The two do not fit each other, or a prediction is none of this dataset; the message says which.
        """
        if len(image_indices) != len(results):
            raise ValueError(f"{len(image_indices)} image indices for {len(results)} results; wanted one each.")
        for position, result in zip(map(int, image_indices), results, strict=True):
            if not 0 <= position < len(self.index):
                raise ValueError(
                    f"{self.index.name} has {len(self.index)} images, but a result is of image {position}."
                )
            self._predictions[position] = self._checked(position, result)

    def _checked(self, position: int, result: DetectionResult) -> _Predictions:
        where = f"Predictions of image {self.index.images[position].id} of {self.index.name}"
        scores, labels, boxes = (
            torch.as_tensor(tensor).detach().cpu().numpy()
            for tensor in (result["scores"], result["labels"], result["boxes"])
        )
        if boxes.shape != (len(scores), 4) or labels.shape != scores.shape or scores.ndim != 1:
            raise ValueError(
                f"{where}: scores {scores.shape}, labels {labels.shape} and boxes {boxes.shape} do not fit; "
                f"wanted (K,), (K,) and (K, 4)."
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"{where}: scores or boxes hold NaN or infinite numbers; the model has diverged.")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.index.categories):
            raise ValueError(
                f"{where}: labels {labels.min()}…{labels.max()}, but the dataset has {len(self.index.categories)} "
                f"classes (0-{len(self.index.categories) - 1})."
            )
        masks = self._run_lengths(position, where, result, len(scores)) if self.masks else []
        return _Predictions(scores, labels.astype(np.int64), boxes, masks)

    def _run_lengths(self, position: int, where: str, result: DetectionResult, number: int) -> list[Any]:
        record = self.index.images[position]
        if "masks" not in result:
            raise ValueError(f"{where}: they have no masks; got {sorted(result)}. Judge boxes, or predict masks.")
        masks = torch.as_tensor(result["masks"]).detach().cpu().numpy()
        if masks.shape != (number, record.height, record.width):
            raise ValueError(
                f"{where}: masks of shape {masks.shape}; wanted {(number, record.height, record.width)}, one for each "
                f"prediction at the image's own size."
            )
        return encode_masks(masks)

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the predictions of all processes; afterwards each has them all. Every process must call it."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        for predictions in gather_object([self._predictions]):
            self._predictions.update(predictions)

    def compute(self) -> CocoMetrics:
        """The figures for what has been collected; no predictions at all are AP 0."""
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            judge = COCOeval(self._ground_truth(), self._detections(), iouType="segm" if self.masks else "bbox")
            judge.params.maxDets = list(self.max_detections)
            judge.params.catIds = self._judged
            if len(self.index):
                judge.evaluate()
                judge.accumulate()
        shape = (10, 101, len(self.index.categories), 4, 3)
        precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
        if judge.eval:  # but for a dataset without images
            precision[:, :, self._judged] = judge.eval["precision"]
            recall[:, self._judged] = judge.eval["recall"]
        return self._metrics(precision, recall)

    def to_coco_results(self) -> list[dict[str, Any]]:
        """The predictions in COCO's format of results, with the dataset's own ids of images and categories.

        Each has a `bbox`; where masks are judged, a `segmentation` (compressed run lengths) in its place, since COCO's
        tool takes the area from a `bbox` where it finds one.
        """
        return [
            {
                "image_id": self.index.images[position].id,
                "category_id": self.index.categories[label].id,
                **(
                    {"bbox": [x0, y0, x1 - x0, y1 - y0]}
                    if mask is None
                    else {"segmentation": {**mask, "counts": mask["counts"].decode("ascii")}}
                ),
                "score": score,
            }
            for position, label, (x0, y0, x1, y1), score, mask in self._rows()
        ]

    def _rows(self) -> list[tuple[int, int, list[float], float, Any]]:
        """Image position, label, box xyxy, score, mask or None of every prediction, in the order of the images."""
        return [
            (position, label, box, score, mask)
            for position, found in sorted(self._predictions.items())
            for label, box, score, mask in zip(
                found.labels.tolist(),
                found.boxes_xyxy.tolist(),
                found.scores.tolist(),
                found.masks or [None] * len(found.labels),
                strict=True,
            )
        ]

    def _ground_truth(self) -> Any:
        table = self.index.annotations
        return self._coco(
            {
                "image_id": self._image_ids[position],
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
                **({} if mask is None else {"segmentation": mask}),
            }
            for position, label, box, area, crowd, mask in zip(
                table.image_index.tolist(),
                table.label.tolist(),
                np.concatenate(
                    [table.boxes_xyxy[:, :2], table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]], 1
                ).tolist(),
                table.area.tolist(),
                table.is_crowd.tolist(),
                self._true_masks() if self.masks else [None] * len(table),
                strict=True,
            )
        )

    def _true_masks(self) -> Iterator[Any]:
        """The run lengths of every annotation; the masks of one image at a time."""
        for position in range(len(self.index)):
            yield from encode_masks(self.index.read_masks(position))

    def _detections(self) -> Any:
        return self._coco(
            {
                "image_id": self._image_ids[position],
                "category_id": label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0) if mask is None else _area(mask),
                "iscrowd": 0,
                "score": score,
                **({} if mask is None else {"segmentation": mask}),
            }
            for position, label, (x0, y0, x1, y1), score, mask in self._rows()
        )

    def _coco(self, annotations: Any) -> Any:
        """A dataset as pycocotools has it; category ids are labels, image ids those of `_ids_in_order`.

        pycocotools takes a match with an annotation whose id is 0 for no match, so ids start at 1.
        """
        from pycocotools.coco import COCO

        dataset = COCO()
        dataset.dataset = {
            "images": [
                {"id": number, "height": image.height, "width": image.width}
                for number, image in zip(self._image_ids, self.index.images, strict=True)
            ],
            "categories": [
                {"id": label, "name": category.name} for label, category in enumerate(self.index.categories)
            ],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
        }
        dataset.createIndex()
        return dataset

    def _metrics(self, precision: NDArray[np.float64], recall: NDArray[np.float64]) -> CocoMetrics:
        """The figures from precision (T, R, C, A, M) and recall (T, C, A, M)."""
        table = self.index.annotations
        num_boxes = np.bincount(table.label[~table.is_crowd], minlength=len(self.index.categories))
        names = [category.name for category in self.index.categories]
        per_class = {
            name if names.count(name) == 1 else f"{name} (label {label})": ClassMetrics(
                ap=_mean(precision[:, :, label, 0, -1]),
                ap50=_mean(precision[0, :, label, 0, -1]),
                ap75=_mean(precision[5, :, label, 0, -1]),
                ar_100=_mean(recall[:, label, 0, -1]),
                num_boxes=int(num_boxes[label]),
            )
            for label, name in enumerate(names)
        }
        return CocoMetrics(
            ap=_mean(precision[:, :, :, 0, -1]),
            ap50=_mean(precision[0, :, :, 0, -1]),
            ap75=_mean(precision[5, :, :, 0, -1]),
            ap_small=_mean(precision[:, :, :, 1, -1]),
            ap_medium=_mean(precision[:, :, :, 2, -1]),
            ap_large=_mean(precision[:, :, :, 3, -1]),
            ar_1=_mean(recall[:, :, 0, 0]),
            ar_10=_mean(recall[:, :, 0, 1]),
            ar_100=_mean(recall[:, :, 0, 2]),
            ar_small=_mean(recall[:, :, 1, 2]),
            ar_medium=_mean(recall[:, :, 2, 2]),
            ar_large=_mean(recall[:, :, 3, 2]),
            per_class=per_class,
        )


def encode_masks(masks: NDArray[np.bool_]) -> list[Any]:
    """Masks (K, H, W) bool as K compressed run lengths of COCO: {size: [height, width], counts: bytes}."""
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def _area(run_lengths: Any) -> float:
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(run_lengths))


def _ids_in_order(index: DetectionIndex) -> list[int]:
    """An id for each image, in the order of the dataset's own ids if those are numbers.

    pycocotools goes through the images by id, and the order decides which of two equal scores comes first: on a COCO
    file the figures are to be those of its own ids.
    """
    own_ids = [image.id for image in index.images]
    if not all(isinstance(own_id, int) for own_id in own_ids):
        return list(range(len(own_ids)))
    rank = np.argsort(np.argsort(np.array(own_ids, dtype=np.int64), kind="stable"))
    return [int(number) for number in rank]


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what there is ground truth for (pycocotools puts -1 elsewhere); nan if for nothing."""
    there = values[values > -1]
    return float(there.mean()) if there.size else math.nan


def nan_to_none(value: Any) -> Any:
    """The value, and what is in it if it is a dict, with None in place of nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
