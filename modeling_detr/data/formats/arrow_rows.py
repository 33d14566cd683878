"""Read images that are stored as bytes in the rows of an Arrow file, as `datasets` writes them.

Such an image has a virtual path, `/folder/data-00000-of-00002.arrow?column=image&row=17/name.jpg`. Each process
memory-maps a file once, so that reading a row costs no more than reading a small file, and workers share the pages.
"""

import functools
import io
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc

from modeling_detr.errors_detr import DatasetNotFoundError, DatasetReadError
from modeling_detr.input_files import require_file


_VIRTUAL_PATH = re.compile(r"(?P<file>.+\.arrow)\?column=(?P<column>.+)&row=(?P<row>\d+)(/.*)?", re.DOTALL)


def row_path(file: str, column: str, row: int, name: str | None = None) -> str:
    """Return the virtual path of the image in a row, which ends with the name of the file that it was, if that is
    known."""
    last = re.split(r"[/\\]", name or "")[-1]
    return f"{file}?column={column}&row={row}" + (f"/{last}" if last not in ("", ".", "..") else "")


def read_row(path: str) -> io.BytesIO:
    """Read the bytes of the image at a virtual path.

    Raises:
        OSError: The Arrow file cannot be read, or has no such row.
    """
    match = _VIRTUAL_PATH.fullmatch(path)
    if match is None:
        raise DatasetNotFoundError(path, "not a path of a row, expected …arrow?column=NAME&row=NUMBER")
    cell = _column(match["file"], match["column"], _version(match["file"]))[int(match["row"])]
    content = cell["bytes"] if pyarrow.types.is_struct(cell.type) else cell
    if not content.is_valid:
        raise DatasetNotFoundError(path, "the row has no image")
    return io.BytesIO(content.as_buffer())


def read_table(file: str) -> Any:
    """Return the table in an Arrow file, memory-mapped.

    Raises:
        OSError: The file does not exist, is truncated or is invalid.
    """
    return _mapped(file, _version(file))


def _version(file: str) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    require_file(file)
    status = Path(file).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _mapped(file: str, version: tuple[int, int, int]) -> Any:  # noqa: ARG001 (a key of the cache)
    try:
        source = pyarrow.memory_map(file)
        try:
            table = pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            table = pyarrow.ipc.open_file(source).read_all()
        table.validate(full=True)  # offsets past the end would be read
        return table
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetReadError(file, f"not a readable Arrow file ({error})", "save the dataset again") from error


@functools.lru_cache(maxsize=256)
def _column(file: str, column: str, version: tuple[int, int, int]) -> Any:
    return _mapped(file, version).column(column)
