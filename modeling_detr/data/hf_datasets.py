"""Reads datasets of Hugging Face's `datasets`: a Hub id, a folder of `save_to_disk`, parquet files.

    objects: {bbox: [[…]], category: […], area?: […], iscrowd?: […]}    the usual column, or a list of such structs
    bbox: [[…]], category: […]                                          or columns of the table itself

Images stay where they are: as bytes in the rows of memory-mapped files (`arrow_images`), or as files that rows name.
Boxes are in one of six conventions: `xywh`, `xyxy`, `cxcywh`, in pixels or with `_normalized` relative to the image.
Named by the user or found out; the notes say which was taken.

`pyarrow` comes with `datasets`; both are imported when a dataset of this kind is opened.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import clean_annotations
from modeling_detr.data.findings import Findings
from modeling_detr.data.image_files import header_sizes, is_split_name
from modeling_detr.structures_detr import UNSPLIT, AnnotationTable, Category, DetectionIndex, ImageRecord


BoxFormat = Literal["xywh", "xyxy", "cxcywh", "xywh_normalized", "xyxy_normalized", "cxcywh_normalized"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WHOLE = "whole"  # the split of files that name none: `datasets` reserves 'all'
_OBJECTS = ("objects", "annotations", "labels", "faces", "boxes")
_BOXES = ("bbox", "bboxes", "box", "boxes")
_CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "class_id", "class_label")
_AREAS = ("area", "areas")
_CROWDS = ("iscrowd", "is_crowd")
_IDS = ("image_id", "id")
# A box whose four numbers have names has said its convention.
_NAMED_BOXES: dict[tuple[str, ...], str] = {
    ("x", "y", "width", "height"): "xywh",
    ("x", "y", "w", "h"): "xywh",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("x0", "y0", "x1", "y1"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
}
_NORMALIZED_LIMIT = 1.5  # boxes relative to the image end at 1, or a little past it


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` may be a dataset's name on the Hub, owner/name."""
    return _HUB_ID.fullmatch(str(path)) is not None and not Path(path).exists()


