"""Parquet shards that hold a whole dataset, images included: a few large files in place of many small ones.

    data/train-00000-of-00002.parquet    image: {bytes, path}, image_id, width, height,
    data/train-00001-of-00002.parquet    objects: {id, bbox, category, area, iscrowd, segmentation, difficult, …}

They are image datasets of `datasets` too, which the format `hf`, the Hub and its viewer read: `bbox` is x, y, width
and height in pixels, `category` a ClassLabel, `segmentation` what COCO has under that name, as JSON. Names of splits
and ids of categories are in the metadata of each file, so that nothing is lost.

When they are opened, `datasets` copies the rows into its cache as Arrow files, which are memory-mapped (`arrow_rows`).
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import clean_annotations
from modeling_detr.data.contents import CONTENTS, SCORE
from modeling_detr.data.dataset_format import CROWDS_OPTION, DatasetFormat, Purpose, WrittenDataset
from modeling_detr.data.findings import Findings
from modeling_detr.data.format_limits import note_several_splits, refuse_shared_names, warn_of_stuff
from modeling_detr.data.formats.hf_columns import SplitColumns, read_columns
from modeling_detr.data.formats.hf_loading import explain_errors, load_parquet, parquet_files
from modeling_detr.data.image_copies import file_name_of, file_names_of, home_splits, image_file
from modeling_detr.data.image_headers import MAX_PIXELS
from modeling_detr.data.masks import read_segmentations, segmentations
from modeling_detr.errors_detr import DatasetError, DatasetReadError
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, MaskColumn


KEY = b"modeling_detr"  # of the metadata of a file: JSON with the name of its split, and all categories
SHARD_BYTES = 500_000_000  # about how large a file becomes
_NUMBERED = re.compile(r"(?P<start>.+)-\d{5,}-of-(?P<count>\d{5,})\.parquet")
_MAX_ID = 2**63 - 1
_SURROGATE = re.compile(r"[\ud800-\udfff]")
ROWS = 100  # of a group, as the Hub advises for images


# Reading


@functools.lru_cache(maxsize=4096)
def _described(file: str, version: tuple[int, int]) -> dict[str, Any] | None:  # noqa: ARG001 (a key of the cache)
    """What `write` has noted in a file; None if another program wrote it."""
    import pyarrow.parquet

    try:
        text = (pyarrow.parquet.read_schema(file).metadata or {}).get(KEY)
        content: Any = json.loads(text or "null")
        known: dict[str, Any] = {
            "split": str(content["split"]),
            "categories": [Category(int(entry["id"]), str(entry["name"])) for entry in content["categories"]],
        }
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return known


def describe_file(file: Path) -> dict[str, Any] | None:
    """The name of the split and the categories that are noted in a file; None if another program wrote it."""
    try:
        status = file.stat()
    except OSError:
        return None
    return _described(str(file), (status.st_size, status.st_mtime_ns)) if status.st_size else None


def find_own_files(path: Path) -> list[Path]:
    """The Parquet files at `path`, a folder or a file, if this package wrote them; empty otherwise."""
    files = [path] if path.suffix.lower() == ".parquet" else parquet_files(path) if path.is_dir() else []
    return files if files and describe_file(files[0]) is not None else []


def read_parquet(path: str | Path, findings: Findings | None = None, task: Purpose = "detection") -> DetectionIndex:
    """Read what `detr data convert --to parquet` has written.

    Args:
        path: The folder, or one of its files.
        findings: Collects problems; None: the first error is raised.
        task: See `open_dataset`; masks are only read if it needs them.

    Raises:
        DatasetReadError: A file is damaged, or belongs to another dataset.
        DatasetError: An entry is invalid.
    """
    findings = Findings() if findings is None else findings
    files: dict[str, list[Path]] = {}
    categories: list[Category] | None = None
    found = find_own_files(Path(path))
    if Path(path).is_dir():
        _check_complete(found)
    for file in found:
        described = describe_file(file)
        if described is None or (categories is not None and described["categories"] != categories):
            problem = "not a readable part of this dataset: its classes differ, or it is damaged"
            raise DatasetReadError(file, problem, "remove it, or write the dataset again")
        categories = described["categories"]
        files.setdefault(described["split"], []).append(file)
    records: list[ImageRecord] = []
    tables: list[AnnotationTable] = []
    members: dict[str, NDArray[np.int64]] = {}
    with explain_errors(path):
        tables_of = load_parquet(files)
        splits = {
            name: read_columns(f"{path}[{name}]", rows, with_masks=task != "detection")
            for name, rows in tables_of.items()
        }
        numbers = {name: _numbers(rows) for name, rows in tables_of.items()}
    for name, split in splits.items():
        own, table = _to_index(split, numbers[name], len(categories or ()), task, findings)
        tables.append(dataclasses.replace(table, image_index=table.image_index + len(records)))
        members[name] = np.arange(len(records), len(records) + len(own))
        records += own
    table = AnnotationTable.concatenate(tables)
    return DetectionIndex(
        Path(path).resolve().stem, tuple(records), tuple(categories or ()), table, members, tuple(findings.notes)
    )


def _check_complete(files: Sequence[Path]) -> None:
    """Checks that no file is missing, by the numbers in their names.

    Raises:
        DatasetReadError: One is.
    """
    folder_of = {file.name: file.parent for file in files}
    matches = filter(None, map(_NUMBERED.fullmatch, folder_of))
    for (start, count), name in {match.group("start", "count"): match[0] for match in matches}.items():
        numbered = (f"{start}-{number:05d}-of-{count}.parquet" for number in range(min(int(count), len(files) + 1)))
        missing = next((other for other in numbered if other not in folder_of), None)
        if missing is not None:
            raise DatasetReadError(folder_of[name] / missing, "is missing", "copy it, or write the dataset again")


def _read(path: str | Path, *, findings: Findings, task: Purpose) -> DetectionIndex:
    return read_parquet(path, findings, task)


def _numbers(rows: Any) -> list[int | None]:
    values: list[int | None] = rows["number"][:] if "number" in rows.column_names else [None] * len(rows)
    return values


def _to_index(
    split: SplitColumns, numbers: Sequence[int | None], num_classes: int, task: Purpose, findings: Findings
) -> tuple[list[ImageRecord], AnnotationTable]:
    sizes = np.zeros((len(split.paths), 2), np.int64) if split.sizes is None else split.sizes
    has_none = [reader is None for reader in split.readers]  # a path alone could be that of any file
    wrong = np.flatnonzero((sizes < 1).any(1) | (sizes.prod(1) > MAX_PIXELS) | has_none)
    for row in wrong.tolist():
        where = f"{split.where}, row {row} (image {split.ids[row]!r})"
        findings.error("image entry", where, "no image, or no valid width and height", "write the dataset again")
    usable = np.setdiff1d(np.arange(len(sizes)), wrong)
    label = np.array([value if isinstance(value, int) else -1 for value in split.classes], np.int64)
    outside = np.flatnonzero((label < 0) | (label >= num_classes))
    for row in outside.tolist():
        problem = f"got class {split.classes[row]!r}, expected 0 to {num_classes - 1}"
        findings.error("unknown class", split.describe(row), problem, "write the dataset again")
    kept = np.setdiff1d(np.flatnonzero(np.isin(split.row, usable)), outside)
    image_index = np.searchsorted(usable, split.row[kept])
    sizes, masks = sizes[usable], None
    if task != "detection":
        kept, masks = _masks(split, kept, sizes[image_index], task == "conversion", findings)
        image_index = np.searchsorted(usable, split.row[kept])
    boxes = split.boxes[kept].copy()
    boxes[:, 2:] += boxes[:, :2]
    table = clean_annotations(
        image_index=image_index,
        label=label[kept],
        boxes_xyxy=boxes,
        image_sizes=sizes,
        describe=lambda row: split.describe(int(kept[row])),
        findings=findings,
        area=None if split.area is None else split.area[kept],
        is_crowd=None if split.is_crowd is None else split.is_crowd[kept],
        masks=masks,
        attributes={name: values[kept] for name, values in split.attributes.items()},
    )
    records = [
        ImageRecord(split.ids[row], split.paths[row], height, width, split.readers[row], numbers[row])
        for row, (height, width) in zip(usable.tolist(), sizes.tolist(), strict=True)
    ]
    return records, table


def _masks(
    split: SplitColumns, rows: NDArray[np.int64], sizes: NDArray[np.int64], optional: bool, findings: Findings
) -> tuple[NDArray[np.int64], MaskColumn | None]:
    """The masks of objects, and the rows (A,) that are kept: without `optional`, those that have one."""
    written = split.segmentations
    if written is None:
        return (rows, None) if optional else (rows[:0], None)
    entries = [{"segmentation": _parsed(written[row])} for row in rows.tolist()]
    masks, without = read_segmentations(
        entries, sizes, lambda row: split.describe(int(rows[row])), findings, optional=optional
    )
    return np.delete(rows, without), masks


def _parsed(text: object) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return text  # which is reported as invalid


# Writing


def _write(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:  # noqa: ARG001 (nothing to link)
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    refuse_shared_names(index, "parquet")
    _refuse_other_ids(index)
    notes = [*warn_of_stuff(index), *note_several_splits(index, "parquet")]
    homes = home_splits(index)
    if not _are_unique(index, homes):
        notes.append("image ids are not unique within a split: rows are numbered instead.")
    features = datasets.Features(_features(datasets, index))
    (folder / "data").mkdir()
    names = file_names_of(homes)
    for split, members in homes.items():
        noted = {"split": split, "categories": [{"id": entry.id, "name": entry.name} for entry in index.categories]}
        own = features.arrow_schema
        schema = own.with_metadata({**(own.metadata or {}), KEY: json.dumps(noted).encode()})
        shards: list[Path] = []
        writer: Any = None
        try:
            for rows in _groups(index, members):
                if writer is None or shards[-1].stat().st_size > SHARD_BYTES:
                    if writer is not None:
                        writer.close()
                    shards.append(folder / "data" / f"{names[split]}-{len(shards):05d}.parquet")
                    writer = pyarrow.parquet.ParquetWriter(shards[-1], schema, compression="snappy")
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        finally:
            if writer is not None:
                writer.close()
        for shard in shards:
            shard.rename(shard.with_stem(f"{shard.stem}-of-{len(shards):05d}"))
    return WrittenDataset(index, [], notes, keeps_splits=False, exact_masks=True, rows=homes)


def _refuse_other_ids(index: DetectionIndex) -> None:
    for record in index.images:
        for value in (record.id, record.number):
            if isinstance(value, int) and not -_MAX_ID <= value <= _MAX_ID:
                raise DatasetError(record.path, f"its id {value} has more than 64 bits", "number the images anew")
            if isinstance(value, str) and _SURROGATE.search(value):
                raise DatasetError(record.path, f"its id {value!r} is not valid Unicode", "correct its id")


def _are_unique(index: DetectionIndex, homes: Mapping[str, NDArray[np.int64]]) -> bool:
    return all(len({str(index.images[image].id) for image in images}) == len(images) for images in homes.values())


def _features(datasets: Any, index: DetectionIndex) -> dict[str, Any]:
    """The columns, in the terms of `datasets`."""
    value, many = datasets.Value, datasets.List
    has_text = any(isinstance(record.id, str) for record in index.images)
    names = [category.name for category in index.categories]
    objects = {
        "id": many(value("int64")),
        "bbox": many(many(value("float64"))),
        "category": many(datasets.ClassLabel(names=names) if names else value("int64")),
        "area": many(value("float64")),
        "iscrowd": many(value("bool")),
    }
    if index.annotations.masks is not None and index.annotations.masks.is_present.any():
        objects["segmentation"] = many(value("string"))
    for name in index.annotations.attributes:
        objects[name] = many(value("float64" if name == SCORE else "int8"))
    columns = {
        "image": datasets.Image(),
        "image_id": value("string" if has_text else "int64"),
        "width": value("int32"),
        "height": value("int32"),
        "objects": objects,
    }
    if any(record.number is not None for record in index.images):
        columns["number"] = value("int64")
    return columns


def _groups(index: DetectionIndex, members: NDArray[np.int64]) -> Iterator[list[dict[str, Any]]]:
    """The rows of a split, a group at a time."""
    has_text = any(isinstance(record.id, str) for record in index.images)
    has_number = any(record.number is not None for record in index.images)
    for start in range(0, len(members), ROWS):
        rows = []
        for image in members[start : start + ROWS].tolist():
            record = index.images[image]
            content, name = image_file(record, image)
            row = {
                "image": {"bytes": content, "path": file_name_of(name)},
                "image_id": str(record.id) if has_text else record.id,
                "width": record.width,
                "height": record.height,
                "objects": _objects(index, image),
            }
            rows.append(row | ({"number": record.number} if has_number else {}))
        yield rows


def _objects(index: DetectionIndex, image: int) -> dict[str, list[Any]]:
    rows, record = index.annotation_rows(image), index.images[image]
    table = index.annotations.take(rows)
    objects: dict[str, list[Any]] = {  # a column that is not among the features is not written
        "id": list(range(rows.start + 1, rows.stop + 1)),
        "bbox": np.concatenate([table.boxes_xyxy[:, :2], exact_sizes(table.boxes_xyxy)], axis=1).tolist(),
        "category": table.label.tolist(),
        "area": table.area.tolist(),
        "iscrowd": table.is_crowd.tolist(),
    }
    if table.masks is not None:
        written = segmentations(table.masks, record.height, record.width)
        objects["segmentation"] = [None if mask is None else json.dumps(mask) for mask in written]
    for name, values in table.attributes.items():
        numbers = [None if math.isnan(value) else value for value in values.tolist()]
        objects[name] = numbers if name == SCORE else [None if value is None else int(value) for value in numbers]
    return objects


def exact_sizes(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width and height (A, 2) of boxes (A, 4) that give back the other corner to the last bit, if any size does.

    One does for boxes that were written as corner and size; for others, as for those of YOLO, the corner may differ by
    1e-12 pixels.
    """
    start, end = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    sizes = end - start
    for other in (np.nextafter(sizes, np.inf), np.nextafter(sizes, -np.inf)):
        sizes = np.where((start + sizes != end) & (start + other == end), other, sizes)
    return sizes


FORMAT = DatasetFormat(
    name="parquet",
    find=lambda path: bool(find_own_files(path)),
    read=_read,
    looked_for="*.parquet",
    evidence="Parquet files that `detr data convert` has written",
    tasks=("detection", "instance"),
    options=(CROWDS_OPTION,),
    write=_write,
    carries=frozenset(CONTENTS),
)
