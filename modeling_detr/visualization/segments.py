"""Panoptic segments, tinted and named: stuff in the colour of its class, things in shades of it.

Shapes: H, W pixels of the image.
"""

from collections import Counter
from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from modeling_detr.structures_detr import PanopticResult
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import Colour, instance_colour


_MIN_NAMED_FRACTION = 0.002  # of the image; smaller segments are tinted but not named


def draw_segments(canvas: Canvas, prediction: Mapping[str, object]) -> None:
    """Draws the segments of a prediction; does nothing if it has `boxes`: its masks show the same.

    Args:
        canvas: The canvas to draw on.
        prediction: A `PanopticResult` at the image's size; pixels outside all segments are left untouched.

    Raises:
        ValueError: `segmentation` does not have the image's size.
    """
    if "segmentation" not in prediction or "boxes" in prediction:
        return
    panoptic = cast(PanopticResult, prediction)
    segments = panoptic["segmentation"].cpu().numpy().astype(np.int64)
    if segments.shape != canvas.image_size:
        raise ValueError(f"segmentation: got shape {segments.shape}, expected {canvas.image_size}, the image's size.")
    colours: dict[int, Colour] = {}
    num_drawn: Counter[int] = Counter()
    for info in panoptic["segments_info"]:
        colours[info["id"]] = instance_colour(info["label_id"], num_drawn[info["label_id"]])
        num_drawn[info["label_id"]] += 1
    canvas.tint(segments, colours)
    for info in panoptic["segments_info"]:
        inside = segments == info["id"]
        if inside.mean() < _MIN_NAMED_FRACTION:
            continue
        x, y = _innermost_pixel(inside)
        text = canvas.caption(info["label_id"], info.get("score"))
        width, height = canvas.text_size(text)
        corner = x * canvas.scale - width / 2, y * canvas.scale + height / 2
        canvas.write(text, corner, colours[info["id"]])


def _innermost_pixel(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """x and y of the pixel of a mask (H, W) that is farthest from its edge, within a few pixels."""
    from scipy.ndimage import distance_transform_edt

    step = max(1, min(mask.shape) // 120)  # a smaller mask is much faster
    small = np.pad(mask[step // 2 :: step, step // 2 :: step], 1)
    if not small.any():
        row, column = np.argwhere(mask)[0]
        return float(column), float(row)
    row, column = np.unravel_index(int(distance_transform_edt(small).argmax()), small.shape)
    return float((column - 1) * step + step // 2), float((row - 1) * step + step // 2)