def find_hf_files(path: Path) -> list[Path]:
    """The files that say that the dataset at `path` is one of `datasets`; none if it is not."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    saved = [path / "dataset_dict.json", path / "state.json"]
    found = [file for file in saved if file.is_file()]
    return found or _parquet_files(path)


def _parquet_files(path: Path) -> list[Path]:
    return sorted({*path.glob("*.parquet"), *path.glob("*/*.parquet"), *path.glob("*/*/*.parquet")})


def read_hf_dataset(
    path: str | Path, findings: Findings | None = None, box_format: str | None = None
) -> DetectionIndex:
    """Reads a dataset of `datasets`, every split of it.

    Class names are those of a ClassLabel feature, the words themselves where classes are words, else the numbers. The
    size of an image is that of its header. Rows without objects are images without objects.

    Args:
        path: A Hub id, a folder that `save_to_disk` wrote, a folder of parquet files or one of them.
        findings: Takes what is wrong; None: the first error is raised.
        box_format: One of `BoxFormat`. None: what the names of a box's numbers say, else what fits the boxes best.

    Raises:
        OSError: The dataset cannot be loaded, or an image not read.
        ValueError: It has no column of images or of boxes, or an entry is not what it should be.
    """
    if box_format is not None and box_format not in get_args(BoxFormat):
        raise ValueError(f"box_format is '{box_format}'; wanted one of {', '.join(get_args(BoxFormat))}.")
    findings = Findings() if findings is None else findings
    splits = {name: _read_split(f"{path}[{name}]", rows) for name, rows in _load(path).items()}
    categories, labels = _merge_classes(splits, findings)
    convention = _convention(path, splits, box_format, findings)

    images: list[ImageRecord] = []
    tables: list[AnnotationTable] = []
    members: dict[str, NDArray[np.int64]] = {}
    for name, split in splits.items():
        records, position_of_row = _records(split, findings)
        keep = (position_of_row[split.row] >= 0) & (labels[name] >= 0)
        image_index = position_of_row[split.row[keep]]
        sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
        kept = np.flatnonzero(keep)

        def describe(number: int, split: _Split = split, kept: NDArray[np.int64] = kept) -> str:
            return split.describe(int(kept[number]))

        table = clean_annotations(
            image_index=image_index,
            label=labels[name][keep],
            boxes_xyxy=_corners(split.boxes[keep], sizes[image_index], convention),
            image_sizes=sizes,
            describe=describe,
            findings=findings,
            area=None if split.area is None else split.area[keep],
            is_crowd=None if split.is_crowd is None else split.is_crowd[keep],
        )
        tables.append(replace(table, image_index=table.image_index + len(images)))
        members[name] = np.arange(len(images), len(images) + len(records))
        images.extend(records)
    name = str(path) if is_hub_id(path) else Path(path).resolve().name
    table = AnnotationTable.concatenate(tables)
    return DetectionIndex(name, tuple(images), categories, table, members, tuple(findings.notes))


# Loading


def _load(path: str | Path) -> dict[str, Any]:
    """Split → its `datasets.Dataset`, memory-mapped."""
    import datasets

    place = Path(path)
    with _quiet(datasets):
        if is_hub_id(path) or not place.exists():
            found = _from_hub(datasets, str(path))
        elif place.is_dir() and any(file.suffix == ".json" for file in find_hf_files(place)):
            found = datasets.load_from_disk(str(place), keep_in_memory=False)
        else:
            files: dict[str, list[str]] = {}
            for file in find_hf_files(place):
                files.setdefault(_split_of(file, place), []).append(str(file))
            if not files:
                raise FileNotFoundError(
                    f"{place} holds no dataset of `datasets`: no dataset_dict.json or state.json of save_to_disk, and "
                    f"no .parquet files."
                )
            try:
                found = datasets.load_dataset("parquet", data_files=files, keep_in_memory=False)
            except datasets.exceptions.DatasetGenerationError as error:
                reason = " ".join(str(error.__cause__ or error).split())
                raise OSError(f"{place}: its parquet files cannot be read ({reason}); write them anew.") from error
    if isinstance(found, datasets.DatasetDict):
        return {UNSPLIT if name == _WHOLE else name: rows for name, rows in found.items()}
    return {UNSPLIT: found}


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

    try:
        return datasets.load_dataset(name, keep_in_memory=False)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise OSError(
            f"{name}: no such folder or file here, and no dataset of that name came from the Hub ({reason})."
        ) from error


def _split_of(file: Path, root: Path) -> str:
    """`train` for train-00000-of-00002.parquet and for train/0000.parquet; `whole` where nothing says so."""
    inner = file.relative_to(root).parts[:-1] if root.is_dir() else ()
    for word in (re.split(r"[-_.]", file.stem)[0], *inner):
        if is_split_name(word):
            return word.replace("-", "_")
    return _WHOLE


# One split as columns


@dataclass(frozen=True, eq=False)
class _Split:
    """A split as it is written: R rows (images), A objects.

    Attributes:
        where: What it is called in messages.
        ids: (R,) id of each row.
        paths: (R,) path of each row's image, virtual or real; "" where it has none.
        sizes: (R, 2) height and width that the table gives; None: it gives none.
        row: (A,) row of each object.
        number: (A,) number of the object in its row, from 0.
        boxes: (A, 4) as written; not a number where there are not four.
        classes: (A,) as written: numbers or words; None where there is none.
        class_names: Names of a ClassLabel; None: it is none.
        area: (A,) areas, or None.
        is_crowd: (A,) crowd flags, or None.
        convention: What the names of a box's numbers say, or None.
    """

    where: str
    ids: Sequence[int | str]
    paths: Sequence[str]
    sizes: NDArray[np.int64] | None
    row: NDArray[np.int64]
    number: NDArray[np.int64]
    boxes: NDArray[np.float64]
    classes: Sequence[int | str | None]
    class_names: Sequence[str] | None
    area: NDArray[np.float64] | None
    is_crowd: NDArray[np.bool_] | None
    convention: str | None

    def describe(self, number: int) -> str:
        """Names an object in a message."""
        row = int(self.row[number])
        return f"{self.where}: object {int(self.number[number])} of row {row} (image {self.ids[row]!r})"


def _read_split(where: str, rows: Any) -> _Split:
    import pyarrow.compute as pc

    columns: list[str] = rows.column_names
    image_column = _image_column(where, rows)
    fields, features = _object_columns(rows)
    boxes_key = _first_of(_BOXES, fields)
    classes_key = _first_of(_CLASSES, fields)
    if boxes_key is None or classes_key is None:
        wanted = "boxes" if boxes_key is None else "classes"
        names = _BOXES if boxes_key is None else _CLASSES
        raise ValueError(
            f"{where}: there is no column of {wanted}; wanted 'objects' with one of {', '.join(names)} in it, or "
            f"such a column; it has {', '.join(columns)}"
            + (f", and {', '.join(fields)} of each object." if fields else ".")
        )
    parents = pc.list_parent_indices(fields[boxes_key]).to_numpy().astype(np.int64)
    starts = np.searchsorted(parents, parents)
    boxes, convention = _box_numbers(pc.list_flatten(fields[boxes_key]))
    area, crowd = _first_of(_AREAS, fields), _first_of(_CROWDS, fields)
    flat = {key: pc.list_flatten(fields[key]).to_pylist() for key in (classes_key, area, crowd) if key is not None}
    for key, values in flat.items():
        if len(values) != len(boxes):
            raise ValueError(
                f"{where}: its rows have {len(boxes)} {boxes_key} in all, but {len(values)} {key}; every object needs "
                f"one of each."
            )
    areas = None if area is None else np.array(flat[area], dtype=np.float64)
    return _Split(
        where=where,
        ids=_ids(rows),
        paths=_paths(where, rows, image_column),
        sizes=_sizes(rows),
        row=parents,
        number=np.arange(len(parents)) - starts,
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
    if not images:  # written by something that does not know the feature
        images = [name for name, feature in rows.features.items() if isinstance(feature, dict) and "bytes" in feature]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    if not images:
        raise ValueError(
            f"{where}: there is no column of images; wanted one with the feature Image, or structs with 'bytes'; it "
            f"has {', '.join(rows.column_names)}."
        )
    raise ValueError(f"{where}: has several columns of images, {', '.join(images)}; name the one to use 'image'.")


def _arrow(rows: Any, column: str) -> Any:
    """A column as one Arrow array."""
    combined = rows.select_columns([column]).with_format("arrow")[:].column(column).combine_chunks()
    if getattr(combined, "num_chunks", None) is not None:
        combined = combined.chunk(0)
    return combined


def _object_columns(rows: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Field → list array with one list a row, and field → its feature, from structs of lists, lists of structs, or
    columns of the table."""
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
    own = {name: rows.features[name] for name in (*_BOXES, *_CLASSES, *_AREAS, *_CROWDS) if name in rows.column_names}
    own = {name: feature for name, feature in own.items() if hasattr(feature, "feature")}
    return {name: _arrow(rows, name) for name in own}, {name: feature.feature for name, feature in own.items()}


