"""Compute the COCO AP of a model on a dataset, for boxes and masks, and its panoptic quality; find what goes wrong.

    detr evaluate runs/demo shapes --split val
    torchrun --nproc_per_node 2 --no-python detr evaluate MODEL DATASET
    detr evaluate runs/demo shapes --split val --predictions out

The metrics are printed and written to `evaluation.json`, `.md` and `.html`. The report also has intervals of AP, what
each kind of error costs and what to do about it, confusions, the best score threshold of each class, how well scores
are calibrated, the images with the most errors, labels that are probably wrong (as a COCO file too,
`suspected_labels.json`), and the training curves if the model is that of a run. See docs/reports.md.

All predictions are written in COCO's results formats: `predictions.json` (boxes), `predictions_masks.json` (RLE), and
`predictions_panoptic.json` with a folder of PNG files. They have the dataset's own ids, or those that
`detr data convert --to coco` gives it. Classes of the dataset and the model are matched by name.
On a machine without GPUs, several processes require ACCELERATE_USE_CPU=true in the environment.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from modeling_detr.analysis import AnalysisOptions, Evidence, thresholds_of, with_analyses
from modeling_detr.analysis.error_pictures import error_pictures
from modeling_detr.analysis.intervals import LEAST_SAMPLES, SAMPLES
from modeling_detr.analysis.suspected_labels import suspected_labels
from modeling_detr.analysis.suspected_report import SUSPECTED_LABELS, save_suspected, suspected_section
from modeling_detr.commands.command_parser import CommandParser, check_at_least, check_draws
from modeling_detr.commands.dataset_options import add_dataset_options
from modeling_detr.commands.device import add_dtype, add_trust_code, precision_of
from modeling_detr.commands.launching import add_launch_options, launched
from modeling_detr.commands.results import add_output_dir, link_to, new_results_folder
from modeling_detr.commands.trained_on import (
    CHOICE_OPTION_NAMES,
    Choice,
    add_choice_options,
    choose_images,
    open_images,
    run_folder_of,
)
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.findings import counted
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.data.loader_processes import DEFAULT_TIMEOUT_MINUTES
from modeling_detr.data.loaders import build_eval_loader, resize_transform
from modeling_detr.errors_detr import FileContentError, ModelError, PredictionError, printable
from modeling_detr.evaluation.coco_engines import engine_and_version
from modeling_detr.evaluation.engine import evaluate, evaluate_predictions
from modeling_detr.evaluation.evaluator import Evaluator, SavesPredictions
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.report import REPORT_FILES, REPORT_PAGE, EvaluationReport
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.input_files import read_json
from modeling_detr.model_folder_detr import model_folder
from modeling_detr.output_errors import check_file, check_folder
from modeling_detr.pages import Fact, Section, Table
from modeling_detr.precision import ComputeDtype, described_dtype
from modeling_detr.predicting.journal import model_identity
from modeling_detr.predicting.saved_predictions import SavedPredictions
from modeling_detr.prediction import OBJECT_THRESHOLD, task_of
from modeling_detr.provenance import command_line, provenance
from modeling_detr.saved_thresholds import THRESHOLDS
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionBatch, DetectionIndex, DetectionResult, Task
from modeling_detr.training.distributed import end_with_launcher
from modeling_detr.training.pictures import draw_predictions
from modeling_detr.training.report_page import comparison_section, curve_section


OPTION_NAMES = CHOICE_OPTION_NAMES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv, code = launched("evaluate", argv, _parse_arguments)
    return _evaluate(argv) if code is None else code


def _evaluate(argv: Sequence[str]) -> int:
    arguments = _parse_arguments(argv)
    end_with_launcher()
    accelerator = Accelerator()
    folders = [arguments.output_dir or new_results_folder("evaluate")]
    output_dir: Path = broadcast_object_list(folders)[0]  # a process that starts late finds the folder of the first
    check_folder(output_dir, files=[*REPORT_FILES, SUSPECTED_LABELS])
    if arguments.save_thresholds:
        check_file(Path(model_folder(arguments.model)) / THRESHOLDS)

    # Open the dataset and the model, and put the classes in the model's order.
    choice, run_dir = choose_images(arguments), run_folder_of(arguments.model)
    model, processor, task, dataset = _open(arguments, choice)
    index = adopt_model_labels(dataset, dict(enumerate(model.config.class_names)), model.config.stuff_labels)

    if accelerator.is_main_process:
        print(_what_is_scored(index, choice))

    # Score everything that the model predicts, or has predicted.
    dtype: ComputeDtype = "float32"
    if arguments.predictions is None:
        quiet = not accelerator.is_main_process
        dtype = precision_of(arguments.dtype, model, accelerator.device, arguments.model, quiet=quiet)
        evaluators = default_evaluators(index, task)
    else:
        evaluators = [one for one in default_evaluators(index, task) if one.needs == "boxes"]
    saving = [evaluator for evaluator in evaluators if isinstance(evaluator, SavesPredictions)]
    for evaluator in saving:
        evaluator.start_saving(output_dir)
    model.float().to(accelerator.device)
    if arguments.predictions is None:
        loader = _loader(arguments, processor, task, index, accelerator)
        report = evaluate(model, loader, processor, index, accelerator, evaluators, progress=True, dtype=dtype)
    else:
        report = evaluate_predictions(_saved_predictions(arguments, model, index), index, evaluators)

    # Print and write the report and the predictions.
    if accelerator.is_main_process:
        category_ids = {one.id for one in dataset.categories}
        written = [file for evaluator in saving for file in evaluator.save(category_ids)]
        sections: list[Section] = []
        evidence = Evidence.of(evaluators)
        if evidence is not None:
            report = with_analyses(report, evidence, AnalysisOptions(arguments.bootstrap, arguments.at_precision))
            suspected = suspected_labels(evidence)
            written.append(save_suspected(evidence, suspected, output_dir, category_ids))
            sections += _pictures(arguments.num_pictures, evidence, model, processor, task, dtype)
            sections += suspected_section(evidence, suspected, arguments.num_pictures)
        print(f"{report.metrics_table()}\n\n{report.summary()}{_scored_by(evaluators)}")
        facts = _facts(arguments, choice, index, described_dtype(dtype, accelerator.device), argv)
        written += report.save(output_dir, facts, [*sections, *_sections_of_run(run_dir, report)])
        if arguments.save_thresholds:
            written += _save_thresholds(report, arguments.model)
        print("\n".join(map(str, written)))
        print(link_to(output_dir / REPORT_PAGE))
    accelerator.end_training()
    return 0


def _loader(
    arguments: argparse.Namespace,
    processor: DetrTorchvisionImageProcessor,
    task: Task,
    index: DetectionIndex,
    accelerator: Accelerator,
) -> Iterable[DetectionBatch]:
    """The batches of this process."""
    return build_eval_loader(
        index,
        resize_transform(processor),
        accelerator,
        batch_size=arguments.batch_size,
        masks=task != "detection",
        num_workers=arguments.num_workers,
        loader_timeout_minutes=arguments.loader_timeout_minutes,
    )


def _saved_predictions(
    arguments: argparse.Namespace, model: Detector, index: DetectionIndex
) -> Iterator[tuple[int, DetectionResult]]:
    """The predictions of `--predictions`.

    Raises:
        PredictionError: They are of another model.
    """
    saved = SavedPredictions(arguments.predictions)
    identity = model_identity(arguments.model, model.config)
    if saved.settings.get("model", identity) != identity:
        remedy = f"pass that model, or predict again with {arguments.model}"
        raise PredictionError(saved.table, "has the predictions of another model", remedy)
    if saved.settings.get("threshold", 0.0) != 0 or saved.settings.get("classes") is not None:
        print("note      AP needs all predictions: predict with --threshold 0, and without --classes", file=sys.stderr)
    return saved.of_images(index, model.config.class_names)


def _check_saved_predictions(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Checks that no option about predicting is given with `--predictions`."""
    if arguments.predictions is None:
        return
    given = {text.partition("=")[0] for text in argv}
    unused = given & {"--batch_size", "--num_workers", "--loader_timeout_minutes", "--dtype"}
    if unused:
        raise ValueError(f"{min(unused)}: has no effect with --predictions; drop one of them.")
    if arguments.task not in (None, "detection"):
        raise ValueError(f"--task: got {arguments.task} with --predictions, which are boxes; drop one of them.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--predictions: one process reads them; drop --gpus, --cpu_processes and torchrun.")
    arguments.task = "detection"


