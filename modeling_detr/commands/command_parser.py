"""The argument parser of the commands, and the checks of options that several commands share."""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from modeling_detr.errors_detr import did_you_mean


# Options of other tools → the option here, or, with a space, what to do instead.
FAMILIAR_OPTIONS = {
    "--conf": "--threshold",
    "--confidence": "--threshold",
    "--score_threshold": "--threshold",
    "--batch": "--batch_size",
    "--workers": "--num_workers",
    "--name": "--output_dir",
    "--project": "--output_dir",
    "--out": "--output_dir",
    "--output": "--output_dir",
    "--out_dir": "--output_dir",
    "--save_dir": "--output_dir",
    "--format": "--data_format",
    "--imgsz": "the image size is in the model's preprocessor_config.json",
    "--iou": "a DETR needs no non-maximum suppression",
    "--weights": "pass the model without an option, as the first argument",
    "--model": "pass the model without an option, as the first argument",
    "--source": "pass images and folders without an option",
    "--image": "pass images and folders without an option",
    "--data": "pass the dataset without an option",
    "--device": "choose GPUs with the environment variable CUDA_VISIBLE_DEVICES (empty: use the CPU)",
}


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
        """Parse the arguments; an unknown option is an error, reported before missing arguments."""
        arguments = list(sys.argv[1:] if args is None else args)
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        names = (text.partition("=")[0] for text in itertools.takewhile(lambda text: text != "--", arguments))
        for name in names:
            if name.startswith("--") and name not in options and not self.subcommands:
                self.error(f"unknown option {name}; {_remedy(name, options)}")
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line that says what is wrong; the usage, of many lines, is left to --help."""
        remedy = "" if message.endswith(("?", ".")) else f"; see '{self.prog} --help'."
        self.exit(2, f"{self.prog}: error: {message}{remedy}\n")

    @property
    def subcommands(self) -> "Mapping[str, CommandParser]":
        """The parsers of the sub-commands by name; empty if there are none."""
        actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return {name: parser for action in actions for name, parser in action.choices.items()}


def _remedy(unknown: str, options: Sequence[str]) -> str:
    meant = FAMILIAR_OPTIONS.get("--" + unknown.removeprefix("--").replace("-", "_"), "")
    if " " in meant:
        return meant
    if meant in options:
        return f"did you mean '{meant}'?"
    return did_you_mean(unknown, [name for name in options if name != "--help"])


def check_at_least(name: str, value: float, least: int) -> None:
    """Check the value of a numeric option.

    Raises:
        ValueError: The value is too small.
    """
    if value < least:
        raise ValueError(f"--{name}: got {value}, expected at least {least}.")
