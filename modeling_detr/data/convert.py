"""Convert a dataset to another format, with its splits and images, and verify the result.

The new dataset is written to a hidden folder, read back and compared with the source, and only then renamed to its
target. An interruption leaves no target behind.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_detr.atomic_output import new_folder
from modeling_detr.data.dataset_format import WrittenDataset
from modeling_detr.data.formats import FORMATS, writable_formats
from modeling_detr.data.image_copies import file_names_of
from modeling_detr.data.open import open_dataset
from modeling_detr.errors_detr import DatasetError, did_you_mean
from modeling_detr.structures_detr import DetectionIndex


TOLERANCE = 0.01  # pixels by which a box may change


@dataclass(frozen=True)
class Conversion:
    """A summary of what was written.

    Attributes:
        images: Number of images.
        boxes: Number of boxes, including crowd regions.
        largest_difference: Largest difference between source and written coordinates, in pixels.
        notes: What the format cannot represent, one sentence each.
    """

    images: int
    boxes: int
    largest_difference: float
    notes: tuple[str, ...]


def convert_dataset(index: DetectionIndex, target: str | Path, to: str, *, link: bool = False) -> Conversion:
    """Write `index` to the folder `target`, which must not exist yet.

    Args:
        index: The dataset.
        target: The new folder.
        to: The target format: a key of `FORMATS` that can be written.
        link: Hard-link the image files instead of copying them, where the file system allows it.

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
    with new_folder(target) as folder:
        written = write(index, folder, link)
        difference = _compare(written, open_dataset(folder, format=to), to)
    boxes = len(written.index.annotations)
    return Conversion(len(index), boxes, difference, tuple(written.notes))


# Reading back


def _compare(written: WrittenDataset, read: DetectionIndex, to: str) -> float:
    """Compare all boxes and return the largest difference of a coordinate, in pixels.

    Raises:
        DatasetError: Images, classes or boxes differ, which is a bug in this package.
    """
    index = written.readable or written.index
    names = file_names_of(index.splits)
    expected_splits = {names[split]: members for split, members in index.splits.items()}
    common = [name for name in read.splits if name in expected_splits] if written.keeps_splits else []
    pairs = [
        (_sorted_boxes(index, expected_splits[name]), _sorted_boxes(read, read.splits[name])) for name in common
    ] or [(_sorted_boxes(index, np.arange(len(index))), _sorted_boxes(read, np.arange(len(read))))]
    largest = 0.0
    for expected, got in pairs:
        if [name for name, _ in expected] != [name for name, _ in got]:
            raise DatasetError(
                f"{index.name} as {to}",
                f"boxes or classes differ after writing: got {len(got)} boxes, expected {len(expected)}",
                "please report this as a bug",
            )
        if expected:
            difference = np.abs(np.array([box for _, box in expected]) - np.array([box for _, box in got])).max()
            largest = max(largest, float(difference))
    if largest > TOLERANCE:
        raise DatasetError(
            f"{index.name} as {to}", f"boxes moved by up to {largest:.3g} pixels", "please report this as a bug"
        )
    return largest


def _sorted_boxes(index: DetectionIndex, images: NDArray[np.int64]) -> list[tuple[str, list[float]]]:
    """Class and corners of every box of these images, in an order that does not depend on the format."""
    table = index.annotations
    rows = np.flatnonzero(np.isin(table.image_index, images))
    return sorted(
        (index.categories[label].name.strip(), [round(number, 6) for number in box])
        for label, box in zip(table.label[rows].tolist(), table.boxes_xyxy[rows].tolist(), strict=True)
    )