def _what_is_scored(index: DetectionIndex, choice: Choice) -> str:
    reason = f" ({printable(choice.reason)})" if choice.reason else ""
    return f"scoring {printable(index.name)}: {counted(len(index), 'image')}{reason}"


def _open(
    arguments: argparse.Namespace, choice: Choice
) -> tuple[Detector, DetrTorchvisionImageProcessor, Task, DetectionIndex]:
    """The model and its image processor, the task, and the dataset for it.

    Raises:
        ModelError: The model does not predict what the task needs.
    """
    task: Task = arguments.task or "detection"
    dataset = open_images(arguments, task, choice)
    model, processor = load_detector(arguments.model, arguments.trust_code)
    if task != "detection" and task_of(model) == "detection":
        raise ModelError(
            arguments.model, "predicts boxes only", f"the task {task} needs a segmentation model; drop --task"
        )
    if arguments.task is None and task_of(model) != task:
        task = task_of(model)
        dataset = open_images(arguments, task, choice)
    return model, processor, task, dataset


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr evaluate", __doc__)
    parser.add_argument(
        "model", help="a model folder, the folder of a run, a Hub id, an original checkpoint or an exported model"
    )
    parser.add_argument("dataset", help="a dataset's folder or file, a Hugging Face dataset, or 'shapes'")
    add_dataset_options(parser)
    parser.add_argument(
        "--task",
        choices=get_args(Task),
        help="detection: boxes; instance: also masks; panoptic: also segments (default: all that the model predicts)",
    )
    add_choice_options(parser)
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FOLDER",
        help="score what 'detr predict --shard' or '--save parquet' has written with this model",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=2, help="loader processes (default: %(default)s)")
    parser.add_argument(
        "--num_pictures",
        type=int,
        default=20,
        help="pictures in the report: of images with the most errors, and as many of suspected labels (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="DRAWS",
        help="draws of images for the intervals of AP; 0: no intervals (default: "
        f"{SAMPLES}, down to {LEAST_SAMPLES} with more than 250,000 detections)",
    )
    parser.add_argument(
        "--at_precision",
        type=float,
        help="thresholds with at least this precision, instead of those with the best F1",
    )
    parser.add_argument(
        "--save_thresholds",
        action="store_true",
        help=f"write the thresholds and the calibration of the scores to {THRESHOLDS} in the model's folder, for "
        "'detr predict --threshold best' and '--calibrated'",
    )
    parser.add_argument(
        "--loader_timeout_minutes",
        type=float,
        default=DEFAULT_TIMEOUT_MINUTES,
        help="longest wait for a batch of the loader processes; 0: no limit (default: %(default)g)",
    )
    add_dtype(parser)
    add_launch_options(parser)
    add_trust_code(parser)
    add_output_dir(parser, "evaluate", "the report and the predictions")
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    _check_saved_predictions(arguments, sys.argv[1:] if argv is None else argv)
    check_at_least("batch_size", arguments.batch_size, 1)
    check_at_least("num_workers", arguments.num_workers, 0)
    check_at_least("num_pictures", arguments.num_pictures, 0)
    check_draws(arguments.bootstrap, 0)
    if arguments.at_precision is not None and not 0 < arguments.at_precision <= 1:
        raise ValueError(f"--at_precision: got {arguments.at_precision:g}, expected a precision above 0 and up to 1.")
    if arguments.save_thresholds and not Path(model_folder(arguments.model)).is_dir():
        raise ModelError(
            arguments.model,
            "is not a folder on this machine",
            "--save_thresholds needs one: download or convert the model first",
        )
    check_at_least("loader_timeout_minutes", arguments.loader_timeout_minutes, 0)
    return arguments


