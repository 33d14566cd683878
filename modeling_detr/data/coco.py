"""Reads datasets in the COCO format (https://cocodataset.org/#format-data).

Three layouts are known, and one JSON file by itself:

    annotations/instances_train2017.json    train/_annotations.coco.json    annotations.json
    train2017/*.jpg                         train/*.jpg                     images/*.jpg

A million annotations open in seconds: everything is built as columns, and only what does not convert as a whole is
looked at one by one.
"""

import gc
import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import clean_annotations, to_number
from modeling_detr.data.coco_categories import keep_meant_categories
from modeling_detr.data.findings import Findings
from modeling_detr.data.image_files import header_size, is_split_name, locate_images, refuse_outside
from modeling_detr.data.masks import ReadMasks, read_segmentations
from modeling_detr.structures_detr import UNSPLIT, AnnotationTable, Category, DetectionIndex, ImageRecord


_NOT_A_SPLIT = {
    *("instances", "panoptic", "annotations", "annotation", "coco", "bbox", "labels", "result", "results", "dataset"),
}
_ROBOFLOW_NAME = "_annotations.coco.json"
_NORMALIZED_LIMIT = 1.5  # boxes relative to the image end at 1, or a little past it


Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CocoSplit:
    """An annotation file, the split that it is, and the folder of the whole dataset."""

    name: str
    file: Path
    root: Path


