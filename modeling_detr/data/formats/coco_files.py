"""Read the JSON files of COCO's two formats: their splits, images and categories.

A million annotations load in seconds, because everything is built as columns and nothing is parsed without need.
"""

import gc
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.file_search import FileSearch
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.formats.coco_annotations import Entries, MaskReader, lacks_box, read_annotations
from modeling_detr.data.formats.coco_categories import drop_placeholder_categories, merge_categories
from modeling_detr.data.formats.shared_images import merge_shared_images
from modeling_detr.data.formats.written_values import is_integer, to_integer
from modeling_detr.data.image_headers import MAX_PIXELS, header_size
from modeling_detr.data.image_paths import is_split_name, refuse_outside
from modeling_detr.errors_detr import (
    DatasetNotFoundError,
    DatasetReadError,
    FileContentError,
    FileReadError,
)
from modeling_detr.input_files import MAX_JSON_BYTES, is_file, parse_json, read_bytes
from modeling_detr.structures_detr import UNSPLIT, AnnotationTable, DetectionIndex, ImageRecord


_NOT_A_SPLIT = {
    *("instances", "panoptic", "annotations", "annotation", "coco", "bbox", "labels", "result", "results", "dataset"),
}


@dataclass(frozen=True)
class CocoSplit:
    """An annotation file, with the name of its split and the root folder of the dataset."""

    name: str
    file: Path
    root: Path


def json_files(path: Path) -> list[Path]:
    """Find the JSON files in the usual places of a dataset's folder."""
    nested = [*path.glob("annotations/*.json"), *path.glob("*/*.json"), *path.glob("*/annotations/*.json")]
    return sorted({*path.glob("*.json"), *nested})


def holds_segments(file: Path) -> bool:
    """Whether a JSON file has panoptic annotations, decided without parsing what may be hundreds of MB."""
    with mapped(file) as text:
        return text.find(b'"segments_info"') >= 0


@contextmanager
def mapped(file: Path) -> Iterator[mmap.mmap | bytes]:
    """The memory-mapped content of a file; empty if it is not a regular file."""
    if not is_file(file) or file.stat().st_size == 0:
        yield b""
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        yield text


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause the garbage collector, which would spend half of the loading time walking millions of small dicts."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
    read_masks: MaskReader | None = None,
    images_folder: str | Path | None = None,
    box_format: str | None = None,
    drawn_on: str | None = None,
) -> DetectionIndex:
    """Read the annotation files of a dataset, each as one split; see `coco.read_coco`.

    Args:
        path: The dataset's folder, or the file.
        files: The annotation files.
        require_images: See `read_coco`.
        findings: See `read_coco`.
        objects_of: Returns the objects of a file: entries with image_id, category_id, bbox, area, iscrowd and id.
        read_masks: Reads the masks of entries, given the sizes (A, 2) of their images and a function that names a row
            in a message. None: masks are not read.
        images_folder: See `images` of `read_coco`.
        box_format: See `read_coco`.
        drawn_on: See `boxes` of `read_coco`.
    """
    splits = _name_splits(path, files)
    findings = Findings() if findings is None else findings
    contents = [_load(split, findings, polygons=read_masks is not None) for split in splits]
    labels = merge_categories(
        [(split.file, content["categories"]) for split, content in zip(splits, contents, strict=True)], findings
    )

    images: list[ImageRecord] = []
    tables: list[AnnotationTable] = []
    members: dict[str, NDArray[np.int64]] = {}
    located = [
        _locate(split, content["images"], require_images, images_folder, findings)
        for split, content in zip(splits, contents, strict=True)
    ]
    any_found = any(path is not None for images_of_split in located for _, path in images_of_split)
    for split, content, entries, label_of in zip(splits, contents, located, labels.of_id, strict=True):
        if require_images and any_found and entries and all(path is None for _, path in entries):
            _warn_of_absent_split(split, entries, images_folder, findings)
            continue
        records = _read_images(split, entries, require_images, images_folder, findings)
        objects = objects_of(split, content, findings)
        records, table = read_annotations(
            split.file, objects, records, label_of, findings, read_masks, box_format, drawn_on
        )
        tables.append(replace(table, image_index=table.image_index + len(images)))
        members[split.name] = np.arange(len(images), len(images) + len(records))
        images.extend(records)
    categories, annotations = drop_placeholder_categories(
        labels.categories, labels.supercategories, AnnotationTable.concatenate(tables), findings
    )
    name = path.stem if path.is_file() else path.resolve().name
    index = DetectionIndex(name, tuple(images), categories, annotations, members)
    if require_images:
        files_of = {split.name: split.file for split in splits}
        index = merge_shared_images(index, files_of, findings)
    return replace(index, notes=tuple(findings.notes))


# Files and splits


def split_name_of(stem: str) -> str:
    """The name of a split in the name of its annotation file; empty if it has none."""
    words = re.split(r"[_.\-\s]+", stem)
    return "_".join(word for word in words if word and word.lower() not in _NOT_A_SPLIT)


