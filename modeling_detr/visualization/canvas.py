"""The canvas that overlays draw on: the picture, its scale, and the drawing operations that overlays share.

Shapes: H, W pixels of the image; the picture is at least as large.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from modeling_detr.image_processing_detr import RawImage, to_rgb
from modeling_detr.visualization.colours import Colour
from modeling_detr.visualization.text import Font, drawable, font_for


_TEXT_MARGIN = 3


@dataclass
class Canvas:
    """A picture of an image, enlarged if the image is small.

    Attributes:
        picture: An RGB picture. Overlays draw on it, or replace it by one of the same size.
        image_size: (height, width) of the image.
        scale: Picture pixels per image pixel.
        id2label: Names of the classes.
    """

    picture: Image.Image
    image_size: tuple[int, int]
    scale: float
    id2label: Mapping[int, str]

    @classmethod
    def of(cls, image: RawImage, id2label: Mapping[int, str] | None = None, shortest_side: int = 480) -> "Canvas":
        """The canvas of an image.

        Args:
            image: Any image, see `to_rgb`.
            id2label: Names of the classes; a class without a name is written as its label.
            shortest_side: A smaller image is enlarged to this, to make text legible.
        """
        pixels = to_rgb(image).permute(1, 2, 0).cpu().numpy()
        picture = Image.fromarray(pixels)
        scale = max(1.0, shortest_side / min(picture.size))
        if scale > 1:
            size = round(picture.width * scale), round(picture.height * scale)
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        return cls(picture, (pixels.shape[0], pixels.shape[1]), scale, id2label or {})

    @property
    def line_width(self) -> int:
        """The width of a box's lines in picture pixels."""
        return max(2, round(min(self.picture.size) / 200))

    def font_for(self, text: str) -> Font:
        """A font that has the characters of a text, in a size that suits the picture."""
        return font_for(text, max(13, round(min(self.picture.size) / 32)))

    def caption(self, label: int, score: float | None = None) -> str:
        """The name of a class, shortened if it is very long, followed by the score if there is one."""
        name = drawable(self.id2label.get(label, str(label)), limit=40)
        return name if score is None else f"{name} {score:.2f}"

    def text_size(self, text: str) -> tuple[float, float]:
        """(width, height) of a text in picture pixels."""
        left, top, right, bottom = ImageDraw.Draw(self.picture).textbbox((0, 0), text, font=self.font_for(text))
        return right - left, bottom - top

    def write(self, text: str, corner: tuple[float, float], colour: Colour) -> None:
        """Writes text on a filled rectangle above a point, or below it if there is no room above.

        Args:
            text: One line.
            corner: x and y in picture pixels, such as the top left corner of a box.
            colour: Colour of the rectangle; the text is black or white, whichever has more contrast.
        """
        draw, font = ImageDraw.Draw(self.picture), self.font_for(text)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * _TEXT_MARGIN, bottom - top + 2 * _TEXT_MARGIN
        x = min(max(corner[0], 0), max(0, self.picture.width - width))
        y = corner[1] - height
        if y < 0:
            y = min(max(corner[1], 0), max(0, self.picture.height - height))
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        is_bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        text_colour = (0, 0, 0) if is_bright else (255, 255, 255)
        draw.text((x + _TEXT_MARGIN - left, y + _TEXT_MARGIN - top), text, fill=text_colour, font=font)

    def tint(self, segments: NDArray[np.int64], colours: Mapping[int, Colour]) -> None:
        """Tints each segment with its colour, half transparent, and outlines it.

        Args:
            segments: (H, W) segment id of each image pixel; pixels of ids without a colour are left untouched.
            colours: The colour of each id.
        """
        rows = (np.arange(self.picture.height) * segments.shape[0] / self.picture.height).astype(np.int64)
        columns = (np.arange(self.picture.width) * segments.shape[1] / self.picture.width).astype(np.int64)
        segments = segments[rows][:, columns]
        pixels = np.asarray(self.picture).astype(np.float32)
        edges = np.zeros(segments.shape, np.bool_)
        width = max(1, min(self.picture.size) // 300)
        for axis in (0, 1):
            for shift in range(1, width + 1):
                edges |= segments != np.roll(segments, shift, axis)
        edges[:width], edges[:, :width] = False, False  # np.roll wraps around at the border
        for segment_id, colour in colours.items():
            inside = segments == segment_id
            pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(colour, np.float32)
            pixels[inside & edges] = np.array(colour, np.float32) * 0.5
        self.picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
