"""The argument parser of the commands, and the checks of options that several commands share."""

import argparse
import itertools
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from modeling_detr.errors_detr import did_you_mean
from modeling_detr.line_breaks import fitted


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
    "--half": "--precision",
    "--int8": "--precision",
    "--dynamic": "all sizes are dynamic, unless --fixed_size is given",
    "--show": "the pictures are written to --output_dir",
    "--save_txt": "write --save yolo",
    "--save_crop": "write --save crops",
    "--save_crops": "write --save crops",
    "--imgsz": "the image size is in the model's preprocessor_config.json",
    "--iou": "a DETR needs no non-maximum suppression",
    "--weights": "pass the model without an option, as the first argument",
    "--model": "pass the model without an option, as the first argument",
    "--source": "pass images and folders without an option",
    "--image": "pass images and folders without an option",
    "--data": "pass the dataset without an option",
    "--device": "choose GPUs with the environment variable CUDA_VISIBLE_DEVICES (empty: use the CPU)",
}


_PLACEHOLDERS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}  # type of an option → its value in the help
_MOST_DRAWS = 10_000  # more would take hours, which Ctrl-C does not end
_MOST_CHOICES = 34  # characters of choices beside their option; more are listed below it


def boolean(text: str) -> bool:
    """Parse the value of an option that is true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got '{text}', expected true or false")
    return text.lower() == "true"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits the help into a narrow terminal: fills the paragraphs of a description, and shortens values of options.

    Indented lines of a description, its examples, stay as they are.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        filled = [part if part.startswith(" ") else textwrap.fill(part, width) for part in paragraphs]
        return super()._fill_text("\n\n".join(filled), width, indent)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _PLACEHOLDERS.get(action.type) or action.dest.rpartition("_")[2].upper()

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        if _lists_choices_below(action):
            return lambda count: (default_metavar,) * count
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if _lists_choices_below(action):
            return f"{action.help}; one of {', '.join(map(str, action.choices or ()))}"
        return action.help


def _lists_choices_below(action: argparse.Action) -> bool:
    choices = ",".join(map(str, action.choices or ()))
    repeats = 2 if action.nargs == "+" else 1
    return action.metavar is None and repeats * len(choices) > _MOST_CHOICES


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the layout of its description and suggests a name for an unknown option.

    Args:
        prog: The command, as the user types it.
        description: Its description; usually the docstring of its module.
        familiar: Options of other tools, as in `FAMILIAR_OPTIONS`, for this command only.
    """

    def __init__(
        self,
        prog: str | None = None,
        description: str | None = None,
        *,
        familiar: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._familiar = {**FAMILIAR_OPTIONS, **(familiar or {})}
        options.setdefault("formatter_class", _HelpFormatter)
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
                self.error(f"unknown option {name}; {self._remedy(name, options)}")
        for before, text in zip(["", *arguments], [] if self.subcommands else arguments, strict=False):
            name, equals, _ = text.partition("=")
            if equals and name.isidentifier() and not before.startswith("-") and not Path(text).exists():
                self.error(f"unexpected '{text}'; {self._remedy(f'--{name}', options)}")
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line that says what is wrong; the usage, of many lines, is left to --help."""
        if message.startswith("the following arguments are required"):
            message = f"{message}; usage: {self._shortest_call()}"
        remedy = "" if message.endswith(("?", ".")) else f"; see '{self.prog} --help'."
        self.exit(2, fitted(f"{self.prog}: error: {message}{remedy}\n", indent=2, stream=sys.stderr))

    def _shortest_call(self) -> str:
        """The command with all that it requires and nothing else."""
        parts = [self.prog]
        for action in (action for action in self._actions if action.required):
            value = "|".join(action.choices) if action.choices else action.metavar or action.dest
            parts.append(" ".join([*action.option_strings[:1], str(value)]))
        return " ".join(parts)

    def _remedy(self, unknown: str, options: Sequence[str]) -> str:
        meant = self._familiar.get("--" + unknown.removeprefix("--").replace("-", "_"), "")
        if " " in meant:
            return meant
        if meant in options:
            return f"did you mean '{meant}'?"
        return did_you_mean(unknown, [name for name in options if name != "--help"])

    @property
    def subcommands(self) -> "Mapping[str, CommandParser]":
        """The parsers of the sub-commands by name; empty if there are none."""
        actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return {name: parser for action in actions for name, parser in action.choices.items()}


def check_at_least(name: str, value: float, least: int) -> None:
    """Check the value of a numeric option.

    Raises:
        ValueError: The value is too small.
    """
    if value < least:
        raise ValueError(f"--{name}: got {value}, expected at least {least}.")


def check_draws(draws: int | None, least: int) -> None:
    """Check the value of `--bootstrap`; None is the default.

    Raises:
        ValueError: It is too small or too large.
    """
    if draws is not None and not least <= draws <= _MOST_DRAWS:
        raise ValueError(f"--bootstrap: got {draws}, expected {least} to {_MOST_DRAWS:,}.")


def height_and_width(text: str) -> tuple[int, int]:
    """Parses `HEIGHT,WIDTH`."""
    sides = text.replace("x", ",").split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"got '{text}', expected height and width in pixels, such as 480,640")
    return int(sides[0]), int(sides[1])