def find_coco_files(path: Path) -> list[Path]:
    """The annotation files of the dataset at `path`, a folder or one JSON file; none if it is not in this format."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and not holds_segments(path) else []
    official = sorted(path.glob("annotations/instances_*.json"))
    return official or [file for file in json_files(path) if _looks_like_coco(file)]


def json_files(path: Path) -> list[Path]:
    """The JSON files at the usual places in the folder of a dataset."""
    nested = [*path.glob("annotations/*.json"), *path.glob("*/*.json"), *path.glob("*/annotations/*.json")]
    return sorted({*path.glob("*.json"), *nested})


def holds_segments(file: Path) -> bool:
    """Whether these are panoptic annotations; told without parsing what may be hundreds of MB."""
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b'"segments_info"') >= 0


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Millions of small dicts make the collector walk them over and over, for half of the loading time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_coco(
    path: str | Path,
    require_images: bool = True,
    findings: Findings | None = None,
    masks: bool = False,
    images: str | Path | None = None,
) -> DetectionIndex:
    """Reads a COCO dataset: every annotation file of a folder as one split each, or one JSON file.

    Labels are dense in ascending order of the category ids, over the categories of all files. An annotation that has
    no `iscrowd` is no crowd; one that has no `area` gets its box's. A category without boxes is left out where another
    one has its name, or where its id is 0 and every other one names it as `supercategory` (Roboflow's export). A test
    split without 'annotations' is one without boxes; a file of another split must have them.

    Args:
        path: The dataset's folder, or one annotation file.
        require_images: False where only the annotations are wanted; `ImageRecord.path` is then the bare file name
            of each image that is not found.
        findings: Takes what is wrong; None: the first error is raised.
        images: The folder that images lie in, inside the dataset's or elsewhere; None: at the usual places inside.
        masks: Keep the segmentations (polygons, run lengths) too; annotations without one are then left out.

    Raises:
        FileNotFoundError: There is no annotation file, or images are missing.
        ValueError: A file is not what it should be; the message names file, entry and remedy.
    """
    path = Path(path)
    files = find_coco_files(path)
    if not files:
        raise FileNotFoundError(
            f"{path} holds no COCO annotations; looked for annotations/instances_*.json, and for other JSON files in "
            f"it and its sub-folders with 'images', 'annotations' and 'categories' in them."
        )
    read_masks = read_segmentations if masks else None
    return read_files(path, files, require_images, findings, read_masks=read_masks, images_folder=images)


def _annotations(split: CocoSplit, content: Mapping[str, Any], findings: Findings) -> Entries:  # noqa: ARG001
    entries: Entries = content["annotations"]
    return entries


@_garbage_collection_paused()
def read_files(
    path: Path,
    files: Sequence[Path],
    require_images: bool,
    findings: Findings | None,
    objects_of: Callable[[CocoSplit, Mapping[str, Any], Findings], Entries] = _annotations,
    read_masks: Callable[[Entries, NDArray[np.int64], Callable[[int], str], Findings], ReadMasks] | None = None,
    images_folder: str | Path | None = None,
) -> DetectionIndex:
    """Reads the annotation files of a dataset, one split each; see `read_coco`.

    Args:
        path: The dataset's folder, or the one file.
        files: The files.
        require_images: See `read_coco`.
        findings: See `read_coco`.
        objects_of: The objects of a file: entries with image_id, category_id, bbox, area, iscrowd and id.
        read_masks: The masks of some entries, given the sizes (A, 2) of their images and what names a row in a
            message. None: masks are not read.
        images_folder: See `images` of `read_coco`.
    """
    splits = _name_splits(path, files)
    findings = Findings() if findings is None else findings
    contents = [_load(split, findings, polygons=read_masks is not None) for split in splits]
    labels = _merge_categories([split.file for split in splits], contents, findings)

    images: list[ImageRecord] = []
    tables: list[AnnotationTable] = []
    members: dict[str, NDArray[np.int64]] = {}
    for split, content in zip(splits, contents, strict=True):
        records = _read_images(split, content["images"], require_images, images_folder, findings)
        objects = objects_of(split, content, findings)
        table = _read_annotations(split.file, objects, records, labels.of_id, findings, read_masks)
        tables.append(replace(table, image_index=table.image_index + len(images)))
        members[split.name] = np.arange(len(images), len(images) + len(records))
        images.extend(records)
    categories, annotations = keep_meant_categories(
        labels.categories, labels.supercategories, AnnotationTable.concatenate(tables), findings
    )
    name = path.stem if path.is_file() else path.resolve().name
    return DetectionIndex(name, tuple(images), categories, annotations, members, tuple(findings.notes))


# Files and splits


def _looks_like_coco(file: Path) -> bool:
    """Whether a COCO file of boxes this is, or is meant to be; told without parsing what may be hundreds of MB.

    One that lacks a list belongs to the dataset as well, so that the loader says so instead of leaving it out.
    """
    if file.name.lower() == _ROBOFLOW_NAME:
        return True
    if file.stat().st_size == 0 or holds_segments(file):
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if any(text.find(key) < 0 for key in (b'"images"', b'"categories"')):
            return False
        return text.find(b'"annotations"') >= 0 or text.find(b'"file_name"') >= 0


def _name_splits(path: Path, files: Sequence[Path]) -> list[CocoSplit]:
    splits: list[CocoSplit] = []
    for file in files:
        folder = file.parent
        inner = folder if folder.name.lower() != "annotations" else folder.parent
        root = path if path.is_dir() else inner.parent if is_split_name(inner.name) else inner
        words = [word for word in re.split(r"[_.\-\s]+", file.stem) if word and word.lower() not in _NOT_A_SPLIT]
        if words:
            name = "_".join(words)
        elif inner.resolve() != root.resolve():
            name = inner.name
        else:
            name = UNSPLIT
        if len(files) == 1 and not is_split_name(name):
            name = UNSPLIT
        if any(split.name == name for split in splits):
            name = file.relative_to(path).with_suffix("").as_posix()
        splits.append(CocoSplit(name, file, root))
    return splits


def _without_polygons(text: bytes) -> bytes:
    """The JSON with null in place of every segmentation that is a list of numbers: most of what there is to parse, and
    to hold in memory, where only boxes are wanted."""
    key = b'"segmentation"'  # as a whole string in quotes; within another string its quotes would be escaped
    pieces: list[bytes] = []
    done = 0
    place = text.find(key)
    while place >= 0:
        begin = place + len(key)
        following = text.find(b'"', begin)  # lists of numbers hold neither quotes nor braces
        following = following if following >= 0 else len(text)
        brace = text.find(b"}", begin, following)
        end = text.rfind(b"]", begin, brace if brace >= 0 else following)
        if end > begin and text[begin : begin + 16].lstrip(b": \t\r\n")[:1] == b"[":
            pieces.append(text[done:begin])
            done = end + 1
        place = text.find(key, following)
    return b":null".join([*pieces, text[done:]])


def _load(split: CocoSplit, findings: Findings, polygons: bool) -> dict[str, list[dict[str, Any]]]:
    file = split.file
    empty: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    try:
        text = file.read_bytes()
        content = json.loads(text if polygons else _without_polygons(text))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if not polygons:  # once more, for the place in the file as it is
            return _load(split, findings, polygons=True)
        remedy = "write it anew, it may be cut off"
        findings.error("unreadable file", f"{file}:", f"not valid JSON ({error})", remedy, cause=error)
        return empty
    if not isinstance(content, dict):
        findings.error(
            "unreadable file",
            f"{file}:",
            f"holds a JSON {type(content).__name__}",
            "wanted an object with 'images', 'annotations' and 'categories'. (A list of predictions or annotations "
            "alone names neither images nor classes.)",
        )
        return empty
    if "annotations" not in content and split.name.lower().startswith("test"):
        content["annotations"] = []
        findings.warn(
            "no annotations",
            f"{file}: has no 'annotations', so the images of the split '{split.name}' count as without boxes.",
            "its images count as without boxes",
            [(file, "has no 'annotations'")],
        )
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            got = f"a {type(entries).__name__}" if key in content else f"only {sorted(content)}"
            findings.error("unreadable file", f"{file}:", f"'{key}' must be a list of objects", f"got {got}")
            content[key] = []
    return content


# Categories


@dataclass(frozen=True)
class _Labels:
    categories: tuple[Category, ...]
    of_id: Mapping[Any, int]  # the file's id, as it is written there → dense label
    supercategories: tuple[str | None, ...]  # one for each of the categories


def _merge_categories(files: Sequence[Path], contents: Sequence[Mapping[str, Any]], findings: Findings) -> _Labels:
    names: dict[int, tuple[str, Path]] = {}
    thing: dict[int, bool] = {}
    spelled: dict[Any, int] = {}
    above: dict[int, str | None] = {}
    for file, content in zip(files, contents, strict=True):
        for entry in content["categories"]:
            raw = entry.get("id")
            try:
                category_id = int(raw)
            except (TypeError, ValueError):
                findings.error("category", f"{file}: category {entry}", f"has the id {raw!r}", "wanted a whole number")
                continue
            name = str(entry.get("name", category_id))
            known, known_in = names.setdefault(category_id, (name, file))
            if known != name:
                findings.error(
                    "category",
                    f"{file}: category {category_id}",
                    f"is named '{name}', but '{known}' in {known_in}",
                    "the files of one dataset must agree: rename it, or give it an id of its own",
                )
            thing[category_id] = bool(entry.get("isthing", True))
            spelled[raw] = category_id
            above[category_id] = entry.get("supercategory")
    categories = tuple(
        Category(category_id, names[category_id][0], thing[category_id]) for category_id in sorted(names)
    )
    label = {category.id: position for position, category in enumerate(categories)}
    of_id = {**label, **{raw: label[category_id] for raw, category_id in spelled.items()}}
    return _Labels(categories, of_id, tuple(above[category.id] for category in categories))


# Images


def _read_images(
    split: CocoSplit,
    entries: Sequence[Mapping[str, Any]],
    require_images: bool,
    images: str | Path | None,
    findings: Findings,
) -> list[ImageRecord]:
    for key in ("id", "file_name"):
        absent = [position for position, entry in enumerate(entries) if entry.get(key) is None]
        for position in absent:
            got = f"got {entries[position]}"
            findings.error("image entry", f"{split.file}: image {position} of the list", f"has no '{key}'", got)
        if absent:
            entries = [entry for entry in entries if entry.get(key) is not None]
    entries = _with_own_ids(split, entries, findings)
    names = [str(entry["file_name"]) for entry in entries]
    paths = _locate(split, names, require_images, images, findings)
    records, unsized = [], []
    for entry, path in zip(entries, paths, strict=True):
        height, width = entry.get("height"), entry.get("width")
        if not height or not width:
            if path in findings.broken_images:
                continue
            if not Path(path).is_file():
                where, message = f"{split.file}: image {entry['id']!r}", "has no height and width, and no file to ask"
                findings.error("image entry", where, message, "write its size there, or put the image there")
                continue
            try:
                height, width = header_size(path)
            except OSError as error:
                findings.unreadable_image(path, error)
                continue
            unsized.append(path)
        records.append(ImageRecord(entry["id"], path, int(height), int(width)))
    if unsized:
        findings.warn(
            "image size",
            f"{split.file}: {len(unsized)} images have no height and width, which are taken from the image files; "
            f"the first: {unsized[0]}.",
            "they are taken from the image file",
            ((split.file, f"gives no height and width of {path}") for path in unsized),
        )
    return records


def _with_own_ids(
    split: CocoSplit, entries: Sequence[Mapping[str, Any]], findings: Findings
) -> Sequence[Mapping[str, Any]]:
    """The entries, of several with one id the first."""
    first_of = {entry["id"]: entry for entry in reversed(entries)}
    if len(first_of) == len(entries):
        return entries
    for twice, number in Counter(entry["id"] for entry in entries).most_common():
        if number > 1:
            findings.error(
                "duplicate id",
                f"{split.file}:",
                f"{number} images have the id {twice!r}, so their annotations cannot be told apart",
                "give each image an id of its own",
            )
    return [entry for entry in entries if first_of[entry["id"]] is entry]


def _locate(
    split: CocoSplit, names: Sequence[str], require_images: bool, images: str | Path | None, findings: Findings
) -> list[str]:
    root, folder = split.root, split.file.parent
    usual = [] if images is None else [Path(images), Path(images) / split.name]
    usual += [root / split.name, root / "images" / split.name, folder, folder / "images", root / "images", root]
    folders = [
        place for place in dict.fromkeys([*usual, *_folders(root), *_folders(root / "images")]) if place.is_dir()
    ]
    paths = locate_images(names, folders)
    refuse_outside([path for path in paths if path is not None], [root, images], findings)
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing and require_images:
        places = ", ".join(str(place) for place in folders[:8])
        remedy = f"put them into {root / split.name} or {root / 'images'}, or take those entries out"
        if findings.collects:
            for name in missing:
                message = f"the image '{name}' is missing, looked for in {places}"
                findings.error("missing image", f"{split.file}:", message, remedy, image=name)
        else:
            many = "all" if len(missing) == len(names) else f"{len(missing)} of the {len(names)}"
            message = f"{many} images are missing; the first: '{missing[0]}', looked for in {places}"
            findings.error("missing image", f"{split.file}:", message, remedy, raises=FileNotFoundError)
    return [path if path is not None else name for path, name in zip(paths, names, strict=True)]


def _folders(parent: Path) -> list[Path]:
    """The folders in `parent`, which may hold a hundred thousand images as well."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


# Annotations


def _read_annotations(
    file: Path,
    entries: Sequence[Mapping[str, Any]],
    records: Sequence[ImageRecord],
    label_of: Mapping[Any, int],
    findings: Findings,
    read_masks: Callable[[Entries, NDArray[np.int64], Callable[[int], str], Findings], ReadMasks] | None,
) -> AnnotationTable:
    position_of: dict[Any, int] = {record.id: position for position, record in enumerate(records)}

    def describe(row: int) -> str:
        entry = entries[row]
        return f"{file}: annotation {entry.get('id', f'number {row}')} of image {entry.get('image_id')!r}"

    known = [position_of.get(entry.get("image_id"), -1) for entry in entries]
    image_index = np.array(known, dtype=np.int64)
    if (image_index < 0).any():
        first = int(np.argmax(image_index < 0))
        findings.warn(
            "no such image",
            f"{int((image_index < 0).sum())} annotations belong to images that the file does not list and are left "
            f"out; the first: {describe(first)}.",
            "the annotation is left out",
            (
                (describe(int(row)), "has an image that the file does not list")
                for row in np.flatnonzero(image_index < 0)
            ),
        )
        entries = [entry for entry, position in zip(entries, known, strict=True) if position >= 0]
        image_index = image_index[image_index >= 0]

    unknown = _rows_of_unknown_category(entries, label_of)
    for row in unknown:
        ids = ", ".join(str(category_id) for category_id in list(label_of)[:20])
        findings.error(
            "unknown class",
            describe(row),
            f"has category_id {entries[row].get('category_id')!r}, but the dataset's categories are {ids}",
            "add the category to the file's 'categories', or fix the annotation",
        )
    entries, image_index = _without(unknown, entries, image_index)
    corners, unreadable = _read_boxes(entries, describe, findings)
    entries, image_index = _without(unreadable, entries, image_index)
    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    masks = None
    if read_masks is not None:
        masks, maskless = read_masks(entries, sizes[image_index], describe, findings)
        entries, image_index = _without(maskless, entries, image_index)
        corners = np.delete(corners, maskless, axis=0)
    label = np.array([label_of[entry["category_id"]] for entry in entries], dtype=np.int64)
    _check_normalized(file, corners, sizes[image_index], findings)
    corners[:, 2:] += corners[:, :2]  # COCO writes x, y, width, height
    area = _read_areas(entries, describe, findings)
    crowd = np.array([bool(entry.get("iscrowd")) for entry in entries], dtype=np.bool_)
    table = clean_annotations(
        image_index=image_index,
        label=label,
        boxes_xyxy=corners,
        area=area,
        is_crowd=crowd,
        image_sizes=sizes,
        describe=describe,
        findings=findings,
        masks=masks,
    )
    _note_corners(file, corners, sizes[image_index], findings)
    return table


def _rows_of_unknown_category(entries: Sequence[Mapping[str, Any]], label_of: Mapping[Any, int]) -> list[int]:
    try:
        return [row for row, entry in enumerate(entries) if entry.get("category_id") not in label_of]
    except TypeError:  # a list or an object in place of an id
        return [
            row
            for row, entry in enumerate(entries)
            if not isinstance(entry.get("category_id"), Hashable) or entry["category_id"] not in label_of
        ]


def _without(
    rows: Sequence[int], entries: Sequence[Mapping[str, Any]], image_index: NDArray[np.int64]
) -> tuple[Sequence[Mapping[str, Any]], NDArray[np.int64]]:
    if not rows:
        return entries, image_index
    wrong = set(rows)
    return [entry for row, entry in enumerate(entries) if row not in wrong], np.delete(image_index, rows)


def _check_normalized(file: Path, boxes: NDArray[np.float64], sizes: NDArray[np.int64], findings: Findings) -> None:
    """Refuses boxes as fractions of the image: they would pass as specks in its corner.

    Whole numbers are pixels, however small.
    """
    rows = np.isfinite(boxes).all(axis=-1)
    written = boxes[rows]
    if not len(written) or (sizes[rows] <= _NORMALIZED_LIMIT).any() or (written == np.floor(written)).all():
        return
    if written.min() >= 0 and written.max() <= _NORMALIZED_LIMIT:
        findings.error(
            "normalised boxes",
            f"{file}:",
            f"the boxes look normalised, none has a number above {written.max():.4g}",
            "COCO wants x, y, width, height in pixels: multiply them by the width and height of their image",
        )


def _note_corners(file: Path, corners: NDArray[np.float64], sizes: NDArray[np.int64], findings: Findings) -> None:
    """Asks about corners where width and height should be: many boxes then end far outside."""
    past = np.any(corners[:, 2:] > sizes[:, ::-1] + 1.0, axis=-1)  # a pixel more may be rounding
    if past.sum() > len(corners) / 3:
        message = f"{int(past.sum())} of {len(corners)} boxes end past the edge of their image"
        findings.warn(
            "corners",
            f"{file}: {message}; are these corners? COCO wants x, y, width, height.",
            "they are clipped; if they are corners, write x, y, width, height",
            [(file, message)],
        )


def _read_boxes(
    entries: Sequence[Mapping[str, Any]], describe: Callable[[int], str], findings: Findings
) -> tuple[NDArray[np.float64], list[int]]:
    """Boxes (A, 4) as written, and the rows that are errors and are not among them.

    A row of an annotation without a box is not a number.
    """
    try:
        written = [entry["bbox"] for entry in entries]
        if set(map(len, written)) <= {4}:
            return np.fromiter(chain.from_iterable(written), np.float64, 4 * len(written)).reshape(-1, 4), []
    except (KeyError, TypeError, ValueError):
        pass  # one of them is not four numbers: which one is found below
    boxes, wrong = np.full((len(entries), 4), np.nan), []
    for row, entry in enumerate(entries):
        box = entry.get("bbox")
        if box is None or box == []:
            continue
        try:
            boxes[row] = [to_number(number) if isinstance(number, str) else float(number) for number in box]
        except (TypeError, ValueError):
            wanted = "wanted four numbers [x, y, width, height] in pixels"
            findings.error("box", describe(row), f"has the bbox {box!r}", wanted)
            wrong.append(row)
    return np.delete(boxes, wrong, axis=0), wrong


def _read_areas(
    entries: Sequence[Mapping[str, Any]], describe: Callable[[int], str], findings: Findings
) -> NDArray[np.float64]:
    """Areas (A,) as written; not a number where there is none."""
    try:
        return np.array([entry.get("area") for entry in entries], dtype=np.float64)
    except (TypeError, ValueError):
        areas = np.full(len(entries), np.nan)
        for row, entry in enumerate(entries):
            area = entry.get("area")
            if area is not None and not _is_number(area):
                findings.error("area", describe(row), f"has the area {area!r}", "wanted a number of square pixels")
            elif area is not None:
                areas[row] = float(area)
        return areas


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
