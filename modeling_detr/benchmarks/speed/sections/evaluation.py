"""COCO's metrics of given predictions."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_detr.benchmarks.speed.agreement import Outputs, check_agreement
from modeling_detr.benchmarks.speed.generated_images import coco_sizes, draw_boxes
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, TIME, Measurement
from modeling_detr.benchmarks.speed.original_checkout import OriginalCheckout
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, DetectionResult, ImageRecord


JUDGE = "pycocotools"
NUM_CLASSES = 80
NUM_DETECTIONS = 100
_OBJECTS = 7
_CROWD_SHARE = 0.01
_FIELDS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
_TOLERANCE = 1e-9
NOTES = (
    "All twelve figures must be equal. Measured from predictions as tensors to the figures; the dataset is loaded "
    "before.",
    "Transformers has no COCO evaluation; pycocotools is what the original and Transformers' examples use.",
)


def measure(settings: SpeedSettings, num_images: int | None = None) -> Iterator[Measurement]:
    """Measures the evaluation of 100 predictions for each image."""
    count = num_images or (100 if settings.quick else 1500)
    rng = np.random.default_rng(0)
    index = _index(count, rng)
    predictions = [_predict(index, number, rng) for number in range(count)]
    dataset = _coco_dataset(index)
    works: dict[str, Callable[[], Outputs]] = {
        OURS: lambda: _ours(index, predictions),
        JUDGE: lambda: _pycocotools(dataset, predictions),
    }
    if settings.original is not None:
        checkout = settings.original
        works[ORIGINAL] = lambda: _original(checkout, dataset, predictions)
    work = f"{count:,} images x {NUM_DETECTIONS} predictions, {NUM_CLASSES} classes"
    differences = check_agreement(work, {name: item() for name, item in works.items()}, _TOLERANCE)
    yield Measurement(work, TIME, settings.time_on_host(works, warm_up=False), differences)


def _ours(index: DetectionIndex, predictions: Sequence[DetectionResult]) -> Outputs:
    evaluator = CocoEvaluator(index)
    evaluator.update(range(len(predictions)), predictions)
    metrics = evaluator.compute()
    return _figures([getattr(metrics, field) for field in _FIELDS])


def _pycocotools(dataset: Any, predictions: Sequence[DetectionResult]) -> Outputs:
    from pycocotools.cocoeval import COCOeval

    rows = []
    for image, result in enumerate(predictions):
        boxes = result["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(result["scores"].tolist(), result["labels"].tolist(), boxes.tolist(), strict=True)
        rows += [
            {"image_id": image, "category_id": label, "bbox": box, "score": score} for score, label, box in columns
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(dataset, dataset.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _figures(evaluation.stats)


def _original(checkout: OriginalCheckout, dataset: Any, predictions: Sequence[DetectionResult]) -> Outputs:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = checkout.coco_eval.CocoEvaluator(dataset, ["bbox"])
        for start in range(0, len(predictions), 2):  # its batch size
            evaluator.update({start + number: dict(row) for number, row in enumerate(predictions[start : start + 2])})
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    return _figures(evaluator.coco_eval["bbox"].stats)


def _figures(values: Sequence[float]) -> Outputs:
    return {field: float(value) for field, value in zip(_FIELDS, values, strict=True)}


def _index(count: int, rng: np.random.Generator) -> DetectionIndex:
    """Images without files, with objects, a few of which are crowds."""
    sizes = coco_sizes(count, rng)
    numbers = rng.poisson(_OBJECTS, count)
    boxes = [draw_boxes(number, *size, rng) for number, size in zip(numbers.tolist(), sizes, strict=True)]
    boxes_xyxy = np.concatenate(boxes)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    table = AnnotationTable(
        image_index=np.repeat(np.arange(count), numbers),
        label=rng.integers(0, NUM_CLASSES, len(boxes_xyxy)),
        boxes_xyxy=boxes_xyxy,
        area=0.7 * sides.prod(1),  # an object covers a part of its box
        is_crowd=rng.random(len(boxes_xyxy)) < _CROWD_SHARE,
    )
    images = tuple(ImageRecord(number, f"{number}.jpg", *size) for number, size in enumerate(sizes))
    categories = tuple(Category(label, f"class {label}") for label in range(NUM_CLASSES))
    return DetectionIndex("generated", images, categories, table)


def _predict(index: DetectionIndex, image: int, rng: np.random.Generator) -> DetectionResult:
    """Predictions of an image: most of its objects, moved a little, and boxes anywhere."""
    rows, record = index.annotation_rows(image), index.images[image]
    objects = index.annotations.boxes_xyxy[rows][:NUM_DETECTIONS]
    sides = np.tile(objects[:, 2:] - objects[:, :2], 2)
    moved = objects + rng.normal(0, 0.06, objects.shape) * sides
    others = draw_boxes(NUM_DETECTIONS - len(objects), record.height, record.width, rng)
    labels = np.concatenate(
        [index.annotations.label[rows][:NUM_DETECTIONS], rng.integers(0, NUM_CLASSES, len(others))]
    )
    scores: NDArray[np.float64] = np.concatenate([rng.beta(4, 2, len(objects)), rng.beta(1, 6, len(others))])
    boxes = torch.from_numpy(np.concatenate([moved, others])).float()
    return {"scores": torch.from_numpy(scores).float(), "labels": torch.from_numpy(labels), "boxes": boxes}


def _coco_dataset(index: DetectionIndex) -> Any:
    """The dataset as pycocotools holds it in memory."""
    from pycocotools.coco import COCO

    table = index.annotations
    sizes = np.concatenate([table.boxes_xyxy[:, :2], table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]], 1)
    columns = zip(table.image_index, table.label, sizes, table.area, table.is_crowd, strict=True)
    dataset = COCO()
    dataset.dataset = {
        "info": {},
        "images": [{"id": image.id, "height": image.height, "width": image.width} for image in index.images],
        "categories": [{"id": category.id, "name": category.name} for category in index.categories],
        "annotations": [
            {
                "id": number,
                "image_id": int(image),
                "category_id": int(label),
                "bbox": box.tolist(),
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for number, (image, label, box, area, crowd) in enumerate(columns, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset
