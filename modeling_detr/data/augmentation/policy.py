"""The base class of augmentation policies, which plan the geometry of a sample before its image is read.

A plan says whether to flip, what to crop, and the size of the output. It depends only on the size of the image and on
random numbers. The batch sampler therefore knows all sizes of an epoch before any image is read, and an image is
resized once, in uint8. (The original resizes twice, with a crop in between. Here, a crop of the resized image is
mapped back to whole pixels of the source, and boxes are computed from that crop.)
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from modeling_detr.data.augmentation.geometry import GeometryPlan, apply_plan
from modeling_detr.data.augmentation.photometric import Photometry
from modeling_detr.structures_detr import DetectionSample


SampleTransform = Callable[[DetectionSample], DetectionSample]

SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # the original's shortest edges on COCO
LONGEST_EDGE = 1333


class GeometryPolicy(ABC):
    """A transform that plans the geometry of a sample and then applies it. A policy defines `plan` and `sizes_for`.

    Attributes:
        min_visibility: A crop drops boxes of which less than this share of the area is visible; 0: only boxes that are
            not visible at all.
    """

    min_visibility: float = 0.0

    @abstractmethod
    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:
        """Draw the geometry of an image of `height` and `width` with random numbers from `generator`."""

    @classmethod
    def sizes_for(cls, shortest_edge: int, longest_edge: int) -> dict[str, Any]:  # noqa: ARG003
        """The arguments of this policy for the processor's image size; empty: the policy's defaults.

        Args:
            shortest_edge: Upper limit for the shorter side of the output, in pixels.
            longest_edge: Upper limit for the longer side of the output, in pixels.
        """
        return {}

    def draw_photometry(self, generator: random.Random) -> Photometry | None:  # noqa: ARG002
        """Draw the change of brightness and colour of an image; None: no change."""
        return None

    def __call__(self, sample: DetectionSample, generator: random.Random | None = None) -> DetectionSample:
        """Draw a plan (with the global `random` if `generator` is None) and apply it."""
        height, width = sample["image"].shape[-2:]
        generator = generator or random.Random(random.getrandbits(64))
        sample = self.apply(sample, self.plan(height, width, generator))
        photometry = self.draw_photometry(generator)
        return sample if photometry is None else photometry.apply(sample)

    def apply(self, sample: DetectionSample, plan: GeometryPlan) -> DetectionSample:
        """Apply a plan that was made for an image of this size."""
        return apply_plan(sample, plan, self.min_visibility)


def check_pixels(name: str, value: object) -> None:
    """Raise a ValueError unless `value` is a number of pixels or a list of them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError(f"{name}: got an empty list, expected at least one number of pixels.")
    for pixels in values:
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
            raise ValueError(f"{name}: got {pixels!r}, expected a number of pixels, at least 1.")


def check_share(name: str, value: float) -> None:
    """Raise a ValueError unless `value` is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value!r}, expected a number from 0 to 1.")
