"""A lock on a folder, so that two processes do not write the same files in it.

    with locked(folder / ".lock", lambda holder: OutputError(folder, f"{holder} is writing to it", "wait for it")): ...

The file of the lock holds the host and the process id of the process that has locked it last.
"""

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from modeling_detr.errors_detr import DetrError
from modeling_detr.output_errors import explained_output


@contextlib.contextmanager
def locked(lock: Path, refuse: Callable[[str], DetrError]) -> Iterator[None]:
    """Locks a file in the block.

    The operating system releases the lock when the process ends, however it ends. Where it has no locks (Windows, some
    network file systems), nothing is locked.

    Args:
        lock: The file, in a folder that exists.
        refuse: Makes the error to raise if another process holds the lock, from words for that process.

    Raises:
        DetrError: Another process holds the lock.
        OutputError: The file cannot be written.
    """
    with explained_output(lock):
        file = lock.open("a+", encoding="utf-8")
    with file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, loader processes do not inherit it
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                raise refuse(_words_for(file.read())) from error
            except OSError:  # the file system has no locks
                pass
        if not _is_open_file(file, lock):  # the process that held it has finished, and has removed it
            raise refuse("another process")
        with explained_output(lock):
            _note_holder(file)
        yield


def lock_holder(lock: Path) -> tuple[str, int] | None:
    """The host and the number of the process that has locked a file last; it may have ended since.

    None if there is none so far, if its number is still to be written, or if the file is damaged.
    """
    try:
        return _parse_holder(lock.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _is_open_file(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _note_holder(file: TextIO) -> None:
    file.truncate(0)
    json.dump({"host": platform.node(), "process": os.getpid()}, file)
    file.flush()


def _parse_holder(text: str) -> tuple[str, int] | None:
    try:
        holder = json.loads(text)
        return str(holder["host"]), int(holder["process"])
    except (ValueError, KeyError, TypeError):  # still to be written
        return None


def _words_for(text: str) -> str:
    holder = _parse_holder(text)
    return "another process" if holder is None else f"process {holder[1]} on {holder[0]}"
