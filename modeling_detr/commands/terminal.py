"""Output of the commands: control sequences in names, or in messages of other libraries, do not reach the terminal."""

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
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        parts = _ALLOWED.split(text)  # text and allowed characters in turn
        parts[::2] = map(printable, parts[::2])
        self._stream.write("".join(parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` escape control characters during the block.

    After an exception they still do: Python prints its traceback later.
    """
    _open_closed_streams()
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    sys.stdout, sys.stderr = (cast(TextIO, PrintableStream(stream)) for stream in streams)
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
