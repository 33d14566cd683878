"""Images stored as bytes in the rows of an Arrow file, as `datasets` does: named, opened, never extracted.

Such an image has a virtual path, `/folder/data-00000-of-00002.arrow?column=image&row=17`. Each process maps a file
into memory once, so a row costs no more than reading a small file, and workers share the pages.
"""

import functools
import io
import re
from typing import Any

import pyarrow
import pyarrow.ipc

from modeling_detr.errors_detr import DatasetNotFoundError, DatasetReadError


_VIRTUAL_PATH = re.compile(r"(?P<file>.+\.arrow)\?column=(?P<column>.+)&row=(?P<row>\d+)")


def row_path(file: str, column: str, row: int) -> str:
    """The virtual path of the image in this row."""
    return f"{file}?column={column}&row={row}"


def read_row(path: str) -> io.BytesIO:
    """The bytes of the image that a virtual path names.

    Raises:
        OSError: The Arrow file cannot be read, or has no such row.
    """
    named = _VIRTUAL_PATH.fullmatch(path)
    if named is None:
        raise DatasetNotFoundError(path, "not the path of a row, expected …arrow?column=NAME&row=NUMBER")
    cell = _column(named["file"], named["column"])[int(named["row"])]
    content = cell["bytes"] if pyarrow.types.is_struct(cell.type) else cell
    if not content.is_valid:
        raise DatasetNotFoundError(path, "the row has no image")
    return io.BytesIO(content.as_buffer())


@functools.lru_cache(maxsize=64)
def read_table(file: str) -> Any:
    """The table in an Arrow file, mapped into memory.

    Raises:
        OSError: The file does not exist, or is cut off.
    """
    try:
        source = pyarrow.memory_map(file)
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()
    except pyarrow.ArrowInvalid as error:
        raise DatasetReadError(file, f"not a readable Arrow file ({error})", "save the dataset again") from error


@functools.lru_cache(maxsize=256)
def _column(file: str, column: str) -> Any:
    return read_table(file).column(column)