def _box_evaluator(evaluators: Sequence[Evaluator]) -> CocoEvaluator | None:
    """The evaluator of boxes, if boxes were scored."""
    return next((one for one in evaluators if isinstance(one, CocoEvaluator) and not one.masks), None)


def _pictures(
    count: int,
    evidence: Evidence,
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    task: Task,
    dtype: ComputeDtype,
) -> list[Section]:
    """The images with the most errors, beside their ground truth."""
    if count == 0:
        return []
    if task != "panoptic":
        return error_pictures(evidence, count, OBJECT_THRESHOLD)
    worst = evidence.matches.worst_images(count, dict.fromkeys(evidence.class_names, OBJECT_THRESHOLD))
    indices = [image.image_index for image in worst if image.f1 < 1]
    pictures = draw_predictions(model, processor, evidence.index, task, indices, dtype)
    return comparison_section("Images with the most errors", pictures)


def _save_thresholds(report: EvaluationReport, model: str) -> list[Path]:
    """Writes what `--save_thresholds` asks for; nothing if no class has a threshold."""
    thresholds = thresholds_of(report)
    if thresholds is None:
        print("note      no thresholds to save: no class has both objects and hits", file=sys.stderr)
        return []
    return [thresholds.save(Path(model_folder(model)))]


def _sections_of_run(run_dir: Path | None, report: EvaluationReport) -> list[Section]:
    """The change since the run's own report, and the run's curves."""
    return [] if run_dir is None else [*_change_since_training(run_dir, report), *curve_section(run_dir)]


