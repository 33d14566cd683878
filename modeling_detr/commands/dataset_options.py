"""Command-line options for reading a dataset: its format, and the options of each format."""

import argparse
from pathlib import Path
from typing import Any

from modeling_detr.data.formats import FORMATS, reading_options


def add_dataset_options(parser: argparse._ActionsContainer) -> None:
    """Add the format option, and the reading options of all formats.

    The format is `--data_format`, as in `detr train`, or `--format` for short.

    Args:
        parser: The parser of the command, or a group of its options.
    """
    parser.add_argument(
        "--data_format",
        "--format",
        choices=list(FORMATS),
        metavar="FORMAT",
        help=f"format of the dataset: {', '.join(FORMATS)} (default: detected)",
    )
    for option in reading_options().values():
        if option.kind is bool:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            parser.add_argument(
                f"--{option.name}",
                type=str if option.kind is Path else option.kind,  # a Path would make `s3:/` of `s3://`
                choices=option.choices or None,
                metavar="DIR" if option.kind is Path else None,
                help=option.help,
            )


def dataset_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the reading options, as keyword arguments of `open_dataset`."""
    return {name: getattr(arguments, name) for name in reading_options()}
