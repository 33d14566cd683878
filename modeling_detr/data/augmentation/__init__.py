"""The augmentation policies, one file each. To add one, write a `GeometryPolicy` and add a line to `POLICIES`.

A plug-in adds its own: `POLICIES["mine"] = MyPolicy`. The policy's class method `sizes_for` chooses its sizes.
"""

from modeling_detr.data.augmentation.light import LightPolicy
from modeling_detr.data.augmentation.none import ResizePolicy
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.data.augmentation.policy import GeometryPolicy
from modeling_detr.data.augmentation.strong import StrongPolicy


POLICIES: dict[str, type[GeometryPolicy]] = {
    "original": OriginalPolicy,
    "light": LightPolicy,
    "strong": StrongPolicy,
    "none": ResizePolicy,
}
