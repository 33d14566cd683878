"""Measure recipes and speed, in a way that anyone can repeat.

detr benchmark convergence shapes          how fast recipes learn, and what they reach
detr benchmark speed --quick               times beside Transformers' DETR and the original
detr benchmark labels runs/demo shapes     how many labels that are wrong on purpose a model finds
detr benchmark tiles runs/demo shapes --tile 128    what tiles are worth on large images
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from modeling_detr.commands.benchmark_convergence import add_convergence
from modeling_detr.commands.benchmark_labels import add_labels
from modeling_detr.commands.benchmark_speed import add_speed
from modeling_detr.commands.benchmark_tiles import add_tiles
from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.errors_detr import did_you_mean


# Name of a sub-command → adds its parser, which sets `run`; it is given the arguments of the command, too.
SUBCOMMANDS: dict[str, Callable[["argparse._SubParsersAction[CommandParser]", Sequence[str]], None]] = {
    "convergence": add_convergence,
    "speed": add_speed,
    "labels": add_labels,
    "tiles": add_tiles,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(argv)
    if argv and not argv[0].startswith("-") and argv[0] not in parser.subcommands:
        parser.error(f"unknown sub-command '{argv[0]}'; {did_you_mean(argv[0], parser.subcommands)}")
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    code: int = arguments.run(arguments)
    return code


def build_parser(argv: Sequence[str] = ()) -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it.

    Args:
        argv: The arguments that it will parse; some sub-commands have options such as `--model_config.num_queries`.
    """
    parser = CommandParser("detr benchmark", __doc__)
    commands = parser.add_subparsers(required=True, metavar="|".join(SUBCOMMANDS))
    for add in SUBCOMMANDS.values():
        add(commands, argv)
    return parser
