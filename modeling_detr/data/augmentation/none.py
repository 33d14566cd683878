"""The policy `none`: resize only, as in evaluation."""

import random
from dataclasses import dataclass
from typing import Any

from modeling_detr.data.augmentation.geometry import GeometryPlan
from modeling_detr.data.augmentation.photometric import PhotometricJitter
from modeling_detr.data.augmentation.policy import LONGEST_EDGE, GeometryPolicy, check_pixels
from modeling_detr.image_processing_detr import resize_output_size


@dataclass(frozen=True)
class ResizePolicy(PhotometricJitter, GeometryPolicy):
    """Resize only: the policy `none`, and the transform for evaluation.

    Attributes:
        shortest_edge: Shorter side of the output in pixels, unless the longer side would exceed `longest_edge`.
        longest_edge: Upper limit for the longer side of the output, in pixels; None: no limit.
    """

    shortest_edge: int = 800
    longest_edge: int | None = LONGEST_EDGE

    def __post_init__(self) -> None:
        check_pixels("shortest_edge", self.shortest_edge)
        if self.longest_edge is not None:
            check_pixels("longest_edge", self.longest_edge)
        self.check_jitter()

    @classmethod
    def sizes_for(cls, shortest_edge: int, longest_edge: int) -> dict[str, Any]:
        """Both sizes, unchanged."""
        return {"shortest_edge": shortest_edge, "longest_edge": longest_edge}

    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:  # noqa: ARG002
        """Return the output size; nothing is random."""
        return GeometryPlan(*resize_output_size(height, width, self.shortest_edge, self.longest_edge))
