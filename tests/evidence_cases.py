"""Datasets and detections written by hand, for tests of analyses."""

from collections.abc import Sequence

import numpy as np
import torch

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


NAMES = ("cat", "dog")


def index_of(
    objects: Sequence[tuple], num_images: int, names: Sequence[str] = NAMES, folder: str = ""
) -> DetectionIndex:
    """Objects are (image, label, box[, "crowd"]), in the order of the images; images have 100 x 100 pixels."""
    boxes = np.array([entry[2] for entry in objects], np.float64).reshape(-1, 4)
    return DetectionIndex(
        name="hand-made",
        images=tuple(ImageRecord(number, f"{folder}{number}.png", 100, 100) for number in range(num_images)),
        categories=tuple(Category(10 + label, name) for label, name in enumerate(names)),
        annotations=AnnotationTable(
            image_index=np.array([entry[0] for entry in objects], np.int64),
            label=np.array([entry[1] for entry in objects], np.int64),
            boxes_xyxy=boxes,
            area=(boxes[:, 2:] - boxes[:, :2]).prod(-1),
            is_crowd=np.array([len(entry) > 3 for entry in objects], np.bool_),
        ),
    )


def evidence_on(index: DetectionIndex, detections: Sequence[tuple]) -> Evidence:
    """Detections are (image, label, box, score)."""
    evaluator = CocoEvaluator(index)
    for image in range(len(index)):
        rows = [entry for entry in detections if entry[0] == image]
        result = {
            "scores": torch.tensor([row[3] for row in rows], dtype=torch.float64),
            "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
            "boxes": torch.tensor([row[2] for row in rows], dtype=torch.float64).reshape(-1, 4),
        }
        evaluator.update([image], [result])
    return Evidence(evaluator)
