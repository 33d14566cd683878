"""Photometric jitter: random brightness, contrast, saturation and hue, which leave boxes and masks as they are."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from torchvision.transforms.v2 import functional

from modeling_detr.structures_detr import DetectionSample


class Photometry(NamedTuple):
    """Factors of brightness, contrast and saturation (1: unchanged), and the shift of the hue in turns (0: none)."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def apply(self, sample: DetectionSample) -> DetectionSample:
        """Change the image of a sample, uint8, and nothing else."""
        image = sample["image"]
        if self.brightness != 1:
            image = functional.adjust_brightness(image, self.brightness)
        if self.contrast != 1:
            image = functional.adjust_contrast(image, self.contrast)
        if self.saturation != 1:
            image = functional.adjust_saturation(image, self.saturation)
        if self.hue != 0:
            image = functional.adjust_hue(image, self.hue)
        return {**sample, "image": image}


@dataclass(frozen=True, kw_only=True)
class PhotometricJitter:
    """The options of a policy that jitters brightness and colour; 0 leaves a property unchanged.

    The ranges are those of torchvision's `ColorJitter`: a factor is drawn from 1 - x to 1 + x, a shift of the hue from
    -x to x turns of the colour circle.

    Attributes:
        brightness: Range of the factor of the brightness, from 0 to 1.
        contrast: Range of the factor of the contrast, from 0 to 1.
        saturation: Range of the factor of the saturation, from 0 to 1.
        hue: Range of the shift of the hue, from 0 to 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def check_jitter(self) -> None:
        """Raise a ValueError if a range is impossible."""
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"{name}: got {value!r}, expected a number from 0 to {most}.")

    def draw_photometry(self, generator: random.Random) -> Photometry | None:
        """Draw the change of an image; None: no change."""
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return None
        return Photometry(
            brightness=generator.uniform(1 - self.brightness, 1 + self.brightness),
            contrast=generator.uniform(1 - self.contrast, 1 + self.contrast),
            saturation=generator.uniform(1 - self.saturation, 1 + self.saturation),
            hue=generator.uniform(-self.hue, self.hue),
        )
