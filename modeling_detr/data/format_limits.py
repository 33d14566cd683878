"""Notes on what a written format cannot represent."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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


def without_crowds(index: DetectionIndex, to: str) -> tuple[DetectionIndex, list[str]]:
    """Drop crowd regions, for formats of plain boxes; also return notes on what else they cannot represent."""
    table, notes = index.annotations, []
    crowds = int(table.is_crowd.sum())
    if crowds:
        notes.append(f"{to} has no crowd regions: {crowds} left out, because they would be trained on as objects.")
        table = table.take(~table.is_crowd)
    box_area: NDArray[np.float64] = (table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]).prod(-1)
    others = int((np.abs(table.area - box_area) > np.maximum(1e-3 * box_area, 1e-3)).sum())
    if others:
        differ = "area that differs from its box's is" if others == 1 else "areas that differ from their box's are"
        notes.append(f"{to} has no areas: {others} {differ} lost.")
    if any(isinstance(image.id, int) for image in index.images):
        notes.append(f"{to} has no image ids: file names are used instead.")
    if table.masks is not None:
        notes.append("masks are not written.")
    return replace(index, annotations=table), notes
