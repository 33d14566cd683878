"""Where the numbers of a page come from: date, command and versions."""

import platform
import shlex
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version

from modeling_detr import __version__
from modeling_detr.pages import Code, Fact


def provenance(command: str = "") -> list[Fact]:
    """The last lines at the head of a page.

    Args:
        command: The command that wrote it, see `command_line`; left out if it is empty.
    """
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    return [
        ("date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
        ("versions", ", ".join([f"modeling_detr {__version__}", *versions, f"Python {platform.python_version()}"])),
        *([("command", Code(command))] if command else []),
    ]


def command_line(program: str, arguments: Sequence[str]) -> str:
    """A command as the user types it, such as `detr evaluate runs/demo shapes`."""
    return f"{program} {shlex.join(arguments)}".rstrip()
