"""Notes on what a written format cannot represent."""

import re

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import DetectionIndex


_NOT_IN_XML = re.compile(r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]")
_NOTICED = 0.01  # pixels by which boxes move


def refuse_shared_names(index: DetectionIndex, to: str) -> None:
    """Raise a DatasetError if two classes share a name, for formats that match classes by name."""
    names = [category.name for category in index.categories]
    shared = next((name for name in names if names.count(name) > 1), None)
    if shared is not None:
        raise DatasetError(index.name, f"two classes are named '{shared}', which {to} cannot tell apart", "rename one")


def refuse_names_outside_xml(index: DetectionIndex, to: str) -> None:
    """Raise a DatasetError if a class has no name, or one with characters that XML cannot contain."""
    if not all(category.name.strip() for category in index.categories):
        raise DatasetError(index.name, f"a class has no name, which {to} needs", "name the class")
    unwritable = [category.name for category in index.categories if _NOT_IN_XML.search(category.name)]
    if unwritable:
        problem = f"class '{unwritable[0]}' has control characters, which the XML of {to} cannot contain"
        raise DatasetError(index.name, problem, "rename the class")


def note_moved_boxes(index: DetectionIndex, boxes: NDArray[np.float64], to: str) -> list[str]:
    """Return a note if boxes are now `boxes` (A, 4), those around the shapes that are written in place of them."""
    moved = np.abs(boxes - index.annotations.boxes_xyxy).max(initial=0.0)
    if moved <= _NOTICED:
        return []
    return [
        f"{to} has no boxes beside polygons and masks: boxes become those around them, which differ by up to "
        f"{moved:.2g} pixels; written without masks, they stay as they are."
    ]


def note_several_splits(index: DetectionIndex, to: str) -> list[str]:
    """Return a note if images are in several splits, for formats in which they are in one."""
    splits = np.zeros(len(index), np.int64)
    for members in index.splits.values():
        splits[members] += 1
    count = int((splits > 1).sum())
    return [f"{counted(count, 'image')} in several splits, written in the smallest: {to} has one."] if count else []


def warn_of_stuff(index: DetectionIndex) -> list[str]:
    """Return a note if there are boxes of stuff: no format that can be written separates stuff from things."""
    stuff = {label for label, category in enumerate(index.categories) if not category.is_thing}
    boxes = int(np.isin(index.annotations.label, [*stuff]).sum())
    if not boxes:
        return []
    names = ", ".join(index.categories[label].name for label in sorted(stuff))
    return [f"{counted(boxes, 'box', 'boxes')} of stuff ({names}) written as things."]
