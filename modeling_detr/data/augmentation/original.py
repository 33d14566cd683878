"""The policy `original`: the augmentation of the original DETR."""

import random
from dataclasses import dataclass
from typing import Any

from modeling_detr.data.augmentation.geometry import Crop, GeometryPlan
from modeling_detr.data.augmentation.photometric import PhotometricJitter
from modeling_detr.data.augmentation.policy import (
    LONGEST_EDGE,
    SCALES,
    GeometryPolicy,
    check_pixels,
    check_share,
)
from modeling_detr.image_processing_detr import resize_output_size


CROP_SCALES = (400, 500, 600)
CROP_MIN, CROP_MAX = 384, 600


@dataclass(frozen=True)
class OriginalPolicy(PhotometricJitter, GeometryPolicy):
    """The original's training policy: flip; then either resize, or resize, crop and resize again.

    Paper: sec. 4. Original: datasets/coco.py, `make_coco_transforms`. Sizes are drawn in the same way. Differs from
    the original: the crop is taken from whole pixels of the source and resized once, which is several times faster.

    Attributes:
        scales: Shortest edges of the output in pixels, one of which is drawn.
        longest_edge: Upper limit for the longer side of the output, in pixels.
        crop_scales: Shortest edges before a crop in pixels, one of which is drawn.
        crop_min: Smallest height and width of a crop, in pixels.
        crop_max: Largest height and width of a crop, in pixels.
        crop_probability: Share of the images that are cropped.
        flip_probability: Share of the images that are mirrored.
        min_visibility: A crop drops boxes of which less than this share of the area is visible.
    """

    scales: tuple[int, ...] = SCALES
    longest_edge: int = LONGEST_EDGE
    crop_scales: tuple[int, ...] = CROP_SCALES
    crop_min: int = CROP_MIN
    crop_max: int = CROP_MAX
    crop_probability: float = 0.5
    flip_probability: float = 0.5
    min_visibility: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.crop_scales, int):
            object.__setattr__(self, "crop_scales", (self.crop_scales,))
        for name in ("scales", "longest_edge", "crop_scales", "crop_min", "crop_max"):
            check_pixels(name, getattr(self, name))
        for name in ("crop_probability", "flip_probability", "min_visibility"):
            check_share(name, getattr(self, name))
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min: got {self.crop_min}, expected at most crop_max ({self.crop_max}).")
        self.check_jitter()

    @classmethod
    def sizes_for(cls, shortest_edge: int, longest_edge: int) -> dict[str, Any]:
        """All sizes, in the proportions that the original uses for COCO."""
        factor = shortest_edge / max(SCALES)
        return {
            "scales": tuple(round(scale * shortest_edge / max(SCALES)) for scale in SCALES),
            "longest_edge": longest_edge,
            "crop_scales": tuple(round(scale * factor) for scale in CROP_SCALES),
            "crop_min": round(CROP_MIN * factor),
            "crop_max": round(CROP_MAX * factor),
        }

    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:
        """Draw flip, crop and output size."""
        flip = generator.random() < self.flip_probability
        if generator.random() >= self.crop_probability:
            return GeometryPlan(*self._output_size(height, width, generator), flip)
        resized_height, resized_width = resize_output_size(height, width, generator.choice(self.crop_scales))
        crop_width, left = self._draw_span(resized_width, generator)
        crop_height, top = self._draw_span(resized_height, generator)
        top, source_height = _to_source(top, crop_height, resized_height, height)
        left, source_width = _to_source(left, crop_width, resized_width, width)
        output = self._output_size(crop_height, crop_width, generator)
        return GeometryPlan(*output, flip, Crop(top, left, source_height, source_width))

    def _output_size(self, height: int, width: int, generator: random.Random) -> tuple[int, int]:
        return resize_output_size(height, width, generator.choice(self.scales), self.longest_edge)

    def _draw_span(self, side: int, generator: random.Random) -> tuple[int, int]:
        """Draw length and start of a crop along a side; a side shorter than `crop_min` is kept whole."""
        length = generator.randint(min(self.crop_min, side), min(self.crop_max, side))
        return length, generator.randint(0, side - length)


def _to_source(start: int, length: int, resized: int, source: int) -> tuple[int, int]:
    """Convert a span of the resized side to whole pixels of the source, at least one: `(start, length)`."""
    first = min(round(start * source / resized), source - 1)
    return first, max(1, round((start + length) * source / resized) - first)
