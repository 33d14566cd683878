"""The policy `light`: mild augmentation for small datasets."""

import random
from dataclasses import dataclass
from typing import Any

from modeling_detr.data.augmentation.geometry import Crop, GeometryPlan
from modeling_detr.data.augmentation.photometric import PhotometricJitter
from modeling_detr.data.augmentation.policy import LONGEST_EDGE, SCALES, GeometryPolicy, check_pixels, check_share
from modeling_detr.image_processing_detr import resize_output_size


@dataclass(frozen=True)
class LightPolicy(PhotometricJitter, GeometryPolicy):
    """For small datasets: flips, and crops that change scale, position and proportions mildly.

    Half of the images are cropped, to at least the share `least_share` of each side. The output has the size that the
    whole image would have, so that images of the same size form batches without padding.

    Attributes:
        scales: Shortest edges of the output in pixels, one of which is drawn.
        longest_edge: Upper limit for the longer side of the output, in pixels.
        least_share: Smallest share of each side that a crop keeps, in (0, 1].
        crop_probability: Share of the images that are cropped.
        flip_probability: Share of the images that are mirrored left to right.
        vertical_flip_probability: Share of the images that are mirrored top to bottom, for images without an up, such
            as those of a microscope or a satellite.
        stretch: Largest change of each side of a crop, as a share of it, which changes its proportions.
        min_visibility: A crop drops boxes of which less than this share of the area is visible.
    """

    scales: tuple[int, ...] = SCALES
    longest_edge: int = LONGEST_EDGE
    least_share: float = 0.7
    crop_probability: float = 0.5
    flip_probability: float = 0.5
    min_visibility: float = 0.0
    vertical_flip_probability: float = 0.0
    stretch: float = 0.05

    def __post_init__(self) -> None:
        for name in ("scales", "longest_edge"):
            check_pixels(name, getattr(self, name))
        for name in ("least_share", "crop_probability", "flip_probability", "min_visibility", "stretch"):
            check_share(name, getattr(self, name))
        check_share("vertical_flip_probability", self.vertical_flip_probability)
        self.check_jitter()

    @classmethod
    def sizes_for(cls, shortest_edge: int, longest_edge: int) -> dict[str, Any]:
        """A single scale: the crops already change the size of objects."""
        return {"scales": (shortest_edge,), "longest_edge": longest_edge}

    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:
        """Draw flip, crop and output size."""
        flip = generator.random() < self.flip_probability
        output = resize_output_size(height, width, generator.choice(self.scales), self.longest_edge)
        part = self._draw_crop(height, width, generator) if generator.random() < self.crop_probability else None
        upside_down = self.vertical_flip_probability > 0 and generator.random() < self.vertical_flip_probability
        return GeometryPlan(*output, flip, part, upside_down)

    def _draw_crop(self, height: int, width: int, generator: random.Random) -> Crop:
        share = generator.uniform(self.least_share, 1.0)
        spans = []
        for side in (height, width):
            stretch = generator.uniform(1 - self.stretch, 1 + self.stretch)
            length = min(side, max(1, round(max(share * stretch, self.least_share) * side)))
            spans.append((generator.randint(0, side - length), length))
        (top, part_height), (left, part_width) = spans
        return Crop(top, left, part_height, part_width)
