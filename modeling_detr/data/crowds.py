"""Crowd regions: count them, and read them as objects on request.

Evaluation ignores what a model finds in a crowd region, and training leaves it out. Some tools mark every object as a
crowd because its mask is run-length encoded, or has a hole; a model would then learn that there is nothing to find.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings, counted
from modeling_detr.structures_detr import DetectionIndex


_USUAL_SHARE = 0.1  # of a dataset's objects that are crowd regions; in COCO, one in a hundred
ONLY_CROWDS = "only crowd regions"  # the kind of finding
CROWDS_REMEDY = "if they are ordinary objects, as masks exported as RLE often are, read them as such"


def settle_crowds(index: DetectionIndex, crowds: str | None, place: str | Path, findings: Findings) -> DetectionIndex:
    """Read crowd regions as the user asks, and report a dataset in which they can hardly be meant.

    Args:
        index: The dataset.
        crowds: `as_objects`: they become objects; `as_crowds`: they remain what they are, unreported; None: they
            remain, but it is an error if the dataset has nothing else.
        place: The dataset, for messages.
        findings: Reports them.
    """
    table = index.annotations
    count = int(table.is_crowd.sum())
    if not count or crowds == "as_crowds":
        return index
    regions = counted(count, "crowd region")
    if crowds == "as_objects":
        are = "is read as an object" if count == 1 else "are read as objects"
        note = f"{regions} {are}, as requested by crowds."
        return replace(
            index, annotations=replace(table, is_crowd=np.zeros_like(table.is_crowd)), notes=(*index.notes, note)
        )
    settings = {"crowds": "as_objects"}
    if count == len(table):
        message = f"no object to learn or to find: every annotation ({count:,}) is marked as a crowd region (iscrowd)"
        findings.error(ONLY_CROWDS, place, message, CROWDS_REMEDY, settings)
        return index
    parts = _parts_of_crowds(index)
    if count >= _USUAL_SHARE * len(table):
        parts.insert(0, (str(place), f"{regions} among {counted(len(table), 'annotation')}"))
    if parts:
        where, message = parts[0]
        findings.warn(
            "crowd regions",
            f"{where}: {message}; crowd regions (iscrowd) are not trained on; to read them as objects, set crowds to "
            f"as_objects.",
            f"crowd regions (iscrowd) are not trained on; {CROWDS_REMEDY}",
            parts,
            settings,
        )
    return replace(index, notes=tuple(findings.notes))


def _parts_of_crowds(index: DetectionIndex) -> list[tuple[object, str]]:
    """List the splits and classes of which all annotations are crowd regions."""
    table = index.annotations
    objects = np.bincount(table.label[~table.is_crowd], minlength=len(index.categories))
    crowds = np.bincount(table.label[table.is_crowd], minlength=len(index.categories))
    parts: list[tuple[object, str]] = []
    for name, members in index.splits.items():
        inside = _flags(members, len(index))[table.image_index]
        if inside.any() and table.is_crowd[inside].all():
            parts.append((f"split '{name}'", f"{_all(int(inside.sum()))} crowd regions"))
    parts += [
        (f"class '{index.categories[label].name}'", f"{_all(int(crowds[label]))} crowd regions")
        for label in np.flatnonzero((objects == 0) & (crowds > 0)).tolist()
    ]
    return parts


def _all(count: int) -> str:
    return f"all {counted(count, 'annotation')} are"


def _flags(members: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    flags = np.zeros(length, np.bool_)
    flags[members] = True
    return flags
