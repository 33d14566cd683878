"""Notes on what a written format cannot represent."""

import numpy as np

from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import DetectionIndex


def refuse_shared_names(index: DetectionIndex, to: str) -> None:
    """Raise a DatasetError if two classes share a name, for formats that match classes by name."""
    names = [category.name for category in index.categories]
    shared = next((name for name in names if names.count(name) > 1), None)
    if shared is not None:
        raise DatasetError(index.name, f"two classes are named '{shared}', which {to} cannot tell apart", "rename one")


def warn_of_stuff(index: DetectionIndex) -> list[str]:
    """Return a note if there are boxes of stuff: no format that can be written separates stuff from things."""
    stuff = {label for label, category in enumerate(index.categories) if not category.is_thing}
    boxes = int(np.isin(index.annotations.label, [*stuff]).sum())
    if not boxes:
        return []
    names = ", ".join(index.categories[label].name for label in sorted(stuff))
    return [f"{counted(boxes, 'box', 'boxes')} of stuff ({names}) written as things."]
