"""Convert a dataset to another format, with its splits and images, and verify the result.

What the format can hold is written: masks, crowd regions, marks such as `difficult`, scores. The rest is reported. The
new dataset is written to a hidden folder, read back and compared with the source, and only then renamed to its target.
An interruption leaves no target behind.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.atomic_output import new_folder
from modeling_detr.data.contents import CONTENTS, count_contents, without_contents
from modeling_detr.data.dataset_format import CROWDS_OPTION, WrittenDataset
from modeling_detr.data.findings import counted
from modeling_detr.data.formats import FORMATS, writable_formats
from modeling_detr.data.image_copies import file_names_of
from modeling_detr.data.masks import read_one_by_one
from modeling_detr.data.open import open_dataset
from modeling_detr.errors_detr import DatasetError, did_you_mean
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex


TOLERANCE = 0.01  # pixels by which a box may change
_VALUE_TOLERANCE = 1e-5  # of a score
_COMPARED_IMAGES = 1000  # whose masks are decoded


@dataclass(frozen=True)
class Conversion:
    """A summary of what was written.

    Attributes:
        images: Number of images.
        boxes: Number of boxes, including crowd regions.
        largest_difference: Largest difference between source and written coordinates, in pixels.
        notes: What the format cannot represent, one sentence each.
        contents: What was written besides, with counts; see `contents.CONTENTS`.
        smallest_overlap: Smallest intersection over union of a mask and what was read back, in up to 1,000 images;
            None: there are no masks.
    """

    images: int
    boxes: int
    largest_difference: float
    notes: tuple[str, ...]
    contents: Mapping[str, int] = field(default_factory=dict)
    smallest_overlap: float | None = None


def convert_dataset(
    index: DetectionIndex, target: str | Path, to: str, *, link: bool = False, without: Sequence[str] = ()
) -> Conversion:
    """Write `index` to the folder `target`, which must not exist yet.

    Args:
        index: The dataset; opened for the task `conversion`, it has all that can be written.
        target: The new folder.
        to: The target format: a key of `FORMATS` that can be written.
        link: Hard-link the image files instead of copying them, where the file system allows it.
        without: What is not to be written, of `contents.CONTENTS`.

    Raises:
        OutputExistsError: `target` exists.
        OutputError: `target` cannot be written.
        DatasetError: The format cannot be written or cannot represent the dataset, or an image does not have the
            size in its annotations.
        OSError: An image cannot be read.
    """
    write = FORMATS[to].write if to in FORMATS else None
    if write is None:
        raise DatasetError("to", f"got '{to}', which cannot be written", did_you_mean(to, writable_formats()))
    for name in without:
        if name not in CONTENTS:
            raise DatasetError("without", f"got '{name}'", did_you_mean(name, CONTENTS))
    counts = count_contents(index)
    carried = FORMATS[to].carries.difference(without)
    lost = {name: count for name, count in counts.items() if name not in carried}
    index = without_contents(index, lost if "masks" in counts else [*lost, "masks"])
    with new_folder(target) as folder:
        written = write(index, folder, link)
        reading: dict[str, Any] = {"crowds": "as_crowds"} if CROWDS_OPTION in FORMATS[to].options else {}
        read = open_dataset(folder, format=to, task="conversion", **reading)
        difference, overlap = _compare(written, read, folder, to)
    table = written.index.annotations
    contents = count_contents(written.index)
    return Conversion(
        len(index), len(table), difference, (*_notes(lost, without, to), *written.notes), contents, overlap
    )


def _notes(lost: Mapping[str, int], without: Sequence[str], to: str) -> list[str]:
    """Say what is not written, and why."""
    asked = {name: count for name, count in lost.items() if name in without}
    others = {name: count for name, count in lost.items() if name not in without}
    notes = [f"{_listed(asked)} not written, as requested by without."] if asked else []
    if others:
        notes.append(f"{_listed(others)} not written: {to} holds {FORMATS[to].holds}.")
    if "crowds" in lost:
        notes.append(
            "Crowd regions are left out with their boxes, because a model would be trained on them as objects."
        )
    return notes


def _listed(counts: Mapping[str, int]) -> str:
    *first, last = (counted(count, *CONTENTS[name]) for name, count in counts.items())
    return f"{', '.join(first)} and {last} are" if first else f"{last} {'is' if sum(counts.values()) == 1 else 'are'}"


# Reading back


def _compare(written: WrittenDataset, read: DetectionIndex, folder: Path, to: str) -> tuple[float, float | None]:
    """Compare everything that was written; return the largest difference of a coordinate and the smallest overlap.

    Raises:
        DatasetError: Something differs, which is a bug in this package.
    """
    index, counterpart = written.index, _counterparts(written, read, folder, to)
    expected = index.annotations.take(np.isin(index.annotations.image_index, counterpart))
    got = read.annotations.take(np.argsort(counterpart[read.annotations.image_index], kind="stable"))
    if not np.array_equal(counterpart[got.image_index], expected.image_index):
        raise _bug(index, to, f"boxes differ: got {len(got)}, expected {len(expected)}")
    names_read, names_written = (
        np.array([" ".join(category.name.split()) for category in categories], dtype=object)
        for categories in (read.categories, index.categories)
    )
    if not np.array_equal(names_read[got.label], names_written[expected.label]):
        raise _bug(index, to, "classes differ")
    if not np.array_equal(got.is_crowd, expected.is_crowd):
        raise _bug(index, to, "crowd regions differ")
    for name, values in expected.attributes.items():
        values_read = got.attributes.get(name, np.zeros(len(got)))
        if np.abs(np.nan_to_num(values_read) - np.nan_to_num(values)).max(initial=0.0) > _VALUE_TOLERANCE:
            raise _bug(index, to, f"'{name}' differs")
    largest = float(np.abs(got.boxes_xyxy - expected.boxes_xyxy).max(initial=0.0))
    if largest > TOLERANCE:
        raise _bug(index, to, f"boxes moved by up to {largest:.3g} pixels")
    if expected.masks is None:
        return largest, None
    overlap = _smallest_overlap(index, expected, got)
    if written.exact_masks and overlap < 1:
        raise _bug(index, to, f"masks differ, with an overlap of {overlap:.3f}")
    return largest, overlap


def _counterparts(written: WrittenDataset, read: DetectionIndex, folder: Path, to: str) -> NDArray[np.int64]:
    """The index of each image that was read back among those written, after comparing them and their splits."""
    index = written.index
    if written.rows is not None:
        if {name: len(images) for name, images in written.rows.items()} != {
            name: len(members) for name, members in read.splits.items()
        }:
            raise _bug(index, to, "splits differ")
        return np.concatenate([written.rows[name] for name in read.splits])
    image_of = {file: image for image, file in enumerate(written.files) if file is not None}
    found = [image_of.get(os.path.relpath(record.path, folder), -1) for record in read.images]
    if sorted(found) != sorted(image_of.values()):
        raise _bug(index, to, f"images differ: got {len(found)}, expected {len(image_of)}")
    counterpart = np.array(found, dtype=np.int64)
    names = file_names_of(index.splits)
    for split, members in index.splits.items() if written.keeps_splits else ():
        members_read = read.splits.get(names[split])
        if members_read is not None and not np.array_equal(np.sort(counterpart[members_read]), members):
            raise _bug(index, to, f"the images of the split '{split}' differ")
    return counterpart


def _smallest_overlap(index: DetectionIndex, expected: AnnotationTable, got: AnnotationTable) -> float:
    """The smallest intersection over union of masks, in a sample of images."""
    smallest = 1.0
    images = np.unique(expected.image_index)
    for image in images[:: -(-len(images) // _COMPARED_IMAGES)].tolist():
        start, stop = np.searchsorted(expected.image_index, [image, image + 1])
        if expected.masks is None or got.masks is None:
            return 0.0
        rows = start + np.flatnonzero(expected.masks[start:stop].is_present)
        size = index.images[image].height, index.images[image].width
        pairs = zip(read_one_by_one(expected.masks[rows], *size), read_one_by_one(got.masks[rows], *size), strict=True)
        for mask, other in pairs:
            union = int(np.count_nonzero(mask | other))
            if mask.any():  # an empty one cannot be written
                smallest = min(smallest, int(np.count_nonzero(mask & other)) / union)
    return smallest


def _bug(index: DetectionIndex, to: str, problem: str) -> DatasetError:
    return DatasetError(f"{index.name} as {to}", f"{problem} after writing", "please report this as a bug")
