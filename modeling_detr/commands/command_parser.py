"""The argument parser of the commands, and the checks of options that several commands share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_detr.errors_detr import OutputError, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the layout of its description and suggests a name for an unknown option.

    Args:
        prog: The command, as the user types it.
        description: Its description; usually the docstring of its module.
    """

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, description=description, allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]  # the overloads differ only in the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse the arguments; an unknown option is an error."""
        parsed, rest = super().parse_known_args(args, namespace)
        unknown = next((text.partition("=")[0] for text in rest if text.startswith("--")), None)
        if unknown is not None:
            options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            self.error(f"unknown option {unknown}; {did_you_mean(unknown, options)}")
        return parsed, rest


def check_output_dir(folder: Path) -> None:
    """Check, before any work, that results can be written to a folder, which need not exist.

    Raises:
        OutputError: The path, or a parent of it, is a file.
    """
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise OutputError("--output_dir", f"{existing} is a file", "choose a folder for the results")


def check_at_least(name: str, value: int, least: int) -> None:
    """Check the value of a numeric option.

    Raises:
        ValueError: The value is too small.
    """
    if value < least:
        raise ValueError(f"--{name}: got {value}, expected at least {least}.")
