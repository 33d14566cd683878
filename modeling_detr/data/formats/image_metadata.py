"""Images with a table beside them, as the builder `imagefolder` of `datasets` and AutoTrain have them.

    train/metadata.jsonl  train/cam/a.png     a line for each image: {"file_name": "cam/a.png", "objects": {…}}
    metadata.csv  train/a.png  val/b.png      or one table for all; .csv with JSON in its cells, or .parquet

The names are those of files, in any spelling that `file_search` finds, and rows of one box each are joined. Splits are
folders named like one, of the table or in the names. Several tables of a split are read as one.
"""

import ast
import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modeling_detr.data.image_paths import is_split_name
from modeling_detr.errors_detr import DatasetError, FileContentError, FileReadError
from modeling_detr.input_files import MAX_JSON_BYTES, MAX_LIST_BYTES, parse_json, read_ends, read_text, require_file
from modeling_detr.structures_detr import UNSPLIT


_SUFFIXES = ("jsonl", "csv", "parquet")
_DELIMITERS = (",", ";", "\t")


def metadata_files(path: Path) -> list[Path]:
    """Find the tables that name images and their boxes; other files are called so too."""
    patterns = [f"{folder}metadata.{suffix}" for folder in ("", "*/", "*/*/") for suffix in _SUFFIXES]
    return sorted(file for file in {file for pattern in patterns for file in path.glob(pattern)} if _names_boxes(file))


def _names_boxes(file: Path) -> bool:
    try:
        text = read_ends(file, 8192).replace(b"\0", b"")  # of UTF-16
    except FileReadError:
        return False
    return b"file_name" in text and any(word in text for word in (b"objects", b"bbox", b"boxes"))


def is_name_column(name: str) -> bool:
    """Whether a column has the names of image files."""
    return name == "file_name" or name.endswith("_file_name")


def read_metadata(path: Path, files: list[Path]) -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """Read the rows of each split, one for each image, and the folder of the table of each row.

    Args:
        path: The dataset's folder.
        files: Its tables.

    Raises:
        FileReadError: One cannot be read.
        DatasetError: One has unexpected content.
    """
    splits: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}
    for file in files:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        inner = file.relative_to(path).parts[:-1]
        for where, row in _rows(file):
            names = [str(value) for key, value in row.items() if is_name_column(key) and value]
            if not names:
                raise DatasetError(where, "no 'file_name'", "name the image file, or remove the row")
            parts = names[0].replace("\\", "/").split("/")[:-1]
            split = next(filter(is_split_name, (*inner, *parts)), UNSPLIT)
            earlier = rows.get((split, names[0]))
            if earlier is not None and not any(map(_is_box, row.values())):
                problem, remedy = (
                    f"'{names[0]}' is in an earlier row, too",
                    "write all objects of an image into one row",
                )
                raise DatasetError(where, problem, f"correct the name, or {remedy}")
            lists = _with_lists(row)
            rows[split, names[0]] = lists if earlier is None else _joined(where, earlier, lists)
        for (split, _), row in rows.items():
            members, folders = splits.setdefault(split, ([], []))
            members.append(row)
            folders.append(str(file.parent))
    return splits


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[file.suffix.lower()]
    for where, row in read(file):
        if not isinstance(row, dict):
            raise DatasetError(where, f"got a {type(row).__name__}, expected an object with 'file_name'", "correct it")
        yield where, row


def _read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(file, MAX_JSON_BYTES).split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, parse_json(where, line)


def _read_csv(file: Path) -> Iterator[tuple[str, Any]]:
    lines = read_text(file, MAX_LIST_BYTES).splitlines(keepends=True)
    delimiter = max(_DELIMITERS, key=lines[0].count) if lines else ","
    csv.field_size_limit(MAX_LIST_BYTES)  # the objects of an image are one cell
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            yield where, {key: _cell(where, key, value) for key, value in row.items() if key and value is not None}
    except csv.Error as error:
        raise FileContentError(file, f"not a CSV file ({error})", "write it again") from error


def _cell(where: str, column: str, text: str) -> Any:
    """The value of a cell: JSON, or what Python prints for lists and dicts, as pandas writes them; a number, text."""
    if not text.lstrip().startswith(("[", "{")) or is_name_column(column):
        return int(text) if re.fullmatch(r"-?\d{1,15}", text) and not is_name_column(column) else text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        problem = f"got '{text[:80]}', which is not valid JSON ({' '.join(str(error).split())[:100]})"
        raise FileContentError(where, problem, "write the objects as JSON") from error


def _read_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    require_file(file)
    for number, row in enumerate(pyarrow.parquet.read_table(file).to_pylist(), start=1):
        yield f"{file}, row {number}", row


def _with_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose only object is not in lists (`bbox: [1, 2, 3, 4], category: cat`), with it in lists."""
    boxes = next((key for key, value in row.items() if _is_box(value)), None)
    if boxes is None:
        return dict(row)
    return {
        key: [value] if key == boxes or (key in _OF_OBJECTS and not isinstance(value, list)) else value
        for key, value in row.items()
    }


_OF_OBJECTS = ("category", "category_id", "label", "class", "class_id", "class_label", "area", "iscrowd", "is_crowd")


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)


def _joined(where: str, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One row with the objects of two rows of the same image."""
    joined = dict(one)
    for key, value in other.items():
        if isinstance(value, list) and isinstance(one.get(key), list):
            joined[key] = [*one[key], *value]
        elif isinstance(value, dict) and isinstance(one.get(key), dict):
            joined[key] = _joined(where, one[key], value)
        elif value != one.get(key):
            problem = f"'{key}' is {value!r}, but {one.get(key)!r} in an earlier row of the same image"
            raise DatasetError(where, problem, "write one row for each image")
    return joined
