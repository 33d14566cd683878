"""Boxes: a rectangle for each object, with the name of its class and its score.

Shapes: K objects of one image.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from modeling_detr.structures_detr import DetectionResult
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import Colour, class_colour
from modeling_detr.visualization.labels import Label, around_box


def draw_boxes(canvas: Canvas, prediction: Mapping[str, object], colours: Sequence[Colour] | None = None) -> None:
    """Draws the boxes of a prediction; does nothing if it has no `boxes`.

    Args:
        canvas: The canvas to draw on.
        prediction: With `boxes` (K, 4) xyxy in image pixels, `labels` (K,), and optionally `scores` (K,),
            `is_match` (K,) bool, and `notes`, K texts to write behind the names. The lines of objects that are no
            match are dashed.
        colours: The colour of each object. None: that of its class.

    Raises:
        ValueError: There are no `labels`, or `boxes`, `labels`, `scores` and `colours` differ in length.
    """
    if "boxes" not in prediction:
        return
    order = drawing_order(prediction)
    if colours is not None and len(colours) != len(order):
        raise ValueError(f"colours: got {len(colours)}, expected {len(order)}, one for each object.")
    detection = cast(DetectionResult, prediction)
    boxes = torch.as_tensor(detection["boxes"]).reshape(-1, 4).double().cpu().numpy() * canvas.scale
    scores = cast(Tensor | None, prediction.get("scores"))
    is_match = cast(Tensor | None, prediction.get("is_match"))
    notes = cast(Sequence[str] | None, prediction.get("notes"))
    line_width, labels = canvas.line_width(len(boxes)), []
    for index in order:
        label = int(detection["labels"][index])
        x0, y0, x1, y1 = boxes[index].tolist()
        colour = class_colour(label) if colours is None else colours[index]
        dashed = is_match is not None and not is_match[index]
        canvas.draw_box((x0, y0, x1, y1), colour, line_width, dashed)
        score = None if scores is None else float(scores[index])
        name = " ".join(filter(None, [canvas.name_of(label), "" if notes is None else notes[index]]))
        labels.append(Label(name, score, colour, around_box((x0, y0, x1, y1))))
    canvas.write(labels[::-1], boxes)


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
        order: list[int] = torch.as_tensor(prediction["scores"]).argsort(stable=True).tolist()
        return order
    return list(range(lengths["labels"]))
