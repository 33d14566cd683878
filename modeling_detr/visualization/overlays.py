"""Predictions drawn on images: each overlay in `OVERLAYS`, in order, draws its part of a prediction.

To draw something new, write a function that takes a canvas and a prediction, and add it to the table:

    def draw_centres(canvas, prediction):
        ...

    OVERLAYS["centres"] = draw_centres
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from modeling_detr.image_processing_detr import RawImage
from modeling_detr.structures_detr import PanopticResult
from modeling_detr.visualization.boxes import draw_boxes
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.gallery import tile
from modeling_detr.visualization.masks import draw_masks
from modeling_detr.visualization.matches import match
from modeling_detr.visualization.segments import draw_segments


Overlay = Callable[[Canvas, Mapping[str, object]], None]
"""Draws one part of a prediction, or nothing if the prediction does not have that part."""

OVERLAYS: dict[str, Overlay] = {
    "segments": draw_segments,
    "masks": draw_masks,
    "boxes": draw_boxes,
}
"""Name → overlay, in drawing order: later overlays are drawn on top."""


def draw_prediction(
    image: RawImage,
    prediction: Mapping[str, object],
    id2label: Mapping[int, str] | None = None,
    *,
    overlays: Sequence[str] | None = None,
    shortest_side: int = 480,
    longest_side: int | None = None,
) -> Image.Image:
    """Draws a prediction, or the ground truth, on its image.

    Args:
        image: Any image, see `to_rgb`.
        prediction: A `DetectionResult`, `InstanceResult` or `PanopticResult`, in pixels of `image`. Ground truth is a
            dict with `boxes` (K, 4) xyxy, `labels` (K,) and optionally `masks` (K, H, W), without `scores`.
        id2label: Names of the classes; a class without a name is written as its label.
        overlays: Which of `OVERLAYS` to draw. None: all.
        shortest_side: A smaller image is enlarged to this, to make text legible.
        longest_side: A larger image is reduced to this. None: large images keep their size.

    Returns:
        An RGB picture, by default as large as the image or larger.

    Raises:
        ValueError: The parts of the prediction do not fit together, or do not fit the image.
    """
    canvas = Canvas.of(image, id2label, shortest_side, longest_side)
    for name in OVERLAYS if overlays is None else overlays:
        OVERLAYS[name](canvas, prediction)
    return canvas.picture


def draw_comparison(
    image: RawImage,
    predicted: Mapping[str, object],
    truth: Mapping[str, object],
    id2label: Mapping[int, str] | None = None,
    *,
    threshold: float = 0.5,
    shortest_side: int = 480,
    longest_side: int | None = None,
) -> Image.Image:
    """Draws the image twice, side by side: with the prediction and with the ground truth.

    Hits have solid lines; false predictions and missed true objects have dashed lines, or striped segments.

    Args:
        image: Any image, see `to_rgb`.
        predicted: See `draw_prediction`.
        truth: See `draw_prediction`. Optionally with `is_crowd` (K,) bool, or `is_crowd` in the `segments_info`: such
            regions cannot be missed, and predictions in them are not false.
        id2label: Names of the classes.
        threshold: Predicted objects with a lower score are not drawn; panoptic segments are all drawn.
        shortest_side: See `draw_prediction`.
        longest_side: See `draw_prediction`; of each half.

    Returns:
        An RGB picture with a title above each half.
    """
    parts, titles = (_above_threshold(predicted, threshold), truth), ("predicted", "truth")
    matches = match(*parts)
    if matches is not None:
        parts = _with_matches(parts[0], matches.predicted), _with_matches(parts[1], matches.truth)
        titles = matches.titles
    halves = [
        draw_prediction(image, part, id2label, shortest_side=shortest_side, longest_side=longest_side)
        for part in parts
    ]
    return tile(halves, columns=2, titles=titles)


def _with_matches(objects: Mapping[str, object], is_match: Tensor) -> Mapping[str, object]:
    """The objects or segments with the information which are matches."""
    if "boxes" in objects:
        return {**objects, "is_match": is_match}
    infos = cast(PanopticResult, objects)["segments_info"]
    return {
        **objects,
        "segments_info": [{**info, "is_match": hit} for info, hit in zip(infos, is_match.tolist(), strict=True)],
    }


def _above_threshold(prediction: Mapping[str, object], threshold: float) -> Mapping[str, object]:
    """The objects of a prediction with a score of at least `threshold`; all objects if it has no `scores`."""
    if "scores" not in prediction:
        return prediction
    keep = torch.as_tensor(prediction["scores"]) >= threshold
    return {  # all tensors have one row per object, except the segmentation map
        name: value[keep] if isinstance(value, torch.Tensor) and name != "segmentation" else value
        for name, value in prediction.items()
    }