def _box_numbers(flat: Any) -> tuple[NDArray[np.float64], str | None]:
    """Boxes (A, 4) as written, and their convention if their numbers have names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(flat.type):
        keys = {field.name for field in flat.type}
        for names, convention in _NAMED_BOXES.items():
            if keys >= {*names}:
                columns = [pc.struct_field(flat, name).cast(pa.float64()) for name in names]
                numbers = [column.to_numpy(zero_copy_only=False) for column in columns]
                return np.stack(numbers, axis=-1).reshape(-1, 4), convention
        raise ValueError(f"a box has the fields {', '.join(sorted(keys))}; wanted such as xmin, ymin, xmax, ymax.")
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


def _paths(where: str, rows: Any, column: str) -> list[str]:
    """The path of each row's image: of its file where it lies in one, else a virtual one."""
    from modeling_detr.data.arrow_images import read_table, row_path

    paths: list[str] = []
    for entry in rows.cache_files:
        file = str(Path(entry["filename"]).resolve())
        cells = read_table(file).column(column)
        for row in range(len(cells)):
            cell = cells[row]
            if cell["bytes"].is_valid:
                paths.append(row_path(file, column, row))
            else:
                paths.append(cell["path"].as_py() or "" if "path" in cell else "")
    if len(paths) != len(rows):
        raise ValueError(
            f"{where}: has {len(rows)} rows, but its files hold {len(paths)}; save it anew with save_to_disk."
        )
    return paths


