"""COCO average precision. Its ground truth is built in memory, so all formats are scored the same way.

Shapes: K predictions of one image · T IoU thresholds · R recall thresholds · C classes · A object sizes (all, small,
medium, large) · M limits on the number of detections.
"""

import contextlib
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_detr.atomic_output import replace_text
from modeling_detr.errors_detr import DatasetError, PredictionError
from modeling_detr.evaluation.coco_engines import (
    ENGINES,
    CocoScoring,
    ScoredObjects,
    choose_engine,
    pycocotools_evaluation,
)
from modeling_detr.evaluation.evaluators.checks import check_label_range, pair_with_images
from modeling_detr.evaluation.matches import DetectionMatches
from modeling_detr.evaluation.metrics import Metric, Metrics, MetricTable, unique_class_names
from modeling_detr.output_errors import check_file
from modeling_detr.structures_detr import DetectionIndex, DetectionResult


if TYPE_CHECKING:
    from accelerate import Accelerator


_NUM_IOU_THRESHOLDS = 10  # .50, .55, … .95
_NUM_RECALL_THRESHOLDS = 101  # 0, .01, … 1
_OBJECT_SIZES = {"all": "all", "small": "area < 32²", "medium": "32² to 96²", "large": "area > 96²"}
CLASSES_AT_ONCE = 256  # that an engine scores: it holds several numbers for each class and all thresholds and sizes
_IOU_INDEX: dict[str, int | slice] = {".50:.95": slice(None), ".50": 0, ".75": 5}


