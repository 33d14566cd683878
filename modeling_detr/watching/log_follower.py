"""A log that is being written, read without reading again what has been read."""

import json
from pathlib import Path
from typing import Any

from modeling_detr.input_files import is_file


_MAX_BYTES = 64 << 20  # that are read at once; the rest follows with the next call


class LogFollower:
    """Reads the entries of a `log.jsonl` as they are added.

    A line that is still being written is left for the next call. A resumed run replaces its log, which is then read
    from the start. Lines that are no JSON objects are skipped.

    Args:
        path: The log, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode
        self._read = 0
        self._entries: list[dict[str, Any]] = []
        self.modified: float | None = None

    def entries(self) -> list[dict[str, Any]]:
        """All entries so far; `modified` is when the log was last written, in seconds since 1970, None if never."""
        if not is_file(self._path):
            self._start_over(None)
            self.modified = None
            return self._entries
        with self._path.open("rb") as file:
            status = self._path.stat()
            if (status.st_dev, status.st_ino) != self._file or status.st_size < self._read:
                self._start_over((status.st_dev, status.st_ino))
            self.modified = status.st_mtime
            file.seek(self._read)
            complete = file.read(_MAX_BYTES).rpartition(b"\n")[0]
        if complete:
            self._read += len(complete) + 1
            self._entries += filter(None, map(_entry, complete.split(b"\n")))
        return self._entries

    def _start_over(self, file: tuple[int, int] | None) -> None:
        self._file, self._read, self._entries = file, 0, []


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # cut off by a kill, or zeros after a power cut
        return None
    return entry if isinstance(entry, dict) else None
