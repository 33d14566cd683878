"""How many labels that were spoilt on purpose are found among the suspected ones.

Shapes: A annotations.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from modeling_detr.analysis.suspected_labels import SuspectedLabel
from modeling_detr.structures_detr import DetectionIndex


Spoiling = Literal["dropped", "moved", "renamed"]

_SHIFT = (0.4, 0.8)  # of the box's sides: the IoU with where it was is at most .43
_FOUND_IOU = 0.5
LENGTHS = (1, 2, 5)  # of the list, in multiples of the number of spoilt labels


class SpoiltLabel(NamedTuple):
    """A label that was spoilt.

    spoiling: how. image_index: its image. annotation: its row in the spoilt dataset; -1: it was dropped. box_xyxy:
    where the object really is.
    """

    spoiling: Spoiling
    image_index: int
    annotation: int
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class SpoiltDataset:
    """A dataset with wrong labels, and what is wrong with it."""

    index: DetectionIndex
    spoilt: Sequence[SpoiltLabel]


def spoil(index: DetectionIndex, share: float, seed: int = 0) -> SpoiltDataset:
    """Drops, moves and renames labels, each a share of all that are not crowd regions; masks stay as they are.

    With a single class, none are renamed.

    Args:
        index: The dataset.
        share: The share of each kind, from 0 to 1/3.
        seed: Seed of the choice.
    """
    generator, table = np.random.default_rng(seed), index.annotations
    rows = generator.permutation(np.flatnonzero(~table.is_crowd))
    count = math.ceil(share * len(rows))
    kinds: list[Spoiling] = [kind for kind in get_args(Spoiling) if kind != "renamed" or len(index.categories) > 1]
    chosen = {kind: rows[number * count : (number + 1) * count] for number, kind in enumerate(kinds)}
    labels, boxes = table.label.copy(), table.boxes_xyxy.copy()
    for row in chosen["moved"]:
        boxes[row] = _moved(table.boxes_xyxy[row], index, int(table.image_index[row]), generator)
    for row in chosen.get("renamed", ()):
        labels[row] = (labels[row] + generator.integers(1, len(index.categories))) % len(index.categories)
    keep = np.setdiff1d(np.arange(len(table)), chosen["dropped"])
    new_row = np.full(len(table), -1, np.int64)
    new_row[keep] = np.arange(len(keep))
    spoilt = [
        SpoiltLabel(kind, int(table.image_index[row]), int(new_row[row]), _as_tuple(table.boxes_xyxy[row]))
        for kind, of_kind in chosen.items()
        for row in of_kind
    ]
    changed = dataclasses.replace(table, label=labels, boxes_xyxy=boxes).take(keep)
    return SpoiltDataset(dataclasses.replace(index, annotations=changed), spoilt)


def _moved(
    box: NDArray[np.float64], index: DetectionIndex, image_index: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """A box shifted along one side, towards where there is more room in its image."""
    axis = int(generator.integers(2))
    length = float(index.images[image_index].width if axis == 0 else index.images[image_index].height)
    side = box[axis + 2] - box[axis]
    shift = generator.uniform(*_SHIFT) * side
    towards_end = length - box[axis + 2] > box[axis]
    moved = box.copy()
    moved[[axis, axis + 2]] += shift if towards_end else -shift
    moved[[axis, axis + 2]] = moved[[axis, axis + 2]].clip(0, length)
    return moved if moved[axis + 2] > moved[axis] else box


def found_shares(spoilt: Sequence[SpoiltLabel], suspected: Sequence[SuspectedLabel]) -> dict[int, Mapping[str, float]]:
    """The share of the spoilt labels that are among the first of the suspected ones.

    Args:
        spoilt: What is wrong.
        suspected: The suspected labels, the most certain first.

    Returns:
        Length of the list in multiples of the number of spoilt labels → kind of spoiling, or "all" → share.
    """
    shares: dict[int, Mapping[str, float]] = {}
    for multiple in LENGTHS:
        first = suspected[: multiple * len(spoilt)]
        is_found = {one: any(_finds(suspect, one) for suspect in first) for one in spoilt}
        by_kind = {
            kind: [found for one, found in is_found.items() if one.spoiling == kind] for kind in get_args(Spoiling)
        }
        by_kind["all"] = [*is_found.values()]
        shares[multiple] = {kind: sum(found) / len(found) for kind, found in by_kind.items() if found}
    return shares


def _finds(suspect: SuspectedLabel, spoilt: SpoiltLabel) -> bool:
    """Whether somebody who looks at a suspected label sees the spoilt one."""
    if suspect.image_index != spoilt.image_index:
        return False
    if spoilt.annotation >= 0 and suspect.annotation == spoilt.annotation:
        return True
    return suspect.annotation < 0 and _iou(suspect.box_xyxy, spoilt.box_xyxy) >= _FOUND_IOU


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / max(sum(areas) - shared, 1e-12)


def _as_tuple(box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1
