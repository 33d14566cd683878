"""The format `hf` of Hugging Face's `datasets`: a Hub id, a `save_to_disk` folder, or parquet files. Read-only;
`parquet` writes files that it reads.

    objects: {bbox: [[…]], category: […], area?: […], iscrowd?: […]}    the usual column, also as a list of structs
    bbox: [[…]], category: […]                                          or top-level columns

The columns may also be in metadata.jsonl, .csv or .parquet beside image files: `image_metadata`.

The boxes of a row may also be one flat list, with four numbers per object.

Images stay where they are: as bytes in the rows of memory-mapped files (`arrow_rows`), or as files that the rows refer
to. The convention of the boxes is set by the user or detected (`hf_boxes`); a note says which one is used.

`pyarrow` comes with `datasets`; both are only imported when a dataset of this format is opened.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import clean_annotations
from modeling_detr.data.dataset_format import (
    BOX_FORMAT_OPTION,
    BOXES_OPTION,
    CROWDS_OPTION,
    IMAGES_OPTION,
    BoxFormat,
    DatasetFormat,
)
from modeling_detr.data.file_search import FileSearch
from modeling_detr.data.findings import Findings, first_items
from modeling_detr.data.formats.hf_boxes import BoxSample, detect_convention, to_corners
from modeling_detr.data.formats.hf_columns import SplitColumns, read_columns
from modeling_detr.data.formats.hf_loading import explain_errors, find_hf_files, find_tables, is_hub_id, load_splits
from modeling_detr.data.formats.image_metadata import read_metadata
from modeling_detr.data.image_headers import header_sizes
from modeling_detr.data.image_numbers import number_images
from modeling_detr.data.image_paths import image_folders, refuse_outside
from modeling_detr.data.orientation import orient
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError, did_you_mean
from modeling_detr.structures_detr import (
    AnnotationTable,
    Category,
    DetectionIndex,
    ImageRecord,
    Task,
)


def read_hf_dataset(
    path: str | Path,
    findings: Findings | None = None,
    box_format: str | None = None,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    """Read a dataset of `datasets`, with all of its splits.

    Class names come from the ClassLabel feature; without one, they are the classes as written, words or numbers. The
    size of an image comes from its header. Rows without objects are images without objects.

    Args:
        path: A Hub id, a folder written by `save_to_disk`, a folder of parquet files, or a parquet file.
        findings: Collects problems; None: the first error is raised.
        box_format: One of `BoxFormat`; None: detected from the names of a box's numbers, or else by the best fit.
        images: A folder outside the dataset's folder with images that the rows refer to by path.
        boxes: `upright` or `stored`; see `coco.read_coco`. Without columns height and width, None means `upright`.

    Raises:
        DatasetReadError: The dataset cannot be loaded, or an image cannot be read.
        DatasetError: There is no column of images or boxes, or an entry is invalid.
    """
    if box_format is not None and box_format not in get_args(BoxFormat):
        raise DatasetError("box_format", f"got '{box_format}'", did_you_mean(box_format, get_args(BoxFormat)))
    findings = Findings() if findings is None else findings
    with explain_errors(path):
        splits = _load_columns(path, findings)
    roots = [str(folder) for folder in (images, *_roots(path)) if folder is not None]
    splits = {name: _with_located_files(split, name, roots, findings) for name, split in splits.items()}
    _note_unused_images(splits, roots, findings)
    files = [
        file
        for split in splits.values()
        for file, reader in zip(split.paths, split.readers, strict=True)
        if not reader
    ]
    refuse_outside(filter(None, files), [*_roots(path), images], findings)
    unused = dict.fromkeys(name for split in splits.values() for name in split.unused)
    if unused:
        findings.facts.append(f"fields of objects that are not used: {first_items(unused, 8)}")
        findings.notes.append(f"{path}: fields of objects that are not used: {first_items(unused, 8)}.")
    categories, labels = _merge_classes(str(path), splits, findings)
    if box_format is None:
        named = next((split.convention for split in splits.values() if split.convention is not None), None)
        sample = BoxSample.concatenate([_sample(split) for split in splits.values()])
        convention = detect_convention(path, sample, named, findings)
    else:
        findings.notes.append(f"{path}: boxes read as {box_format}, as requested by box_format.")
        convention = box_format

    all_records: list[ImageRecord] = []
    tables: list[AnnotationTable] = []
    members: dict[str, NDArray[np.int64]] = {}
    for name, split in splits.items():
        records, table = _to_index(split, labels[name], convention, boxes, findings)
        tables.append(replace(table, image_index=table.image_index + len(all_records)))
        members[name] = np.arange(len(all_records), len(all_records) + len(records))
        all_records.extend(records)
    name = str(path) if is_hub_id(path) else Path(path).resolve().name
    table = AnnotationTable.concatenate(tables)
    return DetectionIndex(
        name, number_images(all_records, members.values()), categories, table, members, tuple(findings.notes)
    )


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Task,  # noqa: ARG001
    box_format: str | None = None,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    return read_hf_dataset(path, findings, box_format, images, boxes)


def _roots(path: str | Path) -> list[str | Path]:
    """Return the folders that may contain the images of a dataset: its own, or for one from the Hub, the caches."""
    place = Path(path)
    if place.exists():
        return [place if place.is_dir() else place.parent]
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return [str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE]


def _load_columns(path: str | Path, findings: Findings) -> dict[str, SplitColumns]:
    """Read the columns of each split: from tables beside images, or else from what `datasets` loads."""
    tables = find_tables(path)
    if not tables:
        return {name: read_columns(f"{path}[{name}]", rows) for name, rows in load_splits(path).items()}
    from datasets import Dataset

    refuse_outside(map(str, tables), [path], findings)
    splits: dict[str, SplitColumns] = {}
    for name, (rows, folders) in read_metadata(Path(path), tables).items():
        keys = dict.fromkeys(key for row in rows for key in row)
        table = Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys})
        splits[name] = replace(read_columns(f"{path}[{name}]", table), folders=folders)
    return splits


def _with_located_files(split: SplitColumns, name: str, roots: Sequence[str], findings: Findings) -> SplitColumns:
    """Find the images that rows name by a path, which may be that of another machine."""
    if all(split.readers):
        return split
    search = FileSearch(roots, findings, split=name)
    paths, missing = list(split.paths), list[tuple[object, str]]()
    row_of: dict[str, int] = {}
    for row, (path, reader) in enumerate(zip(split.paths, split.readers, strict=True)):
        if reader is not None:
            continue
        where = f"{split.where}, row {row} (image {split.ids[row]!r})"
        if not path:
            findings.error("missing image", where, "no image", "add it, or remove the row")
            continue
        places = _places(roots if split.folders is None else (split.folders[row], *roots))
        match = search.find(path, places, places[0])
        paths[row] = match.path or ""
        if len(match.paths) > 1:
            search.report_ambiguous(match, where, path)
        elif match.path is None:
            missing.append((where, path))
        elif row_of.setdefault(paths[row], row) != row:
            message = f"has the same image as row {row_of[paths[row]]}, {paths[row]}"
            remedy = "correct the name of one, or write the objects of an image into one row"
            findings.error("one file for several images", where, message, remedy, image=paths[row])
            paths[row] = ""
    search.tell("image", split.where)
    remedy = "put the images into the dataset's folder, name their folder, or remove their rows"
    search.report_missing(missing, len(paths), " and ".join(roots), remedy, {"images": "FOLDER"})
    return replace(split, paths=paths)


@functools.lru_cache(maxsize=1024)
def _usual_folders(folder: str) -> tuple[str, ...]:
    return tuple(place for place in image_folders(folder, folder) if Path(place).is_dir())


def _places(folders: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(place for folder in folders for place in _usual_folders(folder)))


def _note_unused_images(splits: Mapping[str, SplitColumns], roots: Sequence[str], findings: Findings) -> None:
    """Note the images that are in no row of the tables beside them."""
    if not any(split.folders for split in splits.values()):
        return
    used = {path for split in splits.values() for path in split.paths}
    unused = [path for path in FileSearch(roots, findings).files() if path not in used]
    if unused:
        are = "image is in no row and is" if len(unused) == 1 else "images are in no row and are"
        note = f"{len(unused):,} {are} left out; the first: {unused[0]}."
        findings.warn("no annotations", note, "the image is left out", ((path, "is in no row") for path in unused))


def _to_index(
    split: "SplitColumns", label: NDArray[np.int64], convention: str, drawn_on: str | None, findings: Findings
) -> tuple[list[ImageRecord], AnnotationTable]:
    """Build the images and objects of one split; `label` (A,) is -1 for objects without a class."""
    records, index_of_row = _records(split, findings)
    kept = np.flatnonzero((index_of_row[split.row] >= 0) & (label >= 0))
    image_index = index_of_row[split.row[kept]]
    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    shown = slice(0 if convention.endswith("_normalized") else None)  # relative boxes fit any size
    boxes = to_corners(split.boxes[kept][shown], sizes[image_index][shown], convention)
    measured = range(len(records)) if split.sizes is None else ()
    records = orient(records, image_index[shown], boxes, drawn_on, split.where, findings, measured)
    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    table = clean_annotations(
        image_index=image_index,
        label=label[kept],
        boxes_xyxy=to_corners(split.boxes[kept], sizes[image_index], convention),
        image_sizes=sizes,
        describe=lambda row: split.describe(int(kept[row])),
        findings=findings,
        area=None if split.area is None else split.area[kept],
        is_crowd=None if split.is_crowd is None else split.is_crowd[kept],
        attributes={name: values[kept] for name, values in split.attributes.items()},
    )
    return records, table


# Images, classes and a sample of the boxes


def _records(split: SplitColumns, findings: Findings) -> tuple[list[ImageRecord], NDArray[np.int64]]:
    """Read the sizes of the images; also return the index of each row's image (R,), -1 if it is unusable."""
    records: list[ImageRecord] = []
    index_of_row = np.full(len(split.paths), -1, dtype=np.int64)
    other_size = []
    for row, (path, reader) in enumerate(zip(split.paths, split.readers, strict=True)):
        where = f"{split.where}, row {row} (image {split.ids[row]!r})"
        if not path:  # reported by `_with_located_files`
            continue
        try:
            upright, stored = header_sizes(path, reader)
        except (DatasetReadError, DatasetNotFoundError) as error:
            findings.add("unreadable image", error, image=path)
            continue
        size = upright
        if split.sizes is not None:
            given = (int(split.sizes[row, 0]), int(split.sizes[row, 1]))
            size = stored if given == stored else upright
            if given != size:
                other_size.append((where, f"{size[1]}x{size[0]} (width x height), not {given[1]}x{given[0]}"))
        index_of_row[row] = len(records)
        records.append(ImageRecord(split.ids[row], path, *size, reader))
    if other_size:
        where, sizes = other_size[0]
        differ = "image differs" if len(other_size) == 1 else "images differ"
        findings.warn(
            "image size",
            f"{len(other_size)} {differ} in size from the columns height and width; the size of the image is used; "
            f"the first: {where}, {sizes}.",
            "the size of the image is used",
            ((where, f"the image is {sizes} as in the columns") for where, sizes in other_size),
        )
    return records, index_of_row


