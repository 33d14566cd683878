"""Output of the commands: control sequences in names, or in messages of other libraries, do not reach the terminal.

Of several processes, all but the first begin each line with their rank, as PyTorch does in its own tracebacks.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from modeling_detr.errors_detr import printable


# What text and progress bars consist of: line breaks, tabs, "up one line" of nested bars, and colours.
_ALLOWED = re.compile(r"([\n\r\t]|\x1b\[A|\x1b\[[\d;]*m)")


class PrintableStream:
    """A text stream that escapes control characters, see `printable`; only those of progress bars pass.

    Args:
        stream: The stream to write to; it also answers everything else.
        prefix: What each line begins with; a line that does already, and an empty one, is left as it is.
    """

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        self._stream = stream
        self._prefix = prefix
        self._line_has_begun = False

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        parts = _ALLOWED.split(text)  # text and allowed characters in turn
        parts[::2] = map(printable, parts[::2])
        self._stream.write(self._prefixed("".join(parts)))
        return len(text)

    def _prefixed(self, text: str) -> str:
        if not self._prefix:
            return text
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines):
            is_empty = line.endswith("\n") and not line.strip()  # a traceback writes indentation by itself
            if not self._line_has_begun and not is_empty and not line.startswith(self._prefix.rstrip()):
                lines[number] = self._prefix + line
            self._line_has_begun = not line.endswith(("\n", "\r"))
        return "".join(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def rank_prefix() -> str:
    """What the lines of this process begin with: its rank if it is one of several, but not the first; else nothing."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" or os.environ.get("WORLD_SIZE", "1") == "1" else f"[rank{rank}]: "


@contextmanager
def printable_output() -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` escape control characters during the block, and name the rank (`rank_prefix`).

    After an exception they still do: Python prints its traceback later.
    """
    _open_closed_streams()
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    prefix = rank_prefix()
    sys.stdout, sys.stderr = (cast(TextIO, PrintableStream(stream, prefix)) for stream in streams)
    yield
    sys.stdout, sys.stderr = streams


def _open_closed_streams() -> None:
    """Send stdout and stderr nowhere if the process was started without them (`>&-`).

    Otherwise the next files to be opened, such as a checkpoint, would receive what libraries write to them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # each file gets the lowest number that is free
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
