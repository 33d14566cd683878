"""The format `hf` of Hugging Face's `datasets`: a Hub id, a `save_to_disk` folder, or parquet files. Read-only.

    objects: {bbox: [[…]], category: […], area?: […], iscrowd?: […]}    the usual column, also as a list of structs
    bbox: [[…]], category: […]                                          or top-level columns

The boxes of a row may also be one flat list, with four numbers per object.

Images stay where they are: as bytes in the rows of memory-mapped files (`arrow_rows`), or as files that the rows refer
to. The convention of the boxes is set by the user or detected (`hf_boxes`); a note says which one is used.

`pyarrow` comes with `datasets`; both are only imported when a dataset of this format is opened.
"""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import clean_annotations
from modeling_detr.data.dataset_format import BOX_FORMAT_OPTION, IMAGES_OPTION, BoxFormat, DatasetFormat
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.hf_boxes import NAMED_BOXES, BoxSample, detect_convention, to_corners
from modeling_detr.data.image_headers import header_sizes
from modeling_detr.data.image_paths import is_split_name, refuse_outside
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError, did_you_mean
from modeling_detr.hub_connection import offline_if_unreachable
from modeling_detr.structures_detr import (
    UNSPLIT,
    AnnotationTable,
    Category,
    DetectionIndex,
    ImageReader,
    ImageRecord,
    Task,
)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOOKED_FOR = "a folder written by save_to_disk, .parquet files, or a Hub id (owner/name)"
_WHOLE = "whole"  # split of files without a split in their path; `datasets` reserves 'all'
_OBJECTS = ("objects", "annotations", "labels", "faces", "boxes")
_BOXES = ("bbox", "bboxes", "box", "boxes")
_CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "class_id", "class_label")
_AREAS = ("area", "areas")
_CROWDS = ("iscrowd", "is_crowd")
_IDS = ("image_id", "id")


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` may be the id of a dataset on the Hub, owner/name."""
    return _HUB_ID.fullmatch(str(path)) is not None and not Path(path).exists()


def find_hf_files(path: Path) -> list[Path]:
    """Find the files that identify `path` as a dataset of `datasets`; empty if it is not."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    saved = [path / "dataset_dict.json", path / "state.json"]
    return [file for file in saved if file.is_file()] or _parquet_files(path)


def _parquet_files(path: Path) -> list[Path]:
    return sorted({*path.glob("*.parquet"), *path.glob("*/*.parquet"), *path.glob("*/*/*.parquet")})


def read_hf_dataset(
    path: str | Path,
    findings: Findings | None = None,
    box_format: str | None = None,
    images: str | Path | None = None,
) -> DetectionIndex:
    """Read a dataset of `datasets`, with all of its splits.

    Class names come from the ClassLabel feature; without one, they are the classes as written, words or numbers. The
    size of an image comes from its header. Rows without objects are images without objects.

    Args:
        path: A Hub id, a folder written by `save_to_disk`, a folder of parquet files, or a parquet file.
        findings: Collects problems; None: the first error is raised.
        box_format: One of `BoxFormat`; None: detected from the names of a box's numbers, or else by the best fit.
        images: A folder outside the dataset's folder with images that the rows refer to by path.

    Raises:
        DatasetReadError: The dataset cannot be loaded, or an image cannot be read.
        DatasetError: There is no column of images or boxes, or an entry is invalid.
    """
    if box_format is not None and box_format not in get_args(BoxFormat):
        raise DatasetError("box_format", f"got '{box_format}'", did_you_mean(box_format, get_args(BoxFormat)))
    findings = Findings() if findings is None else findings
    splits = {name: _read_split(f"{path}[{name}]", rows) for name, rows in _load(path).items()}
    files = [
        file
        for split in splits.values()
        for file, reader in zip(split.paths, split.readers, strict=True)
        if not reader
    ]
    refuse_outside(filter(None, files), [*_roots(path), images], findings)
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
        records, table = _to_index(split, labels[name], convention, findings)
        tables.append(replace(table, image_index=table.image_index + len(all_records)))
        members[name] = np.arange(len(all_records), len(all_records) + len(records))
        all_records.extend(records)
    name = str(path) if is_hub_id(path) else Path(path).resolve().name
    table = AnnotationTable.concatenate(tables)
    return DetectionIndex(name, tuple(all_records), categories, table, members, tuple(findings.notes))


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Task,  # noqa: ARG001
    box_format: str | None = None,
    images: str | Path | None = None,
) -> DetectionIndex:
    return read_hf_dataset(path, findings, box_format, images)


def _roots(path: str | Path) -> list[str | Path]:
    """Return the folders that may contain the images of a dataset: its own, or for one from the Hub, the caches."""
    place = Path(path)
    if place.exists():
        return [place if place.is_dir() else place.parent]
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return [str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE]


def _to_index(
    split: "_Split", label: NDArray[np.int64], convention: str, findings: Findings
) -> tuple[list[ImageRecord], AnnotationTable]:
    """Build the images and objects of one split; `label` (A,) is -1 for objects without a class."""
    records, index_of_row = _records(split, findings)
    kept = np.flatnonzero((index_of_row[split.row] >= 0) & (label >= 0))
    image_index = index_of_row[split.row[kept]]
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
    )
    return records, table


# Loading


def _load(path: str | Path) -> dict[str, Any]:
    """Load the memory-mapped `datasets.Dataset` of each split."""
    import datasets

    place = Path(path)
    with _quiet(datasets):
        if is_hub_id(path) or not place.exists():
            loaded = _from_hub(datasets, str(path))
        elif place.is_dir() and any(file.suffix == ".json" for file in find_hf_files(place)):
            loaded = datasets.load_from_disk(str(place), keep_in_memory=False)
        else:
            loaded = _from_parquet(datasets, place)
    if isinstance(loaded, datasets.DatasetDict):
        return {UNSPLIT if name == _WHOLE else name: rows for name, rows in loaded.items()}
    return {UNSPLIT: loaded}


def _from_parquet(datasets: Any, place: Path) -> Any:
    files: dict[str, list[str]] = {}
    for file in find_hf_files(place):
        files.setdefault(_split_of(file, place), []).append(str(file))
    if not files:
        raise DatasetNotFoundError(place, "no dataset of `datasets`", f"expected {_LOOKED_FOR}")
    try:
        return datasets.load_dataset("parquet", data_files=files, keep_in_memory=False)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DatasetReadError(place, f"unreadable parquet files ({reason})", "write them again") from error


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bar()


def _from_hub(datasets: Any, name: str) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    if name.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
        # it would read the files of the working directory; "pandas" unpickles them in versions before 5.2
        raise DatasetNotFoundError(name, "a builder of `datasets`, not a dataset", f"expected {_LOOKED_FOR}")
    try:
        with offline_if_unreachable():
            return datasets.load_dataset(name, keep_in_memory=False)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        problem = f"no such file or folder, and it could not be loaded from the Hub ({reason})"
        raise DatasetReadError(name, problem) from error


def _split_of(file: Path, root: Path) -> str:
    """Return `train` for train-00000-of-00002.parquet and train/0000.parquet, `whole` for paths without a split."""
    inner = file.relative_to(root).parts[:-1] if root.is_dir() else ()
    for word in (re.split(r"[-_.]", file.stem)[0], *inner):
        if is_split_name(word):
            return word.replace("-", "_")
    return _WHOLE


# One split as columns


@dataclass(frozen=True, eq=False)
class _Split:
    """A split as written, with R rows (images) and A objects.

    Attributes:
        where: Name of the split in messages.
        ids: (R,) id of each row.
        paths: (R,) path of each row's image, virtual or real; "" where missing.
        readers: (R,) reader of each row's image; None where it is a file.
        sizes: (R, 2) height and width in the table; None: the table has none.
        row: (A,) row of each object.
        object_index: (A,) index of the object in its row.
        boxes: (A, 4) as written; NaN where a box does not have four numbers.
        classes: (A,) as written: numbers or words; None where missing.
        class_names: Names of the ClassLabel; None: there is no ClassLabel.
        area: (A,) areas; None: the table has none.
        is_crowd: (A,) crowd flags; None: the table has none.
        convention: Convention according to the names of a box's numbers; None: they have no names.
    """

    where: str
    ids: Sequence[int | str]
    paths: Sequence[str]
    readers: Sequence[ImageReader | None]
    sizes: NDArray[np.int64] | None
    row: NDArray[np.int64]
    object_index: NDArray[np.int64]
    boxes: NDArray[np.float64]
    classes: Sequence[int | str | None]
    class_names: Sequence[str] | None
    area: NDArray[np.float64] | None
    is_crowd: NDArray[np.bool_] | None
    convention: str | None

    def describe(self, index: int) -> str:
        """Name an object in a message."""
        row = int(self.row[index])
        return f"{self.where}, object {int(self.object_index[index])} of row {row} (image {self.ids[row]!r})"


def _read_split(where: str, rows: Any) -> _Split:
    import pyarrow.compute as pc

    columns: list[str] = rows.column_names
    image_column = _image_column(where, rows)
    fields, features = _object_columns(rows)
    boxes_key = _first_of(_BOXES, fields)
    classes_key = _first_of(_CLASSES, fields)
    if boxes_key is None or classes_key is None:
        missing, names = ("boxes", _BOXES) if boxes_key is None else ("classes", _CLASSES)
        objects = f"; each object has {', '.join(fields)}" if fields else ""
        raise DatasetError(
            where,
            f"no column of {missing}; the columns are {', '.join(columns)}{objects}",
            f"expected a column 'objects' with one of the fields {', '.join(names)}, or a column with such a name",
        )
    fields[boxes_key] = _grouped(where, boxes_key, fields[boxes_key], fields[classes_key])
    parents = pc.list_parent_indices(fields[boxes_key]).to_numpy().astype(np.int64)
    starts = np.searchsorted(parents, parents)
    boxes, convention = _box_numbers(where, pc.list_flatten(fields[boxes_key]))
    area, crowd = _first_of(_AREAS, fields), _first_of(_CROWDS, fields)
    flat = {key: pc.list_flatten(fields[key]).to_pylist() for key in (classes_key, area, crowd) if key is not None}
    for key, values in flat.items():
        if len(values) != len(boxes):
            raise DatasetError(
                where,
                f"'{boxes_key}' and '{key}' have different lengths, {len(boxes)} and {len(values)} in total",
                "make the lists of each row equally long",
            )
    areas = None if area is None else np.array(flat[area], dtype=np.float64)
    paths, readers = _images(where, rows, image_column)
    return _Split(
        where=where,
        ids=_ids(rows),
        paths=paths,
        readers=readers,
        sizes=_sizes(rows),
        row=parents,
        object_index=np.arange(len(parents)) - starts,
        boxes=boxes,
        classes=flat[classes_key],
        class_names=_class_names(features.get(classes_key)),
        area=areas,
        is_crowd=None if crowd is None else np.array([bool(flag) for flag in flat[crowd]], dtype=np.bool_),
        convention=convention,
    )


def _first_of(names: Sequence[str], among: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in among), None)


def _image_column(where: str, rows: Any) -> str:
    import datasets

    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not images:  # written without the feature Image
        images = [name for name, feature in rows.features.items() if isinstance(feature, dict) and "bytes" in feature]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    if not images:
        problem = f"no image column; the columns are {', '.join(rows.column_names)}"
        raise DatasetError(where, problem, "expected a column with the feature Image, or of structs with 'bytes'")
    raise DatasetError(where, f"several columns of images, {', '.join(images)}", "rename the one to use to 'image'")


def _arrow(rows: Any, column: str) -> Any:
    """Return a column as one Arrow array."""
    combined = rows.select_columns([column]).with_format("arrow")[:].column(column).combine_chunks()
    if getattr(combined, "num_chunks", None) is not None:
        combined = combined.chunk(0)
    return combined


def _object_columns(rows: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the list array (one list per row) and the feature of each field of the objects, by name.

    The fields may be structs of lists, lists of structs, or top-level columns.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in _OBJECTS:
        if name not in rows.column_names:
            continue
        column, feature = _arrow(rows, name), rows.features[name]
        inner = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
        if not isinstance(inner, dict):
            continue
        if pa.types.is_struct(column.type):
            lists = {field.name: pc.struct_field(column, field.name) for field in column.type}
            return lists, {key: getattr(value, "feature", value) for key, value in inner.items()}
        structs = pc.list_flatten(column)
        # A null row is an empty list; offsets of the flat values follow from the lengths.
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
        lists = {
            field.name: pa.LargeListArray.from_arrays(offsets, pc.struct_field(structs, field.name))
            for field in structs.type
        }
        return lists, inner
    names = [name for name in (*_BOXES, *_CLASSES, *_AREAS, *_CROWDS) if name in rows.column_names]
    features = {name: rows.features[name].feature for name in names if hasattr(rows.features[name], "feature")}
    return {name: _arrow(rows, name) for name in features}, features


def _grouped(where: str, key: str, boxes: Any, classes: Any) -> Any:
    """Group the numbers of a row by four if they are one flat list, with four numbers per class."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = boxes.type.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return boxes
    counts, expected = (
        pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        for lists in (boxes, classes)
    )
    wrong = np.flatnonzero(counts != 4 * expected)
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(
            f"{where}, row {row}",
            f"'{key}' has {counts[row]} numbers for {expected[row]} objects, expected four numbers per object",
            "write a list of boxes, each a list of four numbers",
        )
    grouped = pa.FixedSizeListArray.from_arrays(pc.list_flatten(boxes), 4)
    return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(expected)]), pa.int64()), grouped)


def _box_numbers(where: str, flat: Any) -> tuple[NDArray[np.float64], str | None]:
    """Return boxes (A, 4) as written, and their convention if their numbers have names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(flat.type):
        keys = {field.name for field in flat.type}
        for names, convention in NAMED_BOXES.items():
            if keys >= {*names}:
                columns = [pc.struct_field(flat, name).cast(pa.float64()) for name in names]
                numbers = [column.to_numpy(zero_copy_only=False) for column in columns]
                return np.stack(numbers, axis=-1).reshape(-1, 4), convention
        raise DatasetError(
            where, f"boxes have the fields {', '.join(sorted(keys))}, expected for example xmin, ymin, xmax, ymax"
        )
    boxes = np.full((len(flat), 4), np.nan)
    whole = pc.fill_null(pc.equal(pc.list_value_length(flat), 4), False)
    numbers = pc.list_flatten(flat.filter(whole)).cast(pa.float64()).to_numpy(zero_copy_only=False)
    boxes[whole.to_numpy(zero_copy_only=False)] = numbers.reshape(-1, 4)
    return boxes, None


def _class_names(feature: Any) -> list[str] | None:
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return list(names) if names else None


def _ids(rows: Any) -> list[int | str]:
    for name in _IDS:
        if name in rows.column_names:
            values: list[Any] = _arrow(rows, name).to_pylist()
            if all(isinstance(value, int | str) for value in values) and len(set(values)) == len(values):
                return values
    return list(range(len(rows)))


def _sizes(rows: Any) -> NDArray[np.int64] | None:
    if not {"height", "width"} <= {*rows.column_names}:
        return None
    columns = [[value or 0 for value in _arrow(rows, name).to_pylist()] for name in ("height", "width")]
    if not all(isinstance(value, int) for column in columns for value in column):
        return None
    return np.array(columns, dtype=np.int64).T


def _images(where: str, rows: Any, column: str) -> tuple[list[str], list[ImageReader | None]]:
    """Return path and reader of each row's image: a virtual path if the row contains the bytes, else a file's."""
    from modeling_detr.data.formats.arrow_rows import read_row, read_table, row_path

    paths: list[str] = []
    readers: list[ImageReader | None] = []
    for entry in rows.cache_files:
        file = str(Path(entry["filename"]).resolve())
        cells = read_table(file).column(column)
        for row in range(len(cells)):
            cell = cells[row]
            if cell["bytes"].is_valid:
                paths.append(row_path(file, column, row))
                readers.append(read_row)
            else:
                readers.append(None)
                paths.append(cell["path"].as_py() or "" if "path" in cell else "")
    if len(paths) != len(rows):
        raise DatasetError(
            where, f"{len(rows)} rows, but its Arrow files have {len(paths)}", "save it again with save_to_disk"
        )
    return paths, readers


# Images, classes and a sample of the boxes


def _records(split: _Split, findings: Findings) -> tuple[list[ImageRecord], NDArray[np.int64]]:
    """Read the sizes of the images; also return the index of each row's image (R,), -1 if it is unusable."""
    records: list[ImageRecord] = []
    index_of_row = np.full(len(split.paths), -1, dtype=np.int64)
    other_size = []
    for row, (path, reader) in enumerate(zip(split.paths, split.readers, strict=True)):
        where = f"{split.where}, row {row} (image {split.ids[row]!r})"
        if not path:
            findings.error("missing image", where, "no image", "add it, or remove the row")
            continue
        try:
            upright, stored = header_sizes(path, reader)
        except DatasetReadError as error:
            findings.add("unreadable image", error, image=path)
            continue
        size = upright
        if split.sizes is not None:
            given = (int(split.sizes[row, 0]), int(split.sizes[row, 1]))
            size = stored if given == stored else upright
            if given != size:
                other_size.append((where, f"{size[0]}x{size[1]} (height x width), not {given[0]}x{given[1]}"))
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
    path: str, splits: Mapping[str, _Split], findings: Findings
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


def _sample(split: _Split) -> BoxSample:
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
    looked_for=_LOOKED_FOR,
    options=(
        IMAGES_OPTION,
        BOX_FORMAT_OPTION,
    ),
    is_name=lambda text, chosen: is_hub_id(text) or (chosen and "/" not in text and not Path(text).exists()),
)
