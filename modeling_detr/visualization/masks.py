"""Masks: the pixels of each object, tinted in the colour of its class.

Shapes: K objects of one image · H, W pixels of the image.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
from torch import Tensor

from modeling_detr.structures_detr import DetectionResult
from modeling_detr.visualization.boxes import drawing_order
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import class_colour


def draw_masks(canvas: Canvas, prediction: Mapping[str, object]) -> None:
    """Draws the masks of a prediction that has `masks`, the highest score on top.

    Args:
        canvas: It is drawn on.
        prediction: With `masks` (K, H, W) bool, `labels` (K,), and optionally `scores` (K,).

    Raises:
        ValueError: There is not one mask of the image's size per object.
    """
    masks = cast(Tensor | None, prediction.get("masks"))
    if masks is None:
        return
    order = drawing_order(prediction)
    labels = cast(DetectionResult, prediction)["labels"]
    expected = (len(labels), *canvas.image_size)
    if masks.shape != expected:
        raise ValueError(
            f"masks: got shape {tuple(masks.shape)}, expected {expected}, one per object at the image's size."
        )
    segments = np.full(canvas.image_size, -1, np.int64)
    for index in order:
        segments[masks[index].cpu().numpy().astype(bool)] = index
    canvas.tint(segments, {index: class_colour(int(label)) for index, label in enumerate(labels)})
