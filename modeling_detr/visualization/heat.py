"""Maps of numbers as heat over an image."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from modeling_detr.image_processing_detr import RawImage
from modeling_detr.visualization.boxes import draw_boxes
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import class_colour


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


def draw_heats(
    image: RawImage,
    heats: Tensor,
    prediction: Mapping[str, object] | None = None,
    id2label: Mapping[int, str] | None = None,
) -> Image.Image:
    """Draws one map per object over an image in grey, each in a colour of its own, which its box has too.

    Paper: fig. 6. Opacity grows with the square of a map, so that the weak parts of many maps do not add up to a veil.

    Args:
        image: Any image, see `to_rgb`.
        heats: (K, H, W), for each object and pixel; negative numbers count as 0.
        prediction: The K objects, whose boxes are drawn on top; see `draw_boxes`.
        id2label: Names of the classes.

    Raises:
        ValueError: The maps' size is not that of the image, or their number not that of the objects.
    """
    canvas = Canvas.of(image, id2label)
    height, width = canvas.image_size
    if heats.ndim != 3 or heats.shape[1:] != (height, width):
        raise ValueError(f"heats: got shape {tuple(heats.shape)}, expected (objects, {height}, {width}).")
    colours = [class_colour(index) for index in range(len(heats))]  # the first are the easiest to tell apart
    mixed = _grey(canvas.picture)
    for heat, colour in zip(heats, colours, strict=True):
        opacity = _strength(heat, canvas.picture.size) ** 2
        mixed = mixed * (1 - opacity) + np.array(colour) / 255 * opacity
    canvas.picture = _picture(mixed)
    if prediction is not None:
        draw_boxes(canvas, prediction, colours)
    return canvas.picture


def _blend(picture: Image.Image, heat: Tensor) -> Image.Image:
    import matplotlib as mpl

    opacity = _strength(heat, picture.size)
    colours = mpl.colormaps["inferno"](opacity[..., 0])[..., :3]
    return _picture(_grey(picture) * (1 - opacity) + colours * opacity)


def _strength(heat: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map relative to its maximum, (height, width, 1) in [0, 1], at a size (width, height)."""
    strength = torch.nan_to_num(heat.detach().float().cpu()).clamp(min=0).numpy()
    strength = strength / max(float(strength.max()), np.finfo(np.float32).tiny)
    return np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BILINEAR))[..., None]


def _grey(picture: Image.Image) -> NDArray[np.float64]:
    """(height, width, 1) in [0, 1]."""
    return np.asarray(picture.convert("L"))[..., None] / 255 * _GREY_LIGHTNESS


def _picture(colours: NDArray[np.floating]) -> Image.Image:
    """(height, width, 3) in [0, 1] → a picture."""
    return Image.fromarray((255 * colours).round().astype(np.uint8))
