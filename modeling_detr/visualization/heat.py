"""A map of numbers as heat over an image."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from modeling_detr.image_processing_detr import RawImage
from modeling_detr.visualization.boxes import draw_boxes
from modeling_detr.visualization.canvas import Canvas


_GREY_LIGHTNESS = 0.6  # of the image under the heat, so that the brightest colours are those of the heat


def draw_heat(
    image: RawImage,
    heat: Tensor,
    prediction: Mapping[str, object] | None = None,
    id2label: Mapping[int, str] | None = None,
    points: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """Draws a map over an image in grey: from the image, where it is 0, to bright yellow at its maximum.

    Args:
        image: Any image, see `to_rgb`.
        heat: (H, W), for each pixel; negative numbers count as 0.
        prediction: Boxes to draw on top, see `draw_boxes`.
        id2label: Names of the classes.
        points: x and y in image pixels of points to mark.

    Raises:
        ValueError: The map's size is not that of the image.
    """
    canvas = Canvas.of(image, id2label)
    if tuple(heat.shape) != canvas.image_size:
        raise ValueError(f"heat: got shape {tuple(heat.shape)}, expected that of the image, {canvas.image_size}.")
    canvas.picture = _blend(canvas.picture, heat)
    if prediction is not None:
        draw_boxes(canvas, prediction)
    draw, width = ImageDraw.Draw(canvas.picture), canvas.line_width()
    for point in points:
        x, y = (coordinate * canvas.scale for coordinate in point)
        for radius, colour in ((3 * width, "black"), (2 * width, "white")):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return canvas.picture


def _blend(picture: Image.Image, heat: Tensor) -> Image.Image:
    import matplotlib as mpl

    strength = torch.nan_to_num(heat.detach().float().cpu()).clamp(min=0).numpy()
    strength = strength / max(float(strength.max()), np.finfo(np.float32).tiny)
    opacity = np.asarray(Image.fromarray(strength).resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    colours = mpl.colormaps["inferno"](opacity[..., 0])[..., :3]
    grey = np.asarray(picture.convert("L"))[..., None] / 255 * _GREY_LIGHTNESS
    mixed = grey * (1 - opacity) + colours * opacity
    return Image.fromarray((255 * mixed).round().astype(np.uint8))
