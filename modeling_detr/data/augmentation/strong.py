"""The policy `strong`: strong augmentation for very few images."""

from dataclasses import dataclass

from modeling_detr.data.augmentation.light import LightPolicy


@dataclass(frozen=True)
class StrongPolicy(LightPolicy):
    """For very few images: as `light`, with more and smaller crops, and with changes of brightness and colour.

    Only the defaults differ; see `LightPolicy` for the geometry and `PhotometricJitter` for brightness and colour.
    """

    least_share: float = 0.4
    crop_probability: float = 0.75
    stretch: float = 0.1
    min_visibility: float = 0.25
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.5
    hue: float = 0.02
