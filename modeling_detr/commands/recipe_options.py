"""The keys of the recipe as options of a command that starts `detr train`."""

import argparse
from collections.abc import Collection, Sequence

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.training.recipe import recipe_class
from modeling_detr.training.recipe_keys import keys_of


_KEY = "key:"  # prefix of the recipe's keys in the namespace of the arguments


def add_recipe_keys(
    parser: CommandParser, argv: Sequence[str], description: str, without: Collection[str] = ()
) -> None:
    """Adds an option for each key that is not yet an option of the command.

    Args:
        parser: The parser of the command, with its own options.
        argv: The arguments that it will parse; they may have keys of mappings, such as `--model_config.num_queries`.
        description: What the help says about the keys.
        without: Keys that the command decides.
    """
    keys = parser.add_argument_group("keys of the recipe", description)
    own = {option for action in parser._actions for option in action.option_strings}
    declared = keys_of(recipe_class())
    dotted = {text.partition("=")[0].removeprefix("--") for text in argv if text.startswith("--") and "." in text}
    for name in [*declared, *sorted(dotted)]:
        mapping, _, inner = name.partition(".")
        if f"--{name}" in own or mapping not in declared or (inner and not declared[mapping].is_mapping):
            continue
        if name in without:
            continue
        is_switch = not inner and declared[mapping].type is bool
        keys.add_argument(
            f"--{name}",
            dest=_KEY + name,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
            nargs="?" if is_switch else None,
            const="true" if is_switch else None,
        )


def recipe_keys_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The keys that are given, with their text."""
    return {name.removeprefix(_KEY): value for name, value in vars(arguments).items() if name.startswith(_KEY)}