# What it means


def _records(split: _Split, findings: Findings) -> tuple[list[ImageRecord], NDArray[np.int64]]:
    """The images, and the position (R,) of each row's among them; -1 for one that cannot be used."""
    records: list[ImageRecord] = []
    position_of_row = np.full(len(split.paths), -1, dtype=np.int64)
    other_size = []
    for row, path in enumerate(split.paths):
        where = f"{split.where}: row {row} (image {split.ids[row]!r})"
        if not path:
            findings.error("missing image", where, "has no image", "put it there, or remove the row")
            continue
        try:
            upright, stored = header_sizes(path)
        except OSError as error:
            findings.unreadable_image(path, error)
            continue
        size = upright
        if split.sizes is not None:
            given = (int(split.sizes[row, 0]), int(split.sizes[row, 1]))
            size = stored if given == stored else upright
            if given != size:
                other_size.append((where, given, size))
        position_of_row[row] = len(records)
        records.append(ImageRecord(split.ids[row], path, *size))
    if other_size:
        where, given, size = other_size[0]
        findings.warn(
            "image size",
            f"{len(other_size)} images have another size than the columns height and width say, and theirs is taken; "
            f"the first: {where}, {size[0]}x{size[1]} (height x width), not {given[0]}x{given[1]}.",
            "the size of the image is taken",
            (
                (where, f"is {size[0]}x{size[1]} (height x width), but the columns say {given[0]}x{given[1]}")
                for where, given, size in other_size
            ),
        )
    return records, position_of_row


def _merge_classes(
    splits: Mapping[str, _Split], findings: Findings
) -> tuple[tuple[Category, ...], dict[str, NDArray[np.int64]]]:
    """The categories over all splits, and the label (A,) of each split's objects; -1 for one without a class."""
    named = [list(split.class_names) for split in splits.values() if split.class_names is not None]
    if any(names != named[0] for names in named):
        raise ValueError(
            f"the splits name their classes differently: {named[0]} and "
            f"{next(names for names in named if names != named[0])}; the splits of one dataset must agree."
        )
    if named:
        names = named[0]
        categories = tuple(Category(number, name) for number, name in enumerate(names))
        label_of: dict[Any, int] = {number: number for number in range(len(names))}
        label_of.update({name: number for number, name in enumerate(names)})
    else:
        written = {value for split in splits.values() for value in split.classes if value is not None}
        if all(isinstance(value, int) for value in written):
            categories = tuple(Category(int(value), str(value)) for value in sorted(written))
            label_of = {category.id: label for label, category in enumerate(categories)}
        else:
            categories = tuple(Category(label, str(value)) for label, value in enumerate(sorted(map(str, written))))
            label_of = {category.name: category.id for category in categories}
    known = ", ".join(category.name for category in categories)[:300]
    labels = {}
    for name, split in splits.items():
        label = np.array([label_of.get(value, -1) for value in split.classes], dtype=np.int64)
        for number in np.flatnonzero(label < 0).tolist():
            findings.error(
                "unknown class",
                split.describe(number),
                f"has the class {split.classes[number]!r}, but the dataset's are {known}",
                "fix the object, or name the class in the ClassLabel",
            )
        labels[name] = label
    return categories, labels


class _Fit(NamedTuple):
    name: str
    misfits: int


