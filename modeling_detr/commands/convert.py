"""Convert a model: from an original DETR checkpoint, back to one, or to Transformers' own DETR.

    detr convert detr-r50-e632da11.pth start       from a file of the original
    detr convert detr-r50 start                    the same, downloaded
    detr convert runs/mine mine.pth --to original
    detr convert runs/mine mine_stock --to transformers

The architecture is inferred from the weights, and assumptions are printed. No code in a checkpoint is executed. The
target must not exist yet, and appears only when it is complete.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from modeling_detr.commands.command_parser import CommandParser, boolean
from modeling_detr.conversion.sources import SOURCES, ModelSource, find_source, load_model, without_progress_bars
from modeling_detr.conversion.targets import TARGETS
from modeling_detr.errors_detr import ModelError, ModelNotFoundError, OutputExistsError, printable
from modeling_detr.output_errors import check_file, check_model_path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = build_parser().parse_args(argv)
    source: str = arguments.source
    target: Path = arguments.target
    if os.path.lexists(target):
        raise OutputExistsError(target, "already exists", "choose another target or remove it")
    check_file(target)
    check_model_path(target)
    kind = find_source(source)
    options = _given_options(arguments, kind)

    if kind is None or kind.convert is None:
        model, processor = load_model(source)
        notes = [f"read {type(model).__name__} with {model.config.num_labels} classes"]
        with without_progress_bars():
            notes += TARGETS[arguments.to].write(model, processor, target)
    elif arguments.to == "ours":
        with without_progress_bars():
            notes = kind.convert(source, target, **options)
    else:
        raise ModelError(
            source,
            f"{kind.description} can only be converted to a model folder",
            f"run 'detr convert {source} FOLDER' first, then 'detr convert FOLDER {target} --to {arguments.to}'",
        )
    print("\n".join(map(printable, [*notes, f"wrote {target}, {TARGETS[arguments.to].description}"])))
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr convert", __doc__)
    parser.add_argument(
        "source", help="an original DETR checkpoint, the name of a released one, a model folder, a run or a Hub id"
    )
    parser.add_argument("target", type=Path, help="the folder to write (with --to original, the file)")
    kinds = ", ".join(f"{name} ({target.description})" for name, target in TARGETS.items())
    parser.add_argument("--to", choices=TARGETS, default="ours", help=f"{kinds}; default: %(default)s")
    added = set()
    for kind in SOURCES.values():
        if kind.options:
            group = parser.add_argument_group(f"if the source is {kind.description}")
            for option in kind.options:
                if option.name not in added:
                    group.add_argument(
                        f"--{option.name}",
                        type=boolean if option.type is bool else option.type,
                        metavar={bool: "BOOL", int: "N", Path: "FILE"}.get(option.type),
                        help=option.help,
                    )
                    added.add(option.name)
    return parser


def _given_options(arguments: argparse.Namespace, kind: ModelSource | None) -> dict[str, object]:
    """The options that are set, by name.

    Raises:
        ModelError: An option does not apply to this kind of source.
        ModelNotFoundError: The file of an option does not exist.
    """
    options = {}
    for other in SOURCES.values():
        for option in other.options:
            value = getattr(arguments, option.name)
            if value is None:
                continue
            if kind is None or option.name not in [applicable.name for applicable in kind.options]:
                problem = f"applies only to {other.description}, which {arguments.source} is not"
                raise ModelError(f"--{option.name}", problem, "drop the option")
            if option.type is Path and not Path(value).is_file():
                raise ModelNotFoundError(f"--{option.name}", f"{value}: no such file", f"expected a {option.help}")
            options[option.name] = value
    return options