def _name_splits(path: Path, files: Sequence[Path]) -> list[CocoSplit]:
    splits: list[CocoSplit] = []
    for file in files:
        folder = file.parent
        inner = folder if folder.name.lower() != "annotations" else folder.parent
        root = path if path.is_dir() else inner.parent if is_split_name(inner.name) else inner
        unnamed = inner.name if inner.resolve() != root.resolve() else UNSPLIT
        name = split_name_of(file.stem) or unnamed
        if len(files) == 1 and not is_split_name(name):
            name = UNSPLIT
        if any(split.name == name for split in splits):
            name = file.relative_to(path).with_suffix("").as_posix()
        splits.append(CocoSplit(name, file, root))
    return splits


def _without_polygons(text: bytes) -> bytes:
    """Replace every segmentation that is a list of numbers with null.

    They take most of the time and memory of parsing, and are not needed for boxes.
    """
    key = b'"segmentation"'  # with its quotes, which would be escaped inside another string
    pieces: list[bytes] = []
    done = 0
    place = text.find(key)
    while place >= 0:
        begin = place + len(key)
        following = text.find(b'"', begin)  # lists of numbers contain neither quotes nor braces
        following = following if following >= 0 else len(text)
        brace = text.find(b"}", begin, following)
        end = text.rfind(b"]", begin, brace if brace >= 0 else following)
        if end > begin and text[begin : begin + 16].lstrip(b": \t\r\n")[:1] == b"[":
            pieces.append(text[done:begin])
            done = end + 1
        place = text.find(key, following)
    return b":null".join([*pieces, text[done:]])


def _parse(file: Path, polygons: bool) -> Any:
    text = read_bytes(file, MAX_JSON_BYTES)
    if not polygons:
        try:
            content = parse_json(file, _without_polygons(text))
            if not _needs_polygons(content):
                return content
        except FileContentError:
            pass  # parse the unmodified text, for the right position in the error
    return parse_json(file, text)


def _needs_polygons(content: Any) -> bool:
    """Whether objects have no box, so that their segmentations are needed."""
    objects = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(objects, list) and any(
        isinstance(entry, dict) and "segmentation" in entry and lacks_box(entry) for entry in objects
    )


def _load(split: CocoSplit, findings: Findings, polygons: bool) -> dict[str, list[dict[str, Any]]]:
    file = split.file
    empty: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    try:
        content = _parse(file, polygons)
    except (FileReadError, FileContentError) as error:
        findings.add("unreadable file", error, cause=error)
        return empty
    if not isinstance(content, dict):
        findings.error(
            "unreadable file",
            file,
            f"got a JSON {type(content).__name__}, expected an object with 'images', 'annotations' and 'categories'",
            "add the lists of images and categories, which a plain list of annotations or predictions lacks",
        )
        return empty
    if "annotations" not in content and split.name.lower().startswith("test"):
        content["annotations"] = []
        findings.warn(
            "no annotations",
            f"{file}: no 'annotations'; the images of the split '{split.name}' are treated as images without objects.",
            "its images are treated as images without objects",
            [(file, "no 'annotations'")],
        )
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            message = f"'{key}': got a {type(entries).__name__}, expected a list of objects"
            if key not in content:
                message = f"no '{key}', only {', '.join(sorted(content)) or 'an empty object'}"
            findings.error("unreadable file", file, message, f"add the list '{key}'")
            content[key] = []
    return content


# Images


def _locate(
    split: CocoSplit, entries: Entries, require_images: bool, images: str | Path | None, findings: Findings
) -> list[tuple[Mapping[str, Any], str | None]]:
    """Return the valid entries of a split's images, each with its path; None where the image is missing."""
    entries = _with_unique_ids(split, _with_ids_and_names(split, entries, findings), findings)
    search = FileSearch([images, split.root], findings, split=split.name)
    places = _usual_folders(split, images)
    located: list[tuple[Mapping[str, Any], str | None]] = []
    for entry in entries:
        name = str(entry["file_name"])
        match = search.find(name, places, str(split.file.parent))
        if len(match.paths) > 1 and require_images:
            search.report_ambiguous(match, f"{split.file}, image {entry['id']!r}", name)
            located.append((entry, name))  # unusable, but its objects are read
        else:
            located.append((entry, match.path))
    search.tell("image", split.file)
    paths = [path for _, path in located if path is not None and path not in findings.broken_images]
    refuse_outside(paths, [split.root, images], findings)
    return located


def _usual_folders(split: CocoSplit, images: str | Path | None) -> list[str]:
    root, folder = split.root, split.file.parent
    usual = [] if images is None else [Path(images), Path(images) / split.name]
    usual += [root / split.name, root / "images" / split.name, folder, folder / "images", root / "images", root]
    return [str(place) for place in dict.fromkeys(usual) if place.is_dir()]