def _convention(path: str | Path, splits: Mapping[str, _Split], named: str | None, findings: Findings) -> str:
    """The convention of all boxes: as named, as their fields say, else the one that most of them fit."""
    said = next((split.convention for split in splits.values() if split.convention is not None), None)
    if named is not None:
        findings.notes.append(f"{path}: its boxes are taken as {named}, as you say.")
        return named
    numbers, limits, areas = _sample(splits)
    finite = np.isfinite(numbers).all(axis=-1)
    numbers, limits, areas = numbers[finite], limits[finite], areas[finite]
    normalized = len(numbers) > 0 and float(np.quantile(numbers, 0.99)) <= _NORMALIZED_LIMIT
    normalized = normalized and not bool((numbers == np.floor(numbers)).all())
    if normalized:
        limits = np.ones_like(limits)
    end = "_normalized" if normalized else ""
    unit = "relative to the image" if normalized else "in pixels"
    if said is not None:
        return said + end
    fits = [_Fit(name, _misfits(numbers, limits, areas, name)) for name in ("xywh", "xyxy", "cxcywh")]
    fits.sort(key=lambda fit: fit.misfits)  # of those that fit alike, the first: COCO's, which most have
    best, *others = fits
    alike = [fit.name for fit in others if fit.misfits == best.misfits]
    told = ", ".join(f"{fit.misfits} of {len(numbers)} do not fit {fit.name}" for fit in fits)
    doubt = f"; {' and '.join(alike)} would fit as well" if alike else ""
    note = (
        f"{path}: its boxes were found to be {best.name}, {unit} ({told}{doubt}); if that is wrong, name it with "
        f"box_format={'xyxy' if best.name != 'xyxy' else 'xywh'}{end}."
    )
    if alike or best.misfits > len(numbers) / 100:
        what = f"does not say how its boxes are written ({told}{doubt})"
        findings.warn("box format", note, f"they are taken as {best.name}{end}; box_format names it", [(path, what)])
    else:
        findings.notes.append(note)
    return best.name + end


def _sample(
    splits: Mapping[str, _Split],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Some boxes (N, 4), the width and height (N, 2) of their images, and areas (N,) where the table has them."""
    boxes, limits, areas = [], [], []
    for split in splits.values():
        chosen = np.unique(np.linspace(0, len(split.row) - 1, min(len(split.row), 20_000)).astype(np.int64))
        wanted = np.unique(split.row[chosen])[:2000]
        size_of: dict[int, tuple[int, int]] = {}
        for row in wanted.tolist():
            with contextlib.suppress(OSError):  # said when images are gone through
                size_of[row] = header_sizes(split.paths[row])[0]
        chosen = chosen[np.isin(split.row[chosen], list(size_of))]
        boxes.append(split.boxes[chosen])
        limits.append(np.array([size_of[row][::-1] for row in split.row[chosen].tolist()], float).reshape(-1, 2))
        areas.append(split.area[chosen] if split.area is not None else np.full(len(chosen), np.nan))
    return np.concatenate(boxes), np.concatenate(limits), np.concatenate(areas)


def _misfits(
    boxes: NDArray[np.float64], limits: NDArray[np.float64], areas: NDArray[np.float64], convention: str
) -> int:
    """How many boxes would have no area or end past the edge, or be smaller than the area that they are said to
    have (of a mask or of the box)."""
    first, second = boxes[:, :2], boxes[:, 2:]
    slack = 0.01 * limits.max(axis=-1, keepdims=True)
    if convention == "xyxy":
        start, end = first, second
    elif convention == "xywh":
        start, end = first, first + second
    else:
        start, end = first - second / 2, first + second / 2
    wrong = (end <= start).any(axis=-1) | (start < -slack).any(axis=-1) | (end > limits + slack).any(axis=-1)
    if (limits > 1).all():
        own = (end - start).prod(axis=-1)
        wrong |= np.isfinite(areas) & (areas > 1) & (own < 0.9 * areas)
    return int(wrong.sum())


def _corners(boxes: NDArray[np.float64], sizes: NDArray[np.int64], convention: str) -> NDArray[np.float64]:
    kind, _, normalized = convention.partition("_")
    if normalized:
        boxes = boxes * sizes[:, [1, 0, 1, 0]]
    first, second = boxes[:, :2], boxes[:, 2:]
    if kind == "xywh":
        return np.concatenate([first, first + second], axis=-1)
    if kind == "cxcywh":
        return np.concatenate([first - second / 2, first + second / 2], axis=-1)
    return boxes
