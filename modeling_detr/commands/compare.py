"""Compare models on the same images: differences of AP with intervals, kinds of errors, images better and worse.

    detr compare runs/old runs/new --data my_dataset
    detr compare runs/evaluate runs/evaluate-2 --data my_dataset     (reports)
    detr compare runs/old exported --data my_dataset --fail_if_worse 0.01

The first is the baseline; each of the others is compared with it. Each is a model, an exported model, the folder of a
report of `detr evaluate`, or a file with predictions in COCO's results format. The results are `comparison.html`
and `comparison.json`. With `--fail_if_worse`, the exit code is 1 if AP fell by more than that.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from modeling_detr.analysis.comparison import Comparison
from modeling_detr.analysis.detecting import detect
from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.intervals import LEAST_SAMPLES, SAMPLES
from modeling_detr.atomic_output import replace_text
from modeling_detr.commands.command_parser import CommandParser, check_at_least, check_draws
from modeling_detr.commands.dataset_options import add_dataset_options
from modeling_detr.commands.device import add_dtype, add_trust_code, precision_of
from modeling_detr.commands.results import add_output_dir, link_to, new_results_folder
from modeling_detr.commands.trained_on import CHOICE_OPTION_NAMES, add_choice_options, choose_images, open_images
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.coco_results import match_images, read_results
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import DatasetError, PredictionError, printable
from modeling_detr.evaluation.report import REPORT_FILES
from modeling_detr.input_files import read_json
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_folder
from modeling_detr.pages import Page, Section, Table
from modeling_detr.prediction import OBJECT_THRESHOLD
from modeling_detr.provenance import command_line, provenance
from modeling_detr.structures_detr import DetectionIndex


OPTION_NAMES = CHOICE_OPTION_NAMES
RESULTS = ("comparison.html", "comparison.json")
_PREDICTIONS = "predictions.json"


class _Contender(NamedTuple):
    """A model or report: its name, what it detects, and the time per image; None if it is a report."""

    name: str
    evidence: Evidence
    seconds_per_image: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse_arguments(argv)
    output_dir: Path = arguments.output_dir or new_results_folder("compare")
    check_folder(output_dir, files=RESULTS)
    arguments.dataset, arguments.model = arguments.data, arguments.contenders[0]  # for the options that choose images
    index = open_images(arguments, "detection", choose_images(arguments))
    if index.annotations.is_crowd.all():
        raise DatasetError(index.name, "has no objects to find (crowd regions do not count)", "choose another split")
    print(f"comparing on {printable(index.name)}: {counted(len(index), 'image')}")
    baseline, *others = [_contender(source, index, arguments) for source in arguments.contenders]

    sections, content, falls = [_times([baseline, *others])], [], []
    for other in others:
        comparison = Comparison.of(baseline.evidence, other.evidence, OBJECT_THRESHOLD, arguments.bootstrap)
        names = baseline.name, other.name
        print(f"\n{comparison.text(names)}")
        blocks = comparison.sections(names, arguments.num_pictures)
        sections += blocks if len(others) == 1 else [Section(f"{names[0]} and {names[1]}", blocks)]
        content.append({"baseline": names[0], "model": names[1], **comparison.as_dict()})
        falls.append(-comparison.differences["ap"].value)

    command = command_line("detr compare", sys.argv[1:] if argv is None else argv)
    facts = [("data", arguments.data), ("images", f"{len(index):,} of {index.name}"), *provenance(command)]
    title = f"Comparison on {index.name}"
    page = Page(title, [*sections[1:], sections[0]], facts=facts)
    replace_text(output_dir / RESULTS[0], page.to_html())
    replace_text(output_dir / RESULTS[1], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{link_to(output_dir / RESULTS[0])}")
    limit = arguments.fail_if_worse
    if limit is not None and max(falls) > limit:
        print(f"AP fell by {max(falls):.4f}, more than --fail_if_worse {limit:g}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr compare", __doc__)
    parser.add_argument(
        "contenders",
        nargs="+",
        metavar="model_or_report",
        help="a model (see detr evaluate), the folder of a report of detr evaluate, or a .json file in COCO's results "
        "format; the first is the baseline",
    )
    parser.add_argument(
        "--data", required=True, help="a dataset's folder or file, a Hugging Face dataset, or 'shapes'"
    )
    add_dataset_options(parser)
    add_choice_options(parser)
    parser.add_argument(
        "--fail_if_worse",
        type=float,
        metavar="AP",
        help="exit with code 1 if AP falls by more than this, such as 0.01",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="DRAWS",
        help=f"draws of images for the intervals (default: {SAMPLES}, down to {LEAST_SAMPLES} with more than 250,000 "
        "detections)",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=2, help="loader processes (default: %(default)s)")
    parser.add_argument(
        "--num_pictures",
        type=int,
        default=8,
        help="pictures of images with fewer errors, and as many with more errors (default: %(default)s)",
    )
    add_dtype(parser)
    add_trust_code(parser)
    add_output_dir(parser, "compare", "the results")
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if len(arguments.contenders) < 2:
        parser.error(f"got only {arguments.contenders[0]}, expected at least two models or reports")
    check_draws(arguments.bootstrap, 1)
    check_at_least("batch_size", arguments.batch_size, 1)
    check_at_least("num_workers", arguments.num_workers, 0)
    check_at_least("num_pictures", arguments.num_pictures, 0)
    if arguments.fail_if_worse is not None and not 0 <= arguments.fail_if_worse <= 1:
        raise ValueError(f"--fail_if_worse: got {arguments.fail_if_worse:g}, expected a difference of AP from 0 to 1.")
    return arguments


def _contender(source: str, index: DetectionIndex, arguments: argparse.Namespace) -> _Contender:
    path = Path(source)
    if (path / REPORT_FILES[0]).is_file() and (path / _PREDICTIONS).is_file():
        return _Contender(source, _of_results(path / _PREDICTIONS, index), None)
    if path.suffix == ".json" and path.is_file():
        return _Contender(source, _of_results(path, index), None)
    return _of_model(source, index, arguments)


def _of_model(source: str, index: DetectionIndex, arguments: argparse.Namespace) -> _Contender:
    accelerator = Accelerator()
    model, processor = load_detector(source, arguments.trust_code)
    dtype = precision_of(arguments.dtype, model, accelerator.device, source)
    sizes = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers}
    started = time.perf_counter()
    evidence = detect(model, processor, index, accelerator, **sizes, dtype=dtype)
    seconds = (time.perf_counter() - started) / max(1, len(index))
    return _Contender(source, evidence.in_labels_of(index), seconds)


def _of_results(path: Path, index: DetectionIndex) -> Evidence:
    rows = read_results(path)
    images = match_images(rows, index)
    keep = images >= 0
    if not keep.any():
        raise PredictionError(path, f"has no predictions for the images of {index.name}", "evaluate on these images")
    _note_other_images(path, index, images)
    return Evidence.of_rows(index, images[keep], rows.category_ids[keep], rows.boxes_xyxy[keep], rows.scores[keep])


def _note_other_images(path: Path, index: DetectionIndex, image_index: NDArray[np.int64]) -> None:
    """Tells if a results file was made on other images than those that are compared.

    Args:
        path: The file.
        index: The dataset.
        image_index: (K,) the image of each row; -1: another one.
    """
    left_out, covered = int((image_index < 0).sum()), len(np.unique(image_index[image_index >= 0]))
    if left_out:
        _note(f"{path}: {counted(left_out, 'prediction')} for other images left out")
    if covered < len(index):
        of_all = f"{covered:,} of {counted(len(index), 'image')}"
        _note(f"{path}: has predictions for {of_all}; in the others it finds nothing")
    report = path.with_name(REPORT_FILES[0])
    if path.name != _PREDICTIONS or not report.is_file():
        return
    content = read_json(report)
    made_on = content.get("dataset") if isinstance(content, dict) else index.name
    if made_on != index.name:
        _note(f"{path}: made on {made_on}; --split and --eval_fraction choose the images to compare on")


def _note(text: str) -> None:
    print(fitted(f"note      {printable(text)}", indent=10), file=sys.stderr)


def _times(contenders: Sequence[_Contender]) -> Section:
    rows = [
        (one.name, "-" if one.seconds_per_image is None else f"{1000 * one.seconds_per_image:.1f}")
        for one in contenders
    ]
    return Section("Time", [Table(("model", "ms per image, with loading"), rows)])
