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
from modeling_detr.visualization.labels import Label, around_point


_MIN_NAMED_FRACTION = 0.002  # of the image; smaller segments are tinted but not named


def draw_segments(canvas: Canvas, prediction: Mapping[str, object]) -> None:
    """Draws the segments of a prediction; does nothing if it has `boxes`: its masks show the same.

    Args:
        canvas: The canvas to draw on.
        prediction: A `PanopticResult` at the image's size; pixels outside all segments are left untouched.
            Segments with `is_match` False in `segments_info` are striped.

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
    canvas.tint(
        segments, colours, {info["id"] for info in panoptic["segments_info"] if not info.get("is_match", True)}
    )
    step = max(1, min(segments.shape) // 120)  # a coarse grid is much faster, and as good for a label
    grid = segments[step // 2 :: step, step // 2 :: step]
    labels: list[tuple[float, Label]] = []
    for info in panoptic["segments_info"]:
        inside = grid == info["id"]
        if (fraction := inside.mean()) < _MIN_NAMED_FRACTION:
            continue
        x, y = ((position * step + step / 2) * canvas.scale for position in _innermost_point(inside))
        name = canvas.name_of(info["label_id"])
        labels.append((fraction, Label(name, info.get("score"), colours[info["id"]], around_point(x, y))))
    labels.sort(key=lambda item: -item[0])  # the largest first
    canvas.write([label for _, label in labels], np.zeros((0, 4)))


def _innermost_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """x and y of the point of a mask (H, W) that is farthest from its edge."""
    from scipy.ndimage import distance_transform_edt

    distances = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(distances.argmax()), mask.shape)
    return int(column), int(row)
