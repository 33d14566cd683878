"""Checks of predictions, shared by the evaluators."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from modeling_detr.errors_detr import PredictionError
from modeling_detr.structures_detr import DetectionIndex


Result = TypeVar("Result")


def pair_with_images(
    index: DetectionIndex, image_indices: Sequence[int], results: Sequence[Result]
) -> Iterator[tuple[int, Result]]:
    """Pairs each image index with its result.

    Raises:
        PredictionError: `image_indices` and `results` differ in length, or `index` has no such image.
    """
    if len(image_indices) != len(results):
        problem = f"got {len(image_indices)} image indices for {len(results)} results, expected one per result"
        raise PredictionError(index.name, problem)
    for image_index, result in zip(map(int, image_indices), results, strict=True):
        if not 0 <= image_index < len(index):
            raise PredictionError(index.name, f"image index {image_index} is out of range for {len(index)} images")
        yield image_index, result


def check_label_range(labels: NDArray[np.integer[Any]], num_classes: int, where: str) -> None:
    """Checks that labels (K,) are between 0 and `num_classes` - 1.

    Raises:
        PredictionError: A label is out of range; the message starts with `where`.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise PredictionError(
            where,
            f"labels range from {labels.min()} to {labels.max()}, but the dataset has {num_classes} classes "
            f"(0-{num_classes - 1})",
        )