def _warn_of_absent_split(
    split: CocoSplit,
    entries: Sequence[tuple[Mapping[str, Any], str | None]],
    images: str | Path | None,
    findings: Findings,
) -> None:
    searched = first_items(_usual_folders(split, images), 8)
    message = f"none of its {counted(len(entries), 'image')} is there, the first is '{entries[0][0]['file_name']}'"
    findings.warn(
        "split not there",
        f"{split.file}: {message}; searched {searched}. The dataset is read without the split '{split.name}'.",
        f"the dataset is read without the split '{split.name}'; if you need it, put its images into {searched}",
        [(split.file, message)],
    )


def _read_images(
    split: CocoSplit,
    located: Sequence[tuple[Mapping[str, Any], str | None]],
    require_images: bool,
    images: str | Path | None,
    findings: Findings,
) -> list[ImageRecord]:
    missing = [str(entry["file_name"]) for entry, path in located if path is None]
    if missing and require_images:
        _report_missing(split, missing, len(located), images, findings)
    records, unsized = [], []
    for entry, found in located:
        path = str(entry["file_name"]) if found is None else found
        height, width = entry.get("height"), entry.get("width")
        if not height or not width:
            size = _size_in_file(split, entry, path, findings)
            if size is None:
                continue
            height, width = size
            unsized.append(path)
        elif not (type(height) is type(width) is int and 0 < height <= MAX_PIXELS and 0 < width <= MAX_PIXELS):
            try:
                height, width = to_integer(height, 1, MAX_PIXELS), to_integer(width, 1, MAX_PIXELS)
            except ValueError as error:
                where, message = f"{split.file}, image {entry['id']!r}", f"got height {height!r} and width {width!r}"
                findings.error("image entry", where, f"{message}, expected {error}", "correct or remove them")
                continue
        records.append(ImageRecord(entry["id"], path, height, width))
    if unsized:
        have = "image has no height and width" if len(unsized) == 1 else "images have no height and width"
        findings.warn(
            "image size",
            f"{split.file}: {len(unsized)} {have}, read from the image files instead; the first: {unsized[0]}.",
            "they are read from the image file",
            ((split.file, f"no height and width for {path}") for path in unsized),
        )
    return records


def _with_ids_and_names(split: CocoSplit, entries: Entries, findings: Findings) -> Entries:
    """Keep the entries with a valid id and file name, and report the others."""
    if {type(entry.get("id")) for entry in entries} <= {int, str} and (
        {type(entry.get("file_name")) for entry in entries} <= {str}
    ):
        return entries
    kept = []
    for index, entry in enumerate(entries):
        if isinstance(entry.get("id"), float) and is_integer(entry["id"]):
            entry = {**entry, "id": int(entry["id"])}  # 3.0
        for key, expected in (("id", "an integer or text"), ("file_name", "text")):
            value = entry.get(key)
            if isinstance(value, bool) or not isinstance(value, int | str):
                where, message = f"{split.file}, image entry {index}", f"got {key} {value!r}, expected {expected}"
                if value is None:
                    message = f"no '{key}', got {entry}"
                findings.error("image entry", where, message, f"correct its '{key}'")
                break
        else:
            kept.append(entry)
    return kept


def _size_in_file(split: CocoSplit, entry: Mapping[str, Any], path: str, findings: Findings) -> tuple[int, int] | None:
    """Read height and width from the image file, for an entry that lacks them; None if this fails."""
    if path in findings.broken_images:
        return None
    if not Path(path).is_file():
        where, message = f"{split.file}, image {entry['id']!r}", "no height and width, and the image file is missing"
        findings.error("image entry", where, message, "add its size, or restore the image")
        return None
    try:
        return header_size(path)
    except (DatasetReadError, DatasetNotFoundError) as error:
        findings.add("unreadable image", error, image=path)
        return None


def _with_unique_ids(split: CocoSplit, entries: Entries, findings: Findings) -> Entries:
    """Keep only the first of several entries with the same id, and report the others."""
    first_of = {entry["id"]: entry for entry in reversed(entries)}
    if len(first_of) == len(entries):
        return entries
    for image_id, count in Counter(entry["id"] for entry in entries).most_common():
        if count > 1:
            findings.error(
                "duplicate id",
                split.file,
                f"{count} images have the id {image_id!r}, so their annotations cannot be told apart",
                "give each image a unique id",
            )
    return [entry for entry in entries if first_of[entry["id"]] is entry]


def _report_missing(
    split: CocoSplit, missing: Sequence[str], total: int, images: str | Path | None, findings: Findings
) -> None:
    root, folders = split.root, _usual_folders(split, images)
    search = FileSearch([images, root], findings)
    searched = f"{first_items(folders, 8)} and the folders in {root}"
    remedy = f"put missing images into {root / split.name} or {root / 'images'}, or remove their entries"
    search.report_missing([(split.file, name) for name in missing], total, searched, remedy)
