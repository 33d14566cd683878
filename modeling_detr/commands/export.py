"""Export a model to ONNX, OpenVINO or torch.export, and compare the result with the model.

    detr export runs/mine exported --to onnx --data my_dataset
    detr export runs/mine small --to onnx --precision int8 --data my_dataset
    detr evaluate exported my_dataset
    python exported/detect.py photo.jpg

The folder holds the model, its labels and image processor, `export.json` with everything that a program needs to run
it, and `detect.py`, which does so with NumPy, Pillow and the runtime alone. The command prints how far outputs, AP,
time and size differ from the model's; if the difference is too large, nothing is written.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from modeling_detr.commands.command_parser import CommandParser, boolean, check_at_least, height_and_width
from modeling_detr.commands.dataset_options import add_dataset_options, dataset_options
from modeling_detr.commands.trained_on import CHOICE_OPTION_NAMES, add_choice_options, choose_images, open_images
from modeling_detr.conversion.sources import load_model
from modeling_detr.data import open_dataset
from modeling_detr.data.findings import counted
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.data.splits import choose_split, find_split
from modeling_detr.deployment.export import SCRIPT, ExportRefusedError, export_detector
from modeling_detr.deployment.precisions import Operators, Precision
from modeling_detr.deployment.targets import TARGETS
from modeling_detr.errors_detr import OutputExistsError, printable
from modeling_detr.output_errors import check_file, check_model_path
from modeling_detr.prediction import task_of
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionIndex


OPTION_NAMES = CHOICE_OPTION_NAMES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse_arguments(argv)
    target: Path = arguments.target
    if os.path.lexists(target):
        raise OutputExistsError(target, "already exists", "choose another target or remove it")
    check_file(target)
    check_model_path(target)
    model, processor = load_model(arguments.model)
    data = _images_to_compare_on(arguments, model)
    calibration = _calibration_images(arguments) if arguments.precision == "int8_static" else None
    try:
        checks = export_detector(
            model,
            processor,
            target,
            to=arguments.to,
            precision=arguments.precision,
            pixel_mask=arguments.pixel_mask,
            postprocess=arguments.postprocess,
            masks_per_image=arguments.masks_per_image,
            fixed_size=arguments.fixed_size,
            data=data,
            calibration=calibration,
            operators=arguments.operators,
            max_ap_drop=arguments.max_ap_drop,
        )
    except ExportRefusedError as error:
        if error.checks is not None:
            print(error.checks.table())
        raise
    print(checks.table())
    if data is None:
        print("AP was not compared; to compare it, add --data DATASET")
    print(f"wrote {printable(target)}, {TARGETS[arguments.to].description} in {arguments.precision}")
    print(printable(f"run it: python {target / SCRIPT} photo.jpg"))
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr export", __doc__)
    parser.add_argument("model", help="a model folder, the folder of a run, a Hub id or an original checkpoint")
    parser.add_argument("target", type=Path, help="the folder to write")
    kinds = ", ".join(f"{name} ({target.description})" for name, target in TARGETS.items())
    parser.add_argument("--to", choices=TARGETS, default="onnx", help=f"{kinds}; default: %(default)s")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="float32; float16, bfloat16: 16-bit weights; int8: 8-bit weights of the linear layers; int8_static: also "
        "8-bit inputs of --operators, calibrated on images (default: %(default)s)",
    )
    parser.add_argument(
        "--pixel_mask",
        type=boolean,
        default=True,
        metavar="BOOL",
        help="take a pixel mask; false: all images must have one size (default: true)",
    )
    parser.add_argument(
        "--postprocess",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="return scores, labels and boxes in pixels instead of logits and relative boxes (default: false)",
    )
    parser.add_argument(
        "--masks_per_image",
        type=int,
        help="number of masks per image, those with the highest scores (default: all above a score)",
    )
    parser.add_argument(
        "--fixed_size",
        type=height_and_width,
        metavar="HEIGHT,WIDTH",
        help="one size for all images, which some backbones need (default: any size)",
    )
    _add_comparison_options(parser)
    return parser


def _add_comparison_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("comparison of AP")
    group.add_argument("--data", dest="dataset", help="a dataset's folder or file (default: AP is not compared)")
    group.add_argument(
        "--max_images", type=int, default=500, help="most images to take, evenly spaced; 0: all (default: %(default)s)"
    )
    group.add_argument(
        "--max_ap_drop",
        type=float,
        help="by how much AP may fall (default: .002, or .01 for int8 and int8_static)",
    )
    add_choice_options(group)
    add_dataset_options(group)
    group = parser.add_argument_group("with --precision int8_static")
    group.add_argument(
        "--calibration", metavar="DATASET", help="dataset to calibrate on (default: the training split of --data)"
    )
    group.add_argument(
        "--operators",
        choices=get_args(Operators),
        default="conv",
        help="what to quantise: convolutions, linear layers or both (default: %(default)s)",
    )


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_at_least("max_images", arguments.max_images, 0)
    if arguments.max_ap_drop is not None:
        check_at_least("max_ap_drop", arguments.max_ap_drop, 0)
    if arguments.masks_per_image is not None:
        check_at_least("masks_per_image", arguments.masks_per_image, 1)
    if arguments.precision == "int8_static" and arguments.calibration is None and arguments.dataset is None:
        parser.error("--precision int8_static needs --calibration DATASET, or --data with a training split")
    _check_that_options_are_used(parser, arguments)
    return arguments


def _check_that_options_are_used(parser: CommandParser, arguments: argparse.Namespace) -> None:
    """Exits with an error if an option would have no effect."""
    if arguments.precision != "int8_static":
        for name in ("calibration", "operators"):
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--{name} needs --precision int8_static, got {arguments.precision}")
    if arguments.dataset is None:
        for name in ("max_images", "max_ap_drop", "split", "eval_fraction"):
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--{name} needs --data DATASET, because it is about the comparison of AP")


def _images_to_compare_on(arguments: argparse.Namespace, model: Detector) -> DetectionIndex | None:
    if arguments.dataset is None:
        return None
    choice = choose_images(arguments)
    index = open_images(arguments, task_of(model), choice)
    index = adopt_model_labels(index, dict(enumerate(model.config.class_names)), model.config.stuff_labels)
    if 0 < arguments.max_images < len(index):
        index = index.select(np.linspace(0, len(index) - 1, arguments.max_images).astype(int))
    print(f"comparing on {printable(index.name)}: {counted(len(index), 'image')}")
    return index


def _calibration_images(arguments: argparse.Namespace) -> DetectionIndex:
    if arguments.calibration is None:
        index = open_dataset(arguments.dataset, format=arguments.data_format, **dataset_options(arguments))
    else:
        index = open_dataset(arguments.calibration)
    if index.has_splits:
        index = choose_split(index, find_split(index, "train"))
    print(f"calibrating on {printable(index.name)}")
    return index