class _Definition(NamedTuple):
    """One of COCO's metrics: its field, its name, and what it averages over."""

    field: str
    name: str
    iou: str  # a key of _IOU_INDEX
    size: str  # a key of _OBJECT_SIZES
    limit: int  # index in `max_detections`

    @property
    def is_recall(self) -> bool:
        return self.field.startswith("ar_")

    def mean(self, precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
        """The metric from precision (T, R, C, A) with the last limit, and recall (T, C, A, M) with all."""
        values = recall[..., self.limit] if self.is_recall else precision
        return _mean(values[_IOU_INDEX[self.iou]][..., list(_OBJECT_SIZES).index(self.size)])


_DEFINITIONS = (
    _Definition("ap", "AP", ".50:.95", "all", 2),
    _Definition("ap50", "AP50", ".50", "all", 2),
    _Definition("ap75", "AP75", ".75", "all", 2),
    _Definition("ap_small", "AP small", ".50:.95", "small", 2),
    _Definition("ap_medium", "AP medium", ".50:.95", "medium", 2),
    _Definition("ap_large", "AP large", ".50:.95", "large", 2),
    _Definition("ar_1", "AR 1", ".50:.95", "all", 0),
    _Definition("ar_10", "AR 10", ".50:.95", "all", 1),
    _Definition("ar_100", "AR 100", ".50:.95", "all", 2),
    _Definition("ar_small", "AR small", ".50:.95", "small", 2),
    _Definition("ar_medium", "AR medium", ".50:.95", "medium", 2),
    _Definition("ar_large", "AR large", ".50:.95", "large", 2),
)
_PER_CLASS = [definition for definition in _DEFINITIONS if definition.field in ("ap", "ap50", "ap75", "ar_100")]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class, in [0, 1]; NaN if it has no ground truth.

    Attributes:
        ap: Mean over the IoU thresholds .50, .55, … .95.
        ap50: At IoU .50.
        ap75: At IoU .75.
        ar_100: Recall, mean over the IoU thresholds.
        num_boxes: Number of ground-truth boxes, without crowd regions.
    """

    ap: float
    ap50: float
    ap75: float
    ar_100: float
    num_boxes: int


@dataclass(frozen=True, slots=True)
class CocoMetrics(Metrics):
    """COCO's twelve box metrics, in [0, 1], and the metrics of each class; NaN without ground truth.

    As in pycocotools, means leave out classes and object sizes without ground truth.

    Attributes:
        ap: Mean over the IoU thresholds .50, .55, … .95 and the classes.
        ap50: At IoU .50.
        ap75: At IoU .75.
        ap_small: AP of objects with an area below 32² pixels.
        ap_medium: AP of objects with an area of 32² to 96² pixels.
        ap_large: AP of objects with an area above 96² pixels.
        ar_1: Recall with 1 detection per image and class (the first of `max_detections`).
        ar_10: Recall with 10 detections (the second).
        ar_100: Recall with 100 detections (the last).
        ar_small: Recall of small objects, with 100 detections.
        ar_medium: Recall of medium objects, with 100 detections.
        ar_large: Recall of large objects, with 100 detections.
        per_class: Class name → its metrics, in the order of the labels.
    """

    key: ClassVar[str] = "metrics"
    priority: ClassVar[int] = 1
    _kind: ClassVar[Literal["box", "mask"]] = "box"

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

    def headline(self) -> tuple[Metric, ...]:
        """AP and AP50 of boxes, or AP of masks."""
        if self._kind == "mask":
            return (Metric("mask_ap", "mask AP", self.ap, hub_type="mAP"),)
        return (
            Metric("ap", "AP", self.ap, hub_type="mAP"),
            Metric("ap50", "AP50", self.ap50, hub_type="mAP"),
        )

    def log_values(self) -> dict[str, object]:
        """Everything: `ap` … `per_class`, or `mask_ap` … `mask_per_class`."""
        prefix = "mask_" if self._kind == "mask" else ""
        return {f"{prefix}{name}": value for name, value in self.as_dict().items()}

    def tables(self) -> tuple[MetricTable, MetricTable]:
        """The twelve metrics, and the metrics of each class with ground truth."""
        suffix = ", masks" if self._kind == "mask" else ""
        overall = [
            (entry.name, getattr(self, entry.field), entry.iou, _OBJECT_SIZES[entry.size], (1, 10, 100)[entry.limit])
            for entry in _DEFINITIONS
        ]
        classes = [
            (name, values.num_boxes, values.ap, values.ap50, values.ap75, values.ar_100)
            for name, values in self.per_class.items()
            if values.num_boxes > 0 and not math.isnan(values.ap)
        ]
        columns = ("class", "masks" if self._kind == "mask" else "boxes", *(entry.name for entry in _PER_CLASS))
        return (
            MetricTable(f"COCO{suffix}", ("metric", "value", "IoU", "objects", "detections"), overall),
            MetricTable(f"Classes{suffix}", columns, classes),
        )


@dataclass(frozen=True, slots=True)
class CocoMaskMetrics(CocoMetrics):
    """COCO's twelve metrics of masks; see `CocoMetrics`."""

    key: ClassVar[str] = "mask_metrics"
    priority: ClassVar[int] = 2
    _kind: ClassVar[Literal["box", "mask"]] = "mask"


@dataclass(frozen=True, slots=True, eq=False)
class _Predictions:
    """Predictions of one image: scores (K,), labels (K,), boxes_xyxy (K, 4), and the masks as K compressed
    RLEs, or an empty list."""

    scores: NDArray[np.floating[Any]]
    labels: NDArray[np.int64]
    boxes_xyxy: NDArray[np.floating[Any]]
    masks: list[Any]


class _Row(NamedTuple):
    """One prediction."""

    image_index: int
    label: int
    box_xywh: list[float]
    score: float
    mask: Any  # compressed RLE, or None


class CocoEvaluator:
    """Collects predictions and scores them by COCO's rules: call `update` for each batch, `gather`, then `compute`.

    All images of the index count: all objects of an image without predictions are missed. Predictions are stored by
    image index, so an image that is seen twice counts once. Stuff classes have no separate objects and are not scored,
    unless all classes are stuff.

    Args:
        index: The dataset; its labels are those of the predictions.
        max_detections: Limits on the detections per image and class, for the three recall metrics; the last one
            also applies to AP.
        masks: Whether to score masks instead of boxes; they are stored run-length encoded.
        engine: What computes precision and recall, one of `coco_engines.ENGINES`; all have the same result. None: the
            fastest that is installed.

    Attributes:
        engine: The engine that is used.

    Raises:
        DatasetError: `masks` is set, but the dataset has none.
        ValueError: There is no such engine.
        ImportError: The engine is not installed.
    """

    def __init__(
        self,
        index: DetectionIndex,
        max_detections: tuple[int, int, int] = (1, 10, 100),
        masks: bool = False,
        engine: str | None = None,
    ) -> None:
        if masks and index.annotations.masks is None:
            raise DatasetError(
                index.name, "has no masks, which mask AP needs", "open it for a task with masks", {"task": "instance"}
            )
        self.index = index
        self.max_detections = max_detections
        self.masks = masks
        self.engine = choose_engine(engine)
        things = [label for label, category in enumerate(index.categories) if category.is_thing]
        self._scored_labels = things or list(range(len(index.categories)))
        self._predictions: dict[int, _Predictions] = {}
        self._image_ids = _ids_in_order(index)
        self._save_to: Path | None = None

    @property
    def needs(self) -> Literal["boxes", "masks"]:
        """Masks if they are scored, otherwise boxes."""
        return "masks" if self.masks else "boxes"

    def update(self, image_indices: Sequence[int], results: Sequence[DetectionResult]) -> None:
        """Adds the predictions for some images.

        Args:
            image_indices: The index of each image in `index.images`.
            results: The predictions for each, boxes xyxy in pixels of the original image.

        Raises:
            PredictionError: `image_indices` and `results` differ in length, or a prediction does not fit the dataset;
                the message names the image.
        """
        for image_index, result in pair_with_images(self.index, image_indices, results):
            self._predictions[image_index] = self._checked(image_index, result)

    def _checked(self, image_index: int, result: DetectionResult) -> _Predictions:
        where = f"{self.index.name}, predictions of image {self.index.images[image_index].id}"
        scores, labels, boxes = (
            torch.as_tensor(tensor).detach().cpu().numpy()
            for tensor in (result["scores"], result["labels"], result["boxes"])
        )
        if boxes.shape != (len(scores), 4) or labels.shape != scores.shape or scores.ndim != 1:
            raise PredictionError(
                where,
                f"got scores {scores.shape}, labels {labels.shape} and boxes {boxes.shape}, "
                f"expected (K,), (K,) and (K, 4)",
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise PredictionError(where, "scores or boxes are NaN or infinite", "the model has probably diverged")
        check_label_range(labels, len(self.index.categories), where)
        masks = self._encoded_masks(image_index, where, result, len(scores)) if self.masks else []
        return _Predictions(scores, labels.astype(np.int64), boxes, masks)

    def _encoded_masks(self, image_index: int, where: str, result: DetectionResult, count: int) -> list[Any]:
        record = self.index.images[image_index]
        if "masks" not in result:
            raise PredictionError(
                where, f"got the keys {sorted(result)}, expected 'masks' among them", "predict masks, or score boxes"
            )
        masks = torch.as_tensor(result["masks"]).detach().cpu().numpy()
        if masks.shape != (count, record.height, record.width):
            raise PredictionError(
                where,
                f"masks have shape {masks.shape}, expected {(count, record.height, record.width)}: one per "
                f"prediction, at the size of the image",
            )
        return encode_masks(masks)

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the predictions of all processes into each of them. All processes call it together."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        for predictions in gather_object([self._predictions]):
            self._predictions.update(predictions)

    def compute(self) -> CocoMetrics:
        """Computes the metrics of all predictions so far; without any predictions, AP is 0."""
        num_classes, num_sizes, num_limits = len(self.index.categories), len(_OBJECT_SIZES), len(self.max_detections)
        precision = np.full((_NUM_IOU_THRESHOLDS, _NUM_RECALL_THRESHOLDS, num_classes, num_sizes), -1.0)
        recall = np.full((_NUM_IOU_THRESHOLDS, num_classes, num_sizes, num_limits), -1.0)
        scoring = self.scoring()
        # classes without annotated objects keep the -1; the others are scored independently of each other
        annotated = np.intersect1d(self._scored_labels, scoring.truth.labels).tolist()
        for start in range(0, len(annotated), CLASSES_AT_ONCE):
            labels = annotated[start : start + CLASSES_AT_ONCE]
            scored = ENGINES[self.engine](scoring.of_classes(labels))
            precision[:, :, labels] = scored.precision[..., -1]  # no metric needs that with other limits
            recall[:, labels] = scored.recall
        return self._metrics(precision, recall)

    def matches(self, iou: float = 0.5) -> DetectionMatches:
        """Matches the predictions so far with the objects of the dataset, as pycocotools does.

        Args:
            iou: Intersection over union from which on a prediction of the right class finds an object.
        """
        coco_eval = self.coco_eval()
        coco_eval.params.iouThrs = np.array([iou])
        coco_eval.params.areaRng, coco_eval.params.areaRngLbl = coco_eval.params.areaRng[:1], ["all"]
        coco_eval.params.maxDets = list(self.max_detections[-1:])
        if len(self.index):
            with contextlib.redirect_stdout(io.StringIO()):
                coco_eval.evaluate()
        image_of = {image_id: image for image, image_id in enumerate(self._image_ids)}
        rows = [
            (image_of[entry["image_id"]], entry["category_id"], score, int(annotation_id) - 1)
            for entry in coco_eval.evalImgs
            if entry is not None
            for score, annotation_id, ignored in zip(
                entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
            )
            if not ignored
        ]
        images, labels, scores, annotations = zip(*rows, strict=True) if rows else ((), (), (), ())
        table = self.index.annotations
        objects = ~table.is_crowd & np.isin(table.label, self._scored_labels)
        return DetectionMatches(
            class_names=tuple(unique_class_names(self.index)),
            num_images=len(self.index),
            image_index=np.array(images, np.int64),
            label=np.array(labels, np.int64),
            score=np.array(scores, np.float64),
            annotation=np.array(annotations, np.int64),
            object_image_index=table.image_index[objects],
            object_label=table.label[objects],
        )

    def coco_eval(self) -> Any:
        """pycocotools' evaluation of the predictions so far, not run yet; its category ids are labels."""
        return pycocotools_evaluation(self.scoring())

    def scoring(self) -> CocoScoring:
        """The objects and the predictions so far, as the engines score them; category ids are labels."""
        return CocoScoring(
            images=[
                {"id": image_id, "height": image.height, "width": image.width}
                for image_id, image in zip(self._image_ids, self.index.images, strict=True)
            ],
            categories=[{"id": label, "name": category.name} for label, category in enumerate(self.index.categories)],
            truth=self._ground_truth(),
            detections=self._detections(),
            scored_labels=self._scored_labels,
            max_detections=self.max_detections,
        )

    def _ground_truth(self) -> ScoredObjects:
        table = self.index.annotations
        return ScoredObjects(
            image_ids=np.array(self._image_ids, np.int64)[table.image_index],
            labels=table.label.astype(np.int64),
            boxes_xywh=_xywh(table.boxes_xyxy),
            areas=table.area.astype(np.float64),
            is_crowd=table.is_crowd.astype(np.bool_),
            scores=np.zeros(len(table)),
            masks=[*self._true_masks()] if self.masks else None,
        )

    def _true_masks(self) -> Iterator[Any]:
        """The RLE of every annotation; only the masks of one image are in memory at a time."""
        for image_index in range(len(self.index)):
            yield from encode_masks(self.index.read_masks(image_index))

    def _detections(self) -> ScoredObjects:
        by_image = sorted(self._predictions.items())
        everything = [predictions for _, predictions in by_image]
        counts = [len(predictions.labels) for predictions in everything]
        image_ids = [self._image_ids[image_index] for image_index, _ in by_image]
        boxes = _xywh(np.concatenate([np.zeros((0, 4)), *(predictions.boxes_xyxy for predictions in everything)]))
        masks = [mask for predictions in everything for mask in predictions.masks]
        return ScoredObjects(
            image_ids=np.repeat(np.array(image_ids, np.int64), counts),
            labels=np.concatenate([np.zeros(0, np.int64), *(predictions.labels for predictions in everything)]),
            boxes_xywh=boxes,
            areas=_areas(masks) if self.masks else boxes[:, 2] * boxes[:, 3],
            is_crowd=np.zeros(len(boxes), np.bool_),
            scores=np.concatenate([np.zeros(0), *(predictions.scores for predictions in everything)]),
            masks=masks if self.masks else None,
        )

    def _metrics(self, precision: NDArray[np.float64], recall: NDArray[np.float64]) -> CocoMetrics:
        """The metrics from precision (T, R, C, A) with the last limit, and recall (T, C, A, M) with all."""
        table = self.index.annotations
        num_boxes = np.bincount(table.label[~table.is_crowd], minlength=len(self.index.categories))
        per_class = {}
        for label, name in enumerate(unique_class_names(self.index)):
            of_class = slice(label, label + 1)
            values = {entry.field: entry.mean(precision[:, :, of_class], recall[:, of_class]) for entry in _PER_CLASS}
            per_class[name] = ClassMetrics(**values, num_boxes=int(num_boxes[label]))
        overall = {entry.field: entry.mean(precision, recall) for entry in _DEFINITIONS}
        return (CocoMaskMetrics if self.masks else CocoMetrics)(**overall, per_class=per_class)

    def start_saving(self, folder: Path) -> None:
        """Saves predictions in COCO's results format to `predictions.json` or `predictions_masks.json` in `folder`."""
        self._save_to = folder / ("predictions_masks.json" if self.masks else "predictions.json")
        check_file(self._save_to)

    def save(self, category_ids: Collection[int]) -> list[Path]:
        """Writes the predictions, without those of categories that the dataset does not have."""
        if self._save_to is None:
            return []
        results = [row for row in self.to_coco_results() if row["category_id"] in category_ids]
        replace_text(self._save_to, json.dumps(results))
        return [self._save_to]

    def to_coco_results(self) -> list[dict[str, Any]]:
        """The predictions in COCO's results format, with the ids of the dataset or of its conversion to COCO.

        Each entry has a `bbox`, or a `segmentation` (compressed RLE) if masks are scored; never both, since COCO's
        tool computes the area from the `bbox` if there is one.
        """
        return [
            {
                "image_id": self.index.images[row.image_index].coco_id,
                "category_id": self.index.categories[row.label].id,
                **(
                    {"bbox": row.box_xywh}
                    if row.mask is None
                    else {"segmentation": {**row.mask, "counts": row.mask["counts"].decode("ascii")}}
                ),
                "score": row.score,
            }
            for row in self._rows()
        ]

    def _rows(self) -> Iterator[_Row]:
        """Every prediction, in the order of the images."""
        for image_index, predictions in sorted(self._predictions.items()):
            for label, box, score, mask in zip(
                predictions.labels.tolist(),
                _xywh(predictions.boxes_xyxy).tolist(),
                predictions.scores.tolist(),
                predictions.masks or [None] * len(predictions.labels),
                strict=True,
            ):
                yield _Row(image_index, label, box, score, mask)


def encode_masks(masks: NDArray[np.bool_]) -> list[Any]:
    """Encodes masks (K, H, W) bool as COCO's compressed RLE: {size: [height, width], counts: bytes} each."""
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def _xywh(boxes_xyxy: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N, 4) corners → (N, 4) x, y, width and height in float64, whatever the precision of the corners."""
    corners = boxes_xyxy.astype(np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _areas(masks: Sequence[Any]) -> NDArray[np.float64]:
    from pycocotools import mask as coco_mask

    return np.array([coco_mask.area(mask) for mask in masks], np.float64)


def _ids_in_order(index: DetectionIndex) -> list[int]:
    """An id for each image, from 0, in the order of the dataset's ids if those are numbers.

    pycocotools visits images in the order of their ids, which decides between detections with equal scores. For a
    COCO file the metrics must be those that its own ids give.
    """
    dataset_ids = [image.coco_id for image in index.images]
    if not all(isinstance(image_id, int) for image_id in dataset_ids):
        return list(range(len(dataset_ids)))
    rank = np.argsort(np.argsort(np.array(dataset_ids, dtype=np.int64), kind="stable"))
    return [int(image_id) for image_id in rank]


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the entries with ground truth (pycocotools sets the others to -1); NaN if there are none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan
