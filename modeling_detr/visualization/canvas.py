"""The canvas that overlays draw on: the picture, its scale, and the drawing operations that overlays share.

Shapes: H, W pixels of the image; the picture may be larger or smaller. K objects.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from modeling_detr.image_processing_detr import RawImage, to_rgb
from modeling_detr.visualization.colours import Colour, ink
from modeling_detr.visualization.labels import Label, free_place
from modeling_detr.visualization.text import drawable, fitted, font_for, legible


_LONGEST_ENLARGED_SIDE = 4000  # a long, narrow image is not enlarged beyond it
_TINT = 0.5


@dataclass
class Canvas:
    """A picture of an image, enlarged if the image is small.

    Attributes:
        picture: An RGB picture. Overlays draw on it, or replace it by one of the same size.
        image_size: (height, width) of the image.
        scale: Picture pixels per image pixel.
        id2label: Names of the classes.
        taken: xyxy of the labels written so far.
    """

    picture: Image.Image
    image_size: tuple[int, int]
    scale: float
    id2label: Mapping[int, str]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        image: RawImage,
        id2label: Mapping[int, str] | None = None,
        shortest_side: int = 480,
        longest_side: int | None = None,
    ) -> "Canvas":
        """The canvas of an image.

        Args:
            image: Any image, see `to_rgb`.
            id2label: Names of the classes; a class without a name is written as its label.
            shortest_side: A smaller image is enlarged to this, to make text legible.
            longest_side: A larger image is reduced to this. None: large images keep their size.
        """
        pixels = to_rgb(image).permute(1, 2, 0).contiguous().cpu().numpy()
        picture = Image.fromarray(pixels)
        longest = longest_side or max(_LONGEST_ENLARGED_SIDE, *picture.size)
        scale = min(max(1.0, shortest_side / min(picture.size)), longest / max(picture.size))
        if scale != 1:
            size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
        return cls(picture, (pixels.shape[0], pixels.shape[1]), scale, id2label or {})

    def line_width(self, num_objects: int = 1) -> int:
        """The width of lines in picture pixels: thinner in small pictures and among many objects."""
        return max(2, round(self._side / 180 * _reduction(num_objects)))

    def text_size(self, num_objects: int = 1) -> int:
        """The size of text in picture pixels: smaller in small pictures and among many objects."""
        return max(10, round(self._side / 40 * _reduction(num_objects)))

    @property
    def _side(self) -> float:
        """The side of a square as large as the picture."""
        return math.sqrt(self.picture.width * self.picture.height)

    def name_of(self, label: int) -> str:
        """The name of a class as one short line; its label if it has no name, or one that no font can show."""
        if label not in self.id2label:
            return str(label)
        return legible(drawable(self.id2label[label], limit=40), otherwise=f"class {label}")

    def draw_box(self, box: tuple[float, float, float, float], colour: Colour, width: int, dashed: bool) -> None:
        """Draws a rectangle with a black or white outer edge, so that it stands out from any ground.

        Args:
            box: xyxy in picture pixels.
            colour: Colour of the lines.
            width: Width of the lines.
            dashed: Whether the lines have gaps in the colour of the edge.
        """
        draw = ImageDraw.Draw(self.picture)
        edge, half = max(1, width // 4), width // 2
        beyond = [side + 2 * width for side in self.picture.size]  # the same as farther away, and quicker
        (x0, x1), (y0, y1) = (
            sorted(round(min(max(corner, -2 * width), end)) for corner in corners)
            for corners, end in zip((box[::2], box[1::2]), beyond, strict=True)
        )
        x0, y0, x1, y1 = x0 - half, y0 - half, x1 + half, y1 + half
        draw.rectangle((x0 - edge, y0 - edge, x1 + edge, y1 + edge), outline=ink(colour), width=width + edge)
        if not dashed:
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
            return
        length, inner = 3 * width + 2, width - 1
        for x in range(x0, x1 + 1, 2 * length):
            for y in (y0, y1 - inner):
                draw.rectangle((x, y, min(x + length, x1), y + inner), fill=colour)
        for y in range(y0, y1 + 1, 2 * length):
            for x in (x0, x1 - inner):
                draw.rectangle((x, y, x + inner, min(y + length, y1)), fill=colour)

    def write(self, labels: Sequence[Label], objects: NDArray[np.float64]) -> None:
        """Writes labels where they overlap no other: without their score, or not at all, if there is no room.

        Args:
            labels: The most important first.
            objects: (K, 4) xyxy of the objects in picture pixels; small ones are preferably not hidden.
        """
        size = self.text_size(len(labels))
        for label in labels:
            for score in dict.fromkeys((label.score, None)):
                if self._write(label, "" if score is None else f"{score:.2f}", size, objects):
                    break

    def _write(self, label: Label, score: str, size: int, objects: NDArray[np.float64]) -> bool:
        """Writes a label with the name in bold and the score in regular type if there is room for it."""
        bold, regular = font_for(label.name, size, bold=True), font_for(score, size)
        margin = max(2, size // 5)
        name = fitted(label.name, bold, self.picture.width / 2)
        name_width = bold.getlength(name)
        score_width = regular.getlength(score) + size // 3 if score else 0
        width, height = math.ceil(name_width + score_width) + 2 * margin, math.ceil(1.3 * size)
        taken = np.array(self.taken, np.float64).reshape(-1, 4)
        places = label.places(width, height)
        place = free_place(places, (width, height), self.picture.size, taken, objects)
        if place is None:
            return False
        (x, y), draw, colour = place, ImageDraw.Draw(self.picture), ink(label.colour)
        self.taken.append((x - 1, y - 1, x + width + 1, y + height + 1))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=label.colour)
        baseline = y + size
        draw.text((x + margin, baseline), name, fill=colour, font=bold, anchor="ls")
        if score:
            start = x + width - margin - regular.getlength(score)
            draw.text((start, baseline), score, fill=colour, font=regular, anchor="ls")
        return True

    def tint(self, segments: NDArray[np.int64], colours: Mapping[int, Colour], striped: Collection[int] = ()) -> None:
        """Tints each segment with its colour, and outlines it.

        Args:
            segments: (H, W) segment id of each image pixel; pixels of ids without a colour are left untouched.
            colours: The colour of each id.
            striped: Ids that are tinted in stripes.
        """
        if not colours:
            return
        ids = np.array(sorted(colours))
        position = np.searchsorted(ids, segments).clip(max=len(ids) - 1)
        numbers = np.where(ids[position] == segments, position + 1, 0).astype(np.int32)  # 0: no segment
        resized = Image.fromarray(numbers).resize(self.picture.size, Image.Resampling.NEAREST)
        numbers = np.asarray(resized)
        table = np.array([(0, 0, 0), *(colours[segment_id] for segment_id in ids.tolist())], np.uint8)
        inks = np.array([(0, 0, 0), *(ink(colours[segment_id]) for segment_id in ids.tolist())], np.uint8)

        width = self.line_width(len(ids))
        opacity = np.where(numbers > 0, round(255 * _TINT), 0).astype(np.uint8)
        if striped:
            rows, columns = np.ogrid[: numbers.shape[0], : numbers.shape[1]]
            is_striped = np.array([False, *(segment_id in striped for segment_id in ids.tolist())])
            opacity[is_striped[numbers] & ((rows + columns) // (4 * width) % 2 == 0)] = 0
        line = _near_edges(numbers, width + max(1, width // 3)) & (numbers > 0)
        opacity[line] = 255
        pixels = table[numbers]
        edge = _near_edges(numbers, max(1, width // 3)) & line
        pixels[edge] = inks[numbers[edge]]
        self.picture.paste(Image.fromarray(pixels), mask=Image.fromarray(opacity))


def _reduction(num_objects: int) -> float:
    """The factor by which lines and text become smaller among many objects: 1 for ten, 0.6 for a hundred."""
    return min(1.0, math.pow(10 / max(1, num_objects), 0.2))


def _near_edges(numbers: NDArray[np.int32], distance: int) -> NDArray[np.bool_]:
    """Whether another segment is at a horizontal or vertical distance from each pixel (H, W)."""
    near = np.zeros(numbers.shape, np.bool_)
    for one, other in (
        (np.s_[distance:], np.s_[:-distance]),
        (np.s_[:, distance:], np.s_[:, :-distance]),
    ):
        differs = numbers[one] != numbers[other]
        near[one] |= differs
        near[other] |= differs
    return near
