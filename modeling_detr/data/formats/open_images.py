"""Open Images' boxes (https://storage.googleapis.com/openimages/web/index.html), also as FiftyOne downloads them.

    train-annotations-bbox.csv                ImageID, LabelName, XMin, XMax, YMin, YMax, IsGroupOf
    class-descriptions-boxable.csv            /m/01g317,Person
    train/000002b66c9c498e.jpg                images named by their ids, in any folders

The names of the CSV files or their folders say which split they are of. Boxes of images that are not there are left
out, because hardly anyone has all nine million. Boxes of a group (IsGroupOf) are crowd regions.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from modeling_detr.data.dataset_format import BOXES_OPTION, CROWDS_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.tool_exports import ToolExport, files_with_suffix, first_line, sample_files
from modeling_detr.data.image_paths import is_split_name, split_in_name
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, FileContentError, FileReadError
from modeling_detr.input_files import UTF16_MARKS, read_ends, require_file
from modeling_detr.structures_detr import DetectionIndex


_SIDES = ("XMin", "YMin", "XMax", "YMax")
_MARKS = ("IsOccluded", "IsTruncated", "IsDepiction", "IsInside")
_UNKNOWN = "-1"
_COLUMNS = ("ImageID", "LabelName", *_SIDES)


def _is_open_images(path: Path) -> bool:
    return any(_has_boxes(file) or _has_masks(file) for file in sample_files(path, ".csv"))


def _has_boxes(file: Path) -> bool:
    return set(_COLUMNS) <= _columns(file)


def _has_masks(file: Path) -> bool:
    return {"MaskPath", "ImageID", "LabelName"} <= _columns(file)


def _columns(file: Path) -> set[str]:
    return {name.strip() for name in first_line(file).split(",")}


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes, noun="line")
    files = files_with_suffix(Path(path) if Path(path).is_dir() else Path(path).parent, ".csv")
    names: dict[str, str] = {}
    for file in files:
        if re.search(r"class-descriptions|classes", file.name) and "segmentation" not in file.name:
            names |= {row[0]: row[1] for _, row in _rows(file, findings) if len(row) == 2}
    masks = [file for file in files if _has_masks(file)]
    if masks and (Path(path) in masks or not any(map(_has_boxes, files))):
        raise DatasetError(
            masks[0],
            "lists masks, of which the boxes are not there; only boxes are read from Open Images",
            "put the file of boxes (SPLIT-annotations-bbox.csv) beside it",
        )
    if masks:
        note = f"{counted(len(masks), 'file')} of masks not read, only boxes; the first: {masks[0]}."
        findings.warn("masks", note, "its boxes are read from the file of boxes", ((file, "masks") for file in masks))
    absent: Counter[str] = Counter()  # ids of images that are not there → their boxes
    used: set[str] = set()
    for file in [Path(path)] if Path(path).is_file() else filter(_has_boxes, files):
        used |= _read_boxes(export, file, names, absent, findings)
    export.refuse_mismatch(absent)
    if absent and not export.has_images:
        first = next(iter(absent))
        raise DatasetNotFoundError(
            path, f"no image is there, the first is '{first}'", "put the images into the folder"
        )
    if absent:
        are = "is" if len(absent) == 1 else "are"
        note = f"{counted(absent.total(), 'box', 'boxes')} left out, because "
        note += f"{counted(len(absent), 'image')} {are} not there"
        findings.notes.append(f"{note}; the first: {next(iter(absent))}.")
    unnamed = sorted(used - set(names))
    if unnamed:
        note = f"{counted(len(unnamed), 'class', 'classes')} without a name in a file of class descriptions"
        note += f"; the first: {unnamed[0]}."
        findings.warn("class name", note, "its id is its name", ((name, "has no name") for name in unnamed))
    return export.index()


def _rows(file: Path, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    try:
        if require_file(file) == 0:  # also of files in /proc, which may never end
            return
        encoding = "utf-16" if read_ends(file, 2).startswith(UTF16_MARKS) else "utf-8-sig"
        with file.open(encoding=encoding, errors="replace", newline="") as stream:
            yield from enumerate(csv.reader(stream), start=1)
    except FileReadError as error:
        findings.add("unreadable file", error, cause=error)
    except csv.Error as error:
        content = FileContentError(file, f"not a CSV file ({error})", "write it again")
        findings.add("unreadable file", content, cause=error)


def _read_boxes(
    export: ToolExport, file: Path, names: Mapping[str, str], absent: Counter[str], findings: Findings
) -> set[str]:
    """Add the boxes of a file; return the ids of their classes."""
    split = _split_of(file, export.root)
    image_of: dict[str, tuple[int, tuple[int, int] | None] | None] = {}
    used: set[str] = set()
    rows = _rows(file, findings)
    _, header = next(rows, (0, []))
    place = {name.strip(): index for index, name in enumerate(header)}
    columns, group = [place[name] for name in _COLUMNS if name in place], place.get("IsGroupOf")
    marked = {name: place[name] for name in _MARKS if name in place}
    for number, row in rows if len(columns) == len(_COLUMNS) else ():
        if len(row) <= max(*columns, *marked.values(), group or 0):
            if row:
                message = f"got {counted(len(row), 'column')}, expected {len(header)}"
                findings.error("line", f"{file}, line {number}", message, "correct or remove the line")
            continue
        image_id, label, *sides = (row[column] for column in columns)
        if image_id not in image_of:
            image_of[image_id] = _add_image(export, file, image_id, split)
        entry = image_of[image_id]
        if entry is None:
            absent[image_id] += 1
        elif entry[1] is not None:
            used.add(label)
            is_group = group is not None and row[group].strip() == "1"
            marks = {name: row[column] for name, column in marked.items() if row[column].strip() != _UNKNOWN}
            name = names.get(label, label)
            export.add_object(entry[0], name, number, partial(_box, sides, entry[1]), is_group, marks)
    return used


def _add_image(
    export: ToolExport, file: Path, image_id: str, split: str | None
) -> tuple[int, tuple[int, int] | None] | None:
    """Add an image and return its index and size; None if it is not there."""
    if not image_id or not export.is_there([image_id], split):
        return None
    image = export.add_image(f"{file}, image {image_id}", [image_id], split=split)
    return image, export.size(image)


def _box(sides: Sequence[str], size: tuple[int, int]) -> DrawnShape:
    height, width = size
    x0, y0, x1, y1 = map(float, sides)
    return DrawnShape("box", (x0 * width, y0 * height, x1 * width, y1 * height))


def _split_of(file: Path, root: Path) -> str | None:
    folders = reversed(file.relative_to(root).parts[:-1])
    return split_in_name(file.stem) or next(filter(is_split_name, folders), None)


FORMAT = DatasetFormat(
    name="open_images",
    find=_is_open_images,
    read=_read,
    looked_for="*-annotations-bbox.csv",
    evidence=".csv files whose first line has ImageID, LabelName, XMin, XMax, YMin and YMax",
    options=(IMAGES_OPTION, BOXES_OPTION, CROWDS_OPTION),
)
