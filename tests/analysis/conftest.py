from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture
def hand_made() -> Callable[..., Evidence]:
    """Returns a function that makes `Evidence` of objects and detections."""

    def make(
        objects: Sequence[tuple], detections: Sequence[tuple], num_images: int = 1, names: Sequence[str] = NAMES
    ) -> Evidence:
        return evidence_on(index_of(objects, num_images, names), detections)

    return make


@pytest.fixture
def with_files(tmp_path: Path) -> Callable[..., Evidence]:
    """The same, with image files."""

    def make(
        objects: Sequence[tuple], detections: Sequence[tuple], num_images: int = 1, names: Sequence[str] = NAMES
    ) -> Evidence:
        for number in range(num_images):
            Image.new("RGB", (100, 100), "grey").save(tmp_path / f"{number}.png")
        return evidence_on(index_of(objects, num_images, names, f"{tmp_path}/"), detections)

    return make


@pytest.fixture
def random_evidence() -> Callable[[int], Evidence]:
    """Returns a function that makes detections of all kinds: hits, badly placed ones, duplicates, other classes, …"""

    def make(seed: int) -> Evidence:
        generator = np.random.default_rng(seed)
        objects, detections = [], []
        for image in range(20):
            for _ in range(generator.integers(0, 7)):
                corner, side, label = generator.uniform(0, 60, 2), generator.uniform(8, 40, 2), generator.integers(4)
                box = np.concatenate([corner, corner + side])
                objects.append((image, int(label), box))
                for _ in range(generator.integers(0, 4)):
                    moved = box + generator.normal(0, generator.choice([1, 4, 10]), 4)
                    moved[2:] = np.maximum(moved[2:], moved[:2] + 2)
                    seen = label if generator.random() < 0.7 else generator.integers(4)
                    detections.append((image, int(seen), moved.tolist(), generator.random()))
            for _ in range(generator.integers(0, 3)):
                x, y = generator.uniform(0, 60, 2)
                detections.append((image, int(generator.integers(4)), [x, y, x + 10, y + 20], generator.random()))
        return evidence_on(index_of(objects, 20, ("a", "b", "c", "d")), detections)

    return make
