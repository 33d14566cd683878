"""Measure what tiles are worth for a model: AP on images that are stitched together.

    detr benchmark tiles runs/demo shapes --tile 128

Images of the dataset are put together in grids, in memory. The table compares AP of the images by themselves, of the
grids as a whole, and of the grids in tiles, and what objects that are found twice cost.
"""

import argparse
from collections.abc import Sequence

from modeling_detr.benchmarks.stitched_images import score_tiles
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.dataset_options import add_dataset_options
from modeling_detr.commands.device import add_device, add_dtype, add_trust_code, check_device, precision_of
from modeling_detr.commands.trained_on import add_choice_options, choose_images, open_images
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.errors_detr import DatasetError, printable
from modeling_detr.predicting import Detector, Tiling
from modeling_detr.predicting.tiles import DEFAULT_OVERLAP


def add_tiles(commands: "argparse._SubParsersAction[CommandParser]", _argv: Sequence[str]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("tiles", help="AP on stitched images, as a whole and in tiles", description=__doc__)
    parser.add_argument("model", help="a model folder, the folder of a run, a Hub id or an original checkpoint")
    parser.add_argument("dataset", help="a dataset's folder or file, a Hugging Face dataset, or 'shapes'")
    add_dataset_options(parser)
    add_choice_options(parser)
    parser.add_argument("--tile", type=int, required=True, help="side of the tiles, in pixels")
    parser.add_argument(
        "--overlap", type=float, default=DEFAULT_OVERLAP, help="share that tiles have in common (default: %(default)g)"
    )
    parser.add_argument("--grid", type=int, default=4, help="images on a side of a grid (default: %(default)d)")
    add_device(parser)
    add_dtype(parser)
    add_trust_code(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_at_least("grid", arguments.grid, 1)
    check_device(arguments.device)
    tiling = Tiling(arguments.tile, arguments.overlap)
    index = open_images(arguments, "detection", choose_images(arguments))
    if len(index) < arguments.grid**2:
        problem = f"has {len(index)} images, expected at least {arguments.grid**2} for a grid"
        raise DatasetError(index.name, problem, "choose a smaller grid", {"grid": 2})
    model, processor = load_detector(arguments.model, arguments.trust_code)
    index = adopt_model_labels(index, dict(enumerate(model.config.class_names)), model.config.stuff_labels)
    dtype = precision_of(arguments.dtype, model, arguments.device, arguments.model)
    detector = Detector(model, processor, source=arguments.model, device=arguments.device, dtype=dtype)
    print(f"{printable(index.name)}\n\n| | images | AP | AP50 | duplicates: points of AP50 | number |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in score_tiles(detector, index, arguments.grid, tiling):
        print(
            f"| {row.name} | {row.images} | {row.ap:.3f} | {row.ap50:.3f} | {row.duplicates:.1f} | "
            f"{row.num_duplicates} |",
            flush=True,
        )
    return 0