def _merge_classes(
    path: str, splits: Mapping[str, SplitColumns], findings: Findings
) -> tuple[tuple[Category, ...], dict[str, NDArray[np.int64]]]:
    """Merge the categories of all splits; also return the labels (A,) of each, -1 for objects without a class."""
    named = [list(split.class_names) for split in splits.values() if split.class_names is not None]
    other = next((names for names in named if names != named[0]), None)
    if other is not None:
        raise DatasetError(
            path, f"its splits name their classes differently, {named[0]} and {other}", "make them agree"
        )
    if named:
        categories = tuple(Category(class_id, name) for class_id, name in enumerate(named[0]))
        label_of: dict[Any, int] = {label: label for label in range(len(categories))}
        label_of.update({category.name: category.id for category in categories})
    else:
        written = {value for split in splits.values() for value in split.classes if value is not None}
        if all(isinstance(value, int) for value in written):
            categories = tuple(Category(int(value), str(value)) for value in sorted(written))
            label_of = {category.id: label for label, category in enumerate(categories)}
        else:
            categories = tuple(Category(label, str(value)) for label, value in enumerate(sorted(map(str, written))))
            label_of = {category.name: category.id for category in categories}
    names = ", ".join(category.name for category in categories)[:300]
    labels = {}
    for name, split in splits.items():
        label = np.array([label_of.get(value, -1) for value in split.classes], dtype=np.int64)
        for index in np.flatnonzero(label < 0).tolist():
            findings.error(
                "unknown class",
                split.describe(index),
                f"got class {split.classes[index]!r}, expected one of {names}",
                "correct the object, or add the class to the ClassLabel",
            )
        labels[name] = label
    return categories, labels


