"""Spoil labels of a dataset on purpose, and see how many a model finds.

    detr benchmark labels runs/demo shapes --split val

A share of the labels is dropped, moved or given another class, in memory. The model then looks for suspected labels,
as `detr data check --model` does. The table has the share of the spoilt labels that are among the first of its list; N
is the number of spoilt labels. Labels of the dataset that were wrong before count as mistakes of the model.
"""

import argparse
from collections.abc import Sequence

from modeling_detr.benchmarks.spoilt_labels import found_shares, spoil
from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.commands.dataset_options import add_dataset_options
from modeling_detr.commands.device import add_trust_code
from modeling_detr.commands.model_check import ask_model
from modeling_detr.commands.trained_on import add_choice_options, choose_images, open_images
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import DatasetError, printable


def add_labels(commands: "argparse._SubParsersAction[CommandParser]", _argv: Sequence[str]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "labels", help="spoil labels on purpose, and see how many a model finds", description=__doc__
    )
    parser.add_argument(
        "model", help="a model folder, the folder of a run, a Hub id, an original checkpoint or an exported model"
    )
    parser.add_argument("dataset", help="a dataset's folder or file, a Hugging Face dataset, or 'shapes'")
    add_dataset_options(parser)
    add_choice_options(parser)
    parser.add_argument(
        "--share",
        type=float,
        default=0.05,
        help="share of the labels that is spoilt in each way (default: %(default)g)",
    )
    add_trust_code(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.share <= 1 / 3:
        raise ValueError(f"--share: got {arguments.share:g}, expected a number above 0 and up to 1/3.")
    index = open_images(arguments, "detection", choose_images(arguments))
    spoilt = spoil(index, arguments.share, arguments.seed)
    if not spoilt.spoilt:
        raise DatasetError(index.name, "has no labels to spoil (crowd regions do not count)", "choose another split")
    _, suspected = ask_model(*load_detector(arguments.model, arguments.trust_code), spoilt.index)
    shares = found_shares(spoilt.spoilt, suspected)
    print(
        f"{printable(index.name)}: {counted(len(index), 'image')}, {len(spoilt.spoilt)} of "
        f"{len(index.annotations):,} labels spoilt (N), {len(suspected):,} suspected"
    )
    kinds = [*next(iter(shares.values()))]
    print("\n| among the first | " + " | ".join(kinds) + " |")
    print("| --- | " + " | ".join("---:" for _ in kinds) + " |")
    for multiple, by_kind in shares.items():
        name = "N" if multiple == 1 else f"{multiple} N"
        print(f"| {name} | " + " | ".join(f"{by_kind[kind]:.0%}" for kind in kinds) + " |")
    return 0