def _change_since_training(run_dir: Path, report: EvaluationReport) -> list[Section]:
    """The headline metrics beside those of the run's own report, if that is of the same images."""
    if not (run_dir / REPORT_FILES[0]).is_file():
        return []
    try:
        before = read_json(run_dir / REPORT_FILES[0])
    except FileContentError:  # it is only a comparison
        return []
    if before.get("dataset") != report.dataset or before.get("num_images") != report.num_images:
        return []
    rows = []
    for key, result in report.results.items():
        values = before.get(key)
        for metric in result.headline():
            old = None if not isinstance(values, dict) else values.get(metric.key.removeprefix("mask_"))
            if isinstance(old, int | float):
                rows.append((metric.name, metric.value, float(old), f"{metric.value - old:+.3f}"))
    table = Table(("metric", "now", "in training", "difference"), rows)
    return [Section("Beside the run's own report", [table])] if rows else []


def _facts(
    arguments: argparse.Namespace, choice: Choice, index: DetectionIndex, precision: str, argv: Sequence[str] | None
) -> list[Fact]:
    """The head of the page."""
    images = f"{index.name}, {choice.reason}" if choice.reason else index.name
    command = command_line("detr evaluate", sys.argv[1:] if argv is None else argv)
    return [
        ("model", arguments.model),
        ("data", arguments.dataset),
        ("images", images),
        *([] if arguments.dtype is None else [("precision", precision)]),
        *provenance(command),
    ]


def _scored_by(evaluators: Sequence[Evaluator]) -> str:
    """Which package computed COCO's metrics."""
    boxes = _box_evaluator(evaluators)
    return "" if boxes is None else f"\nCOCO metrics: computed by {engine_and_version(boxes.engine)}"
