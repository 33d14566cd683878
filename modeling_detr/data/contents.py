"""What a dataset holds besides images, classes and boxes, and what of it a format can hold: for conversions.

Each writable format declares in its `DatasetFormat` which of `CONTENTS` it can hold, and `count_contents` counts those
of a dataset. What a dataset has and the format cannot hold is taken out before writing, and reported.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modeling_detr.structures_detr import AnnotationTable, DetectionIndex


FLAGS = ("difficult", "truncated", "occluded")  # attributes that are 1 or 0
SCORE = "score"

CONTENTS: dict[str, tuple[str, str]] = {  # one, several
    "masks": ("mask", "masks"),
    "crowds": ("crowd region", "crowd regions"),
    "difficult": ("object marked as difficult", "objects marked as difficult"),
    "truncated": ("object marked as truncated", "objects marked as truncated"),
    "occluded": ("object marked as occluded", "objects marked as occluded"),
    "score": ("score", "scores"),
    "areas": ("area that differs from its box's", "areas that differ from their boxes'"),
    "image_ids": ("image id", "image ids"),
}


def count_contents(index: DetectionIndex) -> dict[str, int]:
    """Count what a dataset has of `CONTENTS`, in their order; without what it does not have."""
    counts = {name: count(index) for name, count in _COUNTERS.items()}
    return {name: counts[name] for name in CONTENTS if counts[name]}


def without_contents(index: DetectionIndex, names: Iterable[str]) -> DetectionIndex:
    """Take contents out of a dataset. Without crowd regions, their boxes go too: they would pass as objects."""
    table = index.annotations
    for name in names:
        if name == "masks":
            table = replace(table, masks=None)
        elif name == "crowds":
            table = table.take(~table.is_crowd)
        elif name == "areas":
            table = replace(table, area=_box_areas(table))
        elif name in table.attributes:
            table = replace(table, attributes={key: values for key, values in table.attributes.items() if key != name})
    return replace(index, annotations=table)


def _box_areas(table: AnnotationTable) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]).prod(-1)
    return areas


def _count_masks(index: DetectionIndex) -> int:
    return 0 if index.annotations.masks is None else int(index.annotations.masks.is_present.sum())


def _count_areas(index: DetectionIndex) -> int:
    areas = _box_areas(index.annotations)
    return int((np.abs(index.annotations.area - areas) > np.maximum(1e-3 * areas, 1e-3)).sum())


def _count_attribute(name: str) -> Callable[[DetectionIndex], int]:
    def count(index: DetectionIndex) -> int:
        values = index.annotations.attributes.get(name, np.zeros(0))
        return int((~np.isnan(values) if name == SCORE else values > 0).sum())

    return count


_COUNTERS: dict[str, Callable[[DetectionIndex], int]] = {
    "masks": _count_masks,
    "crowds": lambda index: int(index.annotations.is_crowd.sum()),
    **{name: _count_attribute(name) for name in (*FLAGS, SCORE)},
    "areas": _count_areas,
    "image_ids": lambda index: sum(isinstance(record.id, int) for record in index.images),
}
