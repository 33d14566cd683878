"""Trains a model from a recipe.

    detr train shapes --output_dir runs/demo
    detr train detr_r50 --data COCO_FOLDER --gpus auto

    detr train auto --data MY_DATASET --minutes 60

chooses the settings for the data and the time, and says why.

A recipe is a YAML file or the name of a built-in one. Every key can also be set on the command line, which takes
precedence. The run's folder contains the recipe, `log.jsonl`, the trackers' files, the newest checkpoints and the best
model so far, in `model/`, ready to use.

    detr train --replay runs/demo/nonfinite/step_00000012_process_0.safetensors --mixed_precision no

repeats the step whose non-finite loss ended a run, in the same or another precision.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_detr.commands.launching import first_process_speaks, launched
from modeling_detr.commands.results import link_to
from modeling_detr.errors_detr import printable
from modeling_detr.line_breaks import fitted
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import builtin_recipes, parse_arguments, parse_recipe


if TYPE_CHECKING:
    from modeling_detr.evaluation.report import EvaluationReport
    from modeling_detr.training.setup import PreparedRun


OPTION_NAMES = {"format": "data_format"}


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; returns the exit code, which is 128 plus the signal's number if a signal stopped the run."""
    arguments, code = launched("train", argv, parse_recipe)
    if code is not None:
        return code
    if any(argument.partition("=")[0] == "--replay" for argument in arguments):
        return _replay(arguments)
    recipe, notes, choices = _recipe(arguments)

    # Slow imports come after parsing, so that `--help` and errors in the recipe appear at once.
    from modeling_detr.provenance import command_line
    from modeling_detr.training.export import push_model, push_notes
    from modeling_detr.training.plan import plan
    from modeling_detr.training.preflight import preflight
    from modeling_detr.training.run_folder import MODEL
    from modeling_detr.training.setup import prepare_run
    from modeling_detr.training.signals import TrainingInterrupted
    from modeling_detr.training.trainer import Trainer

    # Build everything, print the plan, and run the checks before the first step.
    with first_process_speaks():
        run = prepare_run(recipe, notes + push_notes(recipe))
    on_main_process = run.accelerator.is_main_process
    summary = "\n".join([*map(printable, choices), plan(run)]) if on_main_process else ""
    if on_main_process:
        print(fitted(summary, indent=10), flush=True)
    if recipe.preflight:
        for line in preflight(run):
            print(fitted(f"preflight {printable(line)}", indent=10), flush=True)

    # Train; a signal ends the run between two steps, with a checkpoint.
    try:
        report = Trainer(run, command_line("detr train", arguments), summary).train()
    except TrainingInterrupted as interruption:
        if on_main_process:
            print(interruption, flush=True)
        run.accelerator.end_training()
        return 128 + interruption.signal_number

    if on_main_process:
        _print_results(run, report)
    run.accelerator.end_training()
    if on_main_process and recipe.push_to_hub is not None:
        message = f"{report.primary_metric.name} {run.state.best_ap:.3f} after epoch {run.state.best_epoch}"
        print(f"pushed to {push_model(recipe.run_dir / MODEL, recipe.push_to_hub, recipe.hub_private, message)}")
    return 0


def _print_results(run: "PreparedRun", report: "EvaluationReport") -> None:
    """Prints the last evaluation, and where everything is."""
    from modeling_detr.data.findings import counted
    from modeling_detr.evaluation.report import REPORT_PAGE
    from modeling_detr.training.expectations import hardly_learned_note
    from modeling_detr.training.metric_logger import read_log
    from modeling_detr.training.run_folder import LOG, MODEL, PREDICTIONS
    from modeling_detr.visualization import plot_curves

    run_dir, state = run.recipe.run_dir, run.state
    log = read_log(run_dir / LOG)
    print(f"\nThe last evaluation, after {counted(state.step, 'step')}:\n\n{report.metrics_table()}\n")
    metric = report.primary_metric.name
    print(f"{state.seconds / 60:.1f} minutes; best {metric} {state.best_ap:.3f}, after epoch {state.best_epoch}.")
    note = hardly_learned_note(run.recipe, report, state.step, run.schedule.steps_per_epoch)
    if note is not None:
        print(fitted(note))
    print(f"model     {run_dir / MODEL}, for detr predict, from_pretrained and detr convert")
    print(f"pictures  {run_dir / PREDICTIONS}")
    if any(entry["kind"] == "epoch" for entry in log):
        print(f"curves    {plot_curves({run_dir.name: log}, run_dir / 'curves.png')}")
    print(link_to(run_dir / REPORT_PAGE))


def _recipe(arguments: Sequence[str]) -> tuple[Recipe, list[str], list[str]]:
    """Returns the recipe, notes for its plan, and a line for each choice of the recipe `auto`."""
    notes: list[str] = []
    recipe = parse_recipe(arguments, notes=notes)
    parsed = parse_arguments(arguments)
    if parsed.path != builtin_recipes()["auto"]:
        return recipe, notes, []

    from modeling_detr.training.auto.choosing import auto_recipe

    chosen = auto_recipe(parsed.given)
    return chosen.recipe, [], chosen.lines


def _replay(arguments: Sequence[str]) -> int:
    """Repeats a step; returns 1 if it is not finite again, 0 if it is finite."""
    parser = argparse.ArgumentParser("detr train", allow_abbrev=False)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="a file in the nonfinite/ folder of a run")
    parser.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], help="default: that of the run")
    parsed = parser.parse_args(arguments)

    from modeling_detr.training.replay import FailedStep, Replay

    replay = Replay(FailedStep.load(parsed.replay), parsed.mixed_precision)
    for line in replay.lines():
        print(printable(line), flush=True)
    print("the step is finite here" if replay.is_finite else "the step is not finite again")
    return 0 if replay.is_finite else 1