def _sample(split: SplitColumns) -> BoxSample:
    """Sample boxes of a split, with the sizes of their images."""
    chosen = np.unique(np.linspace(0, len(split.row) - 1, min(len(split.row), 20_000)).astype(np.int64))
    size_of: dict[int, tuple[int, int]] = {}
    for row in np.unique(split.row[chosen])[:2000].tolist():
        with contextlib.suppress(OSError):  # reported when the images are read
            size_of[row] = header_sizes(split.paths[row], split.readers[row])[0]
    chosen = chosen[np.isin(split.row[chosen], list(size_of))]
    return BoxSample(
        boxes=split.boxes[chosen],
        limits=np.array([size_of[row][::-1] for row in split.row[chosen].tolist()], float).reshape(-1, 2),
        areas=split.area[chosen] if split.area is not None else np.full(len(chosen), np.nan),
    )


FORMAT = DatasetFormat(
    name="hf",
    find=lambda path: bool(find_hf_files(path)),
    read=_read,
    looked_for="*.parquet",
    evidence="parquet or Arrow files, images with metadata.jsonl (.csv, .parquet), or the name of one on the Hub",
    options=(IMAGES_OPTION, BOX_FORMAT_OPTION, BOXES_OPTION, CROWDS_OPTION),
    defers_to=("parquet",),
    is_name=lambda text, chosen: is_hub_id(text) or (chosen and "/" not in text and not Path(text).exists()),
)
