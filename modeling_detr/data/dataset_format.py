"""The definition of a dataset format: how it is recognised, read and written.

Each format is one file in `formats/` that defines a `DatasetFormat`. The table `formats.FORMATS` lists them all;
plug-ins may add their own. A format whose images are not files (entries of an archive, rows of a table) sets
`ImageRecord.reader` for each of them, and gets their size from `image_headers.header_size(path, reader)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from modeling_detr.structures_detr import DetectionIndex, Task


Purpose = (
    Task | Literal["conversion"]
)  # what a dataset is read for; conversion: boxes, and masks where objects have them


@dataclass(frozen=True)
class ReadingOption:
    """An option for reading datasets of some formats.

    Attributes:
        name: Keyword argument of `open_dataset`; also the name of the command-line option.
        help: A one-line description.
        kind: Type of the value: `bool` is a switch, `Path` a folder that must exist.
        choices: Allowed values; empty: any value.
    """

    name: str
    help: str
    kind: type[bool] | type[str] | type[Path]
    choices: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """`help` as a sentence."""
        return f"{self.help[0].upper()}{self.help[1:]}."


IMAGES_OPTION = ReadingOption("images", "folder of the images, if it is outside the dataset's folder", Path)

BoxFormat = Literal["xywh", "xyxy", "cxcywh", "xywh_normalized", "xyxy_normalized", "cxcywh_normalized"]
BOX_FORMAT_OPTION = ReadingOption(
    "box_format",
    "box format of a Hugging Face dataset, detected by default; of COCO files, xywh or xyxy; of YOLO label files, "
    "cxcywh_normalized by default",
    str,
    get_args(BoxFormat),
)

BOXES_OPTION = ReadingOption(
    "boxes",
    "image that the boxes were drawn on: upright, as EXIF says, or stored, without its EXIF orientation; by default "
    "the one with the size in the annotations, unless boxes exceed it",
    str,
    ("upright", "stored"),
)
CROWDS_OPTION = ReadingOption(
    "crowds",
    "what regions marked as crowds (iscrowd) are: as_objects, ordinary objects; as_crowds, used in evaluation only; "
    "as_crowds by default, but it is an error if no object is left",
    str,
    ("as_objects", "as_crowds"),
)


@dataclass(frozen=True, eq=False)
class WrittenDataset:
    """The result of writing a dataset.

    Attributes:
        index: The dataset as written, without what the format cannot represent.
        files: The path of each image in the folder; None where it is not part of the dataset when that is read back.
        notes: What was left out or changed, one sentence each.
        keeps_splits: Whether the splits are the same when read back, so that they can be compared one by one.
        exact_masks: Whether masks are the same when read back, to the pixel.
        rows: Name of each split → the images in its rows, for formats without a file for each image, whose `files`
            are empty.
    """

    index: DetectionIndex
    files: Sequence[str | None]
    notes: list[str]
    keeps_splits: bool = True
    exact_masks: bool = False
    rows: Mapping[str, NDArray[np.int64]] | None = None


@dataclass(frozen=True)
class DatasetFormat:
    """A format of datasets: on disk, on the Hub, or built in.

    Attributes:
        name: Value of `format` in `open_dataset`, and key in `FORMATS`.
        find: `find(path)`: whether `path`, a folder or a file, is a dataset in this format.
        read: `read(path, findings=…, task=…, **options)`: reads the dataset. `findings` collects or raises problems;
            `task` is one of `tasks`, or `conversion` if `instance` is one of them; `options` are the reading options
            that the user has set.
        looked_for: The file that `find` mainly looks for, for the error about a folder in an unknown format.
        evidence: What `find` goes by, for `detr data check`: a phrase after "recognised by".
        tasks: The tasks that the format has annotations for.
        options: The reading options of the format.
        write: `write(index, folder, link)`: writes a dataset with its images into an empty folder; with `link`,
            images become hard links where possible. None: the format is read-only.
        carries: What `write` writes besides images, boxes and classes, of `contents.CONTENTS`; `index` has nothing
            else.
        holds: What an annotation of the format holds, for notes on what is not written.
        find_hints: Like `find`, for weaker evidence; only used if `find` fails for every format.
        is_name: `is_name(text, chosen)`: whether `text` names such a dataset without being a path; `chosen` is True if
            the user has chosen this format.
        defers_to: Formats that take precedence if they are found too and support the task.
    """

    name: str
    find: Callable[[Path], bool]
    read: Callable[..., DetectionIndex]
    looked_for: str
    evidence: str = ""
    tasks: tuple[Task, ...] = ("detection",)
    options: tuple[ReadingOption, ...] = ()
    write: Callable[[DetectionIndex, Path, bool], WrittenDataset] | None = None
    carries: frozenset[str] = frozenset()
    holds: str = "a class and a box"
    find_hints: Callable[[Path], bool] = lambda _: False
    is_name: Callable[[str, bool], bool] = lambda _text, _chosen: False
    defers_to: tuple[str, ...] = ()
