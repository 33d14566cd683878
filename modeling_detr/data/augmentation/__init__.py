"""The policies of augmentation, one file each. A new one is a file with a `GeometryPolicy`, and a line in `POLICIES`.

A plug-in adds its own: `POLICIES["mine"] = MyPolicy`. Its class method `sizes_for` chooses its sizes.
"""

from modeling_detr.data.augmentation.light import LightPolicy
from modeling_detr.data.augmentation.none import ResizePolicy
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.data.augmentation.policy import GeometryPolicy


POLICIES: dict[str, type[GeometryPolicy]] = {
    "original": OriginalPolicy,
    "light": LightPolicy,
    "none": ResizePolicy,
}
