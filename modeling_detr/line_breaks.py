"""Text for a terminal: its lines break between words, not in the middle of one."""

import shutil
import sys
import textwrap
from typing import TextIO


def fitted(text: str, indent: int = 0, stream: TextIO | None = None) -> str:
    """Break the lines of a text between words at the width of the terminal.

    Words stay whole, so that paths and options can be copied. If the output is not a terminal, lines stay as they are.

    Args:
        text: The text.
        indent: Spaces before the continuation of a line.
        stream: Where it is printed; default: stdout.
    """
    if not (stream or sys.stdout).isatty():
        return text
    width = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
    return "\n".join("\n".join(wrapper.wrap(line)) if len(line) > width else line for line in text.split("\n"))
