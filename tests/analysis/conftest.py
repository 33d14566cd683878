from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from evidence_cases import NAMES, evidence_on, index_of
from PIL import Image

from modeling_detr.analysis.evidence import Evidence


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
