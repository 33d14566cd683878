"""Read the columns of a table of `datasets`: images, boxes, classes, in any of the usual layouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.formats.hf_boxes import NAMED_BOXES
from modeling_detr.data.formats.image_metadata import is_name_column
from modeling_detr.data.formats.object_attributes import attribute_columns, attribute_name
from modeling_detr.data.formats.written_values import to_flag
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import ImageReader


_OBJECTS = ("objects", "annotations", "labels", "faces", "boxes")
_BOXES = ("bbox", "bboxes", "box", "boxes")
_CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "class_id", "class_label")
_AREAS = ("area", "areas")
_CROWDS = ("iscrowd", "is_crowd")
_SEGMENTATION = "segmentation"
_IDS = ("image_id", "id")


@dataclass(frozen=True, eq=False)
class SplitColumns:
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
        attributes: Name → (A,) values; see `AnnotationTable`.
        unused: Names of the fields of objects that are not used.
        folders: (R,) folder of the table of each row, near which its image is; None: the dataset's.
        segmentations: (A,) masks as written; None: there are none, or they are not requested.
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
    attributes: Mapping[str, NDArray[np.float64]]
    unused: Sequence[str]
    folders: Sequence[str] | None = None
    segmentations: Sequence[Any] | None = None

    def describe(self, index: int) -> str:
        """Name an object in a message."""
        row = int(self.row[index])
        return f"{self.where}, object {int(self.object_index[index])} of row {row} (image {self.ids[row]!r})"


def read_columns(where: str, rows: Any, with_masks: bool = False) -> SplitColumns:
    """Read the columns of one split.

    Args:
        where: Name of the split in messages.
        rows: The `datasets.Dataset`.
        with_masks: Read the column of segmentations too.

    Raises:
        DatasetError: There is no column of images, boxes or classes, or their lengths differ.
    """
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
    masks = _SEGMENTATION if with_masks and _SEGMENTATION in fields else None
    used = [key for key in (classes_key, area, crowd, masks) if key is not None]
    flat = {key: pc.list_flatten(fields[key]).to_pylist() for key in used}
    for key, values in flat.items():
        if len(values) != len(boxes):
            raise DatasetError(
                where,
                f"'{boxes_key}' and '{key}' have different lengths, {len(boxes)} and {len(values)} in total",
                "make the lists of each row equally long",
            )
    areas = None if area is None else np.array(flat[area], dtype=np.float64)
    named = {key: attribute_name(key) for key in fields}
    marks = {key: pc.list_flatten(fields[key]).to_pylist() for key, name in named.items() if name is not None}
    marks = {key: values for key, values in marks.items() if len(values) == len(boxes)}
    paths, readers = _images(where, rows, image_column)
    return SplitColumns(
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
        is_crowd=None if crowd is None else np.array([to_flag(flag) for flag in flat[crowd]], dtype=np.bool_),
        convention=convention,
        attributes=_attributes({str(named[key]): values for key, values in marks.items()}),
        segmentations=None if masks is None else flat[masks],
        unused=[key for key in fields if key not in (boxes_key, *flat, *marks, *_IDS)],
    )


def _attributes(columns: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[np.float64]]:
    rows = zip(*columns.values(), strict=True)
    return attribute_columns([dict(zip(columns, values, strict=True)) for values in rows])


def _first_of(names: Sequence[str], among: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in among), None)


def _image_column(where: str, rows: Any) -> str:
    import datasets

    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not images:  # written without the feature Image
        images = [name for name, feature in rows.features.items() if isinstance(feature, dict) and "bytes" in feature]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    if not images:  # names of files
        images = [name for name in rows.column_names if is_name_column(name)]
        images = ["image_file_name"] if "image_file_name" in images else images
        images = ["file_name"] if "file_name" in images else images
        if len(images) == 1:
            return str(images[0])
    if not images:
        problem = f"no image column; the columns are {', '.join(rows.column_names)}"
        raise DatasetError(
            where, problem, "expected a column with the feature Image, of structs with 'bytes', or 'file_name'"
        )
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
    if pa.types.is_null(flat.type):  # no row has a box
        return boxes, None
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

    if is_name_column(column):
        names = [str(name or "") for name in _arrow(rows, column).to_pylist()]
        return names, [None] * len(names)
    paths: list[str] = []
    readers: list[ImageReader | None] = []
    for entry in rows.cache_files:
        file = str(Path(entry["filename"]).resolve())
        cells = read_table(file).column(column)
        for row in range(len(cells)):
            cell = cells[row]
            if cell["bytes"].is_valid:
                paths.append(row_path(file, column, row, cell["path"].as_py() if "path" in cell else None))
                readers.append(read_row)
            else:
                readers.append(None)
                paths.append(cell["path"].as_py() or "" if "path" in cell else "")
    if len(paths) != len(rows):
        raise DatasetError(
            where, f"{len(rows)} rows, but its Arrow files have {len(paths)}", "save it again with save_to_disk"
        )
    return paths, readers
