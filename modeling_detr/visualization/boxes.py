"""Boxes: a rectangle for each object, with the name of its class and its score.

Shapes: K objects of one image.
"""

from collections.abc import Mapping
from typing import cast

import torch
from PIL import ImageDraw
from torch import Tensor

from modeling_detr.structures_detr import DetectionResult
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import class_colour


def draw_boxes(canvas: Canvas, prediction: Mapping[str, object]) -> None:
    """Draws the boxes of a prediction; does nothing if it has no `boxes`.

    Args:
        canvas: The canvas to draw on.
        prediction: With `boxes` (K, 4) xyxy in image pixels, `labels` (K,), and optionally `scores` (K,).

    Raises:
        ValueError: There are no `labels`, or `boxes`, `labels` and `scores` differ in length.
    """
    if "boxes" not in prediction:
        return
    order = drawing_order(prediction)
    boxes, labels = cast(DetectionResult, prediction)["boxes"], cast(DetectionResult, prediction)["labels"]
    scores = cast(Tensor | None, prediction.get("scores"))
    draw, line_width = ImageDraw.Draw(canvas.picture), canvas.line_width
    for index in order:
        label = int(labels[index])
        x0, y0, x1, y1 = (float(corner) * canvas.scale for corner in boxes[index])
        colour = class_colour(label)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=line_width)
        canvas.write(canvas.caption(label, None if scores is None else float(scores[index])), (x0, y0), colour)


def drawing_order(prediction: Mapping[str, object]) -> list[int]:
    """The indices of a prediction's objects in ascending order of score, so that the highest score is drawn on top.

    Raises:
        ValueError: There are no `labels`, or `boxes`, `labels` and `scores` differ in length.
    """
    if "labels" not in prediction:
        raise ValueError(f"prediction: got the keys {sorted(prediction)}, expected 'labels' among them.")
    lengths = {
        name: len(cast(Tensor, prediction[name]))
        for name in ("boxes", "labels", "scores")
        if prediction.get(name) is not None
    }
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"prediction: got {got}, expected one of each per object.")
    if "scores" in lengths:
        order: list[int] = torch.as_tensor(prediction["scores"]).argsort().tolist()
        return order
    return list(range(lengths["labels"]))
