"""Masks: the pixels of each object, tinted in the colour of its class.

Shapes: K objects of one image · H, W pixels of the image.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from modeling_detr.structures_detr import DetectionResult
from modeling_detr.visualization.boxes import drawing_order
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import class_colour


def draw_masks(canvas: Canvas, prediction: Mapping[str, object]) -> None:
    """Draws the masks of a prediction, the highest score on top; does nothing if it has no `masks`.

    Args:
        canvas: The canvas to draw on.
        prediction: With `masks` (K, H, W) bool, `labels` (K,), and optionally `scores` (K,) and
            `is_match` (K,) bool; objects that are no match are striped.

    Raises:
        ValueError: `masks` does not have one mask of the image's size per object.
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
    is_match = cast(Tensor | None, prediction.get("is_match"))
    striped = [] if is_match is None else torch.nonzero(~is_match).flatten().tolist()
    canvas.tint(segments, {index: class_colour(int(label)) for index, label in enumerate(labels)}, striped)
