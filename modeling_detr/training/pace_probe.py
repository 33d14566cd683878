"""How many steps fit into the minutes of a recipe: a short measurement before the first step.

With the recipe key `minutes`, a run takes real steps, evaluates and writes a checkpoint, measures how long each takes,
undoes everything, and sets its steps so that the learning rate schedule ends when the minutes are over. A resumed run
keeps the steps that were decided when it started.

    pace = measure_pace(run)
    pace.steps_in(60, schedule=run.schedule, recipe=recipe)
"""

import bisect
import contextlib
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from modeling_detr.atomic_output import discard, make_folder
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import RecipeError
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.checkpointing import save_checkpoint
from modeling_detr.training.distributed import in_main_process
from modeling_detr.training.engine import train_one_epoch
from modeling_detr.training.export import export_model, model_card
from modeling_detr.training.optimization import build_lr_scheduler
from modeling_detr.training.pictures import draw_predictions
from modeling_detr.training.preflight import unchanged_states
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.report_page import BestPage
from modeling_detr.training.setup import PreparedRun, Schedule, close_mosaics
from modeling_detr.visualization import draw_curves


WARMUP_STEPS = 5  # loaders start and kernels are chosen
TIMED_STEPS = 20
_MIN_TIMED_STEPS = 3
_MAX_SHARE = 0.1  # of the minutes, for the steps, and again for the evaluation
_MAX_SECONDS = 60.0
_MUCH_EVALUATION = 1 / 3  # of the time
_FOLDER = ".pace_probe"


@dataclass(frozen=True)
class TrainingPace:
    """What a run spends its time on.

    Attributes:
        seconds_per_step: Of an optimizer step, its images included.
        seconds_per_evaluation: Of an evaluation that is the best so far, with its model, pictures and page.
        seconds_per_checkpoint: Of a checkpoint, which follows an epoch.
    """

    seconds_per_step: float
    seconds_per_evaluation: float
    seconds_per_checkpoint: float

    def seconds_of(self, steps: int, steps_per_epoch: int, recipe: Recipe) -> float:
        """The expected duration of `steps` steps, with the evaluations and checkpoints between and after them."""
        return (
            steps * self.seconds_per_step
            + _occasions(steps, steps_per_epoch * recipe.eval_every_epochs) * self.seconds_per_evaluation
            + _occasions(steps, steps_per_epoch * recipe.checkpoint_every_epochs) * self.seconds_per_checkpoint
        )

    def steps_in(self, minutes: float, steps_per_epoch: int, recipe: Recipe) -> int:
        """The largest number of steps that takes at most `minutes`; 0 if not even one does."""
        most = int(60 * minutes / max(self.seconds_per_step, 1e-9))

        def seconds(steps: int) -> float:
            return self.seconds_of(steps, steps_per_epoch, recipe)

        return bisect.bisect_right(range(1, most + 1), 60 * minutes, key=seconds)


def _occasions(steps: int, every: int) -> int:
    """How often something happens that follows every `every` steps and the last one."""
    return math.ceil(steps / every)


# A run with a budget


def fit_to_minutes(run: PreparedRun) -> tuple[PreparedRun, str | None]:
    """Sets the steps of a run that still has to find out how many fit into `minutes`. All processes call it together.

    The drops of a step schedule keep their share of the run.

    Args:
        run: A run that is about to start, or to resume with other minutes than before.

    Returns:
        The run with a recipe and a schedule that end after the minutes, and a line to print; the same run and None if
        its steps are known.

    Raises:
        RecipeError: Not even one step and an evaluation fit into the minutes.
    """
    recipe, state = run.recipe, run.state
    if recipe.minutes is None or run.steps_are_known:
        return run, None
    minutes_left = recipe.minutes - state.seconds / 60
    steps_per_epoch = run.schedule.steps_per_epoch
    started = time.monotonic()
    pace = measure_pace(run, max_seconds=min(_MAX_SECONDS, 60 * _MAX_SHARE * max(0.0, minutes_left)))
    steps = pace.steps_in(minutes_left, steps_per_epoch, recipe)
    if steps < 1:
        problem = f"got {recipe.minutes:g}, of which {max(0.0, minutes_left):.2g} are left; "
        problem += f"a step takes {pace.seconds_per_step:.2g} s and an evaluation {pace.seconds_per_evaluation:.2g} s"
        raise RecipeError("minutes", problem, "allow more minutes")
    max_steps = state.step + steps
    total_before = run.schedule.total_steps
    drop = recipe.lr_drop_steps or recipe.lr_drop_epochs * steps_per_epoch
    fitted = dataclasses.replace(
        recipe,
        max_steps=max_steps,
        epochs=state.epoch + math.ceil((state.step_in_epoch + steps) / steps_per_epoch),
        lr_drop_steps=max(1, round(drop * max_steps / total_before)) if recipe.lr_schedule == "step" else None,
    )
    return _with_recipe(run, fitted), _line(pace, steps, steps_per_epoch, fitted, time.monotonic() - started)


def _with_recipe(run: PreparedRun, recipe: Recipe) -> PreparedRun:
    """The run with another schedule, before its next step."""
    schedule = Schedule.of(recipe, run.schedule.steps_per_epoch, run.state)
    close_mosaics(recipe, run.loaders, schedule)
    for group in run.raw_optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # the present schedule has scaled it
    return dataclasses.replace(
        run,
        recipe=recipe,
        checkpointed=dataclasses.replace(run.checkpointed, recipe=recipe),
        schedule=schedule,
        scheduler=build_lr_scheduler(
            run.raw_optimizer,
            recipe.lr_schedule,
            total_steps=schedule.total_steps,
            warmup_steps=schedule.warmup_steps,
            drop_at=schedule.drop_at,
            first_step=run.state.step,
        ),
        steps_are_known=True,
    )


def _line(pace: TrainingPace, steps: int, steps_per_epoch: int, recipe: Recipe, measuring: float) -> str:
    evaluations = _occasions(steps, steps_per_epoch * recipe.eval_every_epochs)
    share = evaluations * pace.seconds_per_evaluation / pace.seconds_of(steps, steps_per_epoch, recipe)
    line = (
        f"pace      {pace.seconds_per_step:.3g} s a step, {pace.seconds_per_evaluation:.3g} s an evaluation, "
        f"{pace.seconds_per_checkpoint:.2g} s a checkpoint (measured in {measuring:.0f} s): "
        f"{counted(steps, 'step')} ({steps / steps_per_epoch:.3g} epochs) and {counted(evaluations, 'evaluation')} "
        f"fit into {recipe.minutes:g} minutes"
    )
    if share > _MUCH_EVALUATION and evaluations > 1:
        line += f"; {share:.0%} of the time is evaluation, raise eval_every_epochs to train more"
    return line


# Measuring


def measure_pace(run: PreparedRun, max_seconds: float = _MAX_SECONDS) -> TrainingPace:
    """Measures the pace of a run by real steps, an evaluation and a checkpoint, and undoes them.

    All processes call it together, and get the same result.

    Args:
        run: A run that is about to train.
        max_seconds: Limit for the timed steps, and again for the evaluation, which then scores a part of the images.
    """
    with _undone(run):
        step, evaluation = _time_steps(run, max_seconds), _time_evaluation(run, max_seconds)
        checkpoint = _time_checkpoint(run)
    times: list[float] = broadcast_object_list([step, evaluation, checkpoint])
    return TrainingPace(*times)


def _time_steps(run: PreparedRun, max_seconds: float) -> float:
    """Seconds of a step. The main process decides how many are timed."""
    taken, started = 0, time.monotonic()
    for step in _steps(run):
        taken += 1
        run.weights.update_average(run.state.step + step)
        if taken == WARMUP_STEPS:
            started = time.monotonic()
        timed = taken - WARMUP_STEPS
        enough = timed >= TIMED_STEPS or (timed >= _MIN_TIMED_STEPS and time.monotonic() - started > max_seconds)
        if broadcast_object_list([enough])[0]:
            break
    return (time.monotonic() - started) / (taken - WARMUP_STEPS)


def _steps(run: PreparedRun) -> Iterator[int]:
    """Takes steps of the run, epoch by epoch without end; yields their number."""
    engine, number = run.engine(), 0
    for epoch in itertools.count(run.state.epoch):
        run.loaders.train_sampler.set_epoch(epoch, first_step=0)
        for _ in train_one_epoch(engine, run.loaders.train, run.state.step + number):
            number += 1
            yield number


def _time_evaluation(run: PreparedRun, max_seconds: float) -> float:
    """Seconds of an evaluation, in the slowest process, and of what the main process writes if it is the best one."""
    started, loader, seen = time.monotonic(), run.loaders.eval, 0
    run.weights.gather()

    def some_batches() -> Iterator[DetectionBatch]:
        nonlocal seen
        for batch in loader:
            seen += 1
            yield batch
            if time.monotonic() - started > max_seconds:
                return

    skip = ("masks",) if run.recipe.task == "panoptic" else ()
    evaluators = default_evaluators(run.eval_index, run.recipe.task, skip=skip)
    with run.accelerator.autocast():
        report = evaluate(
            run.weights.result, some_batches(), run.processor, run.eval_index, run.accelerator, evaluators
        )
    seconds = (time.monotonic() - started) * max(1, len(loader)) / max(1, seen)
    written = 0.0
    with _scratch_folder(run) as folder:
        if run.accelerator.is_main_process:
            written = _time_best(run, report, folder)
    return float(max(gather_object([seconds]))) + written


def _time_best(run: PreparedRun, report: EvaluationReport, folder: Path) -> float:
    """Seconds to write the model and the page of a best evaluation."""
    entry = {"kind": "epoch", "epoch": 1, **report.losses, "eval_loss": report.losses["loss"], **report.log_values()}
    draw_curves({"": [entry]})  # loads Matplotlib
    recipe, state = dataclasses.replace(run.recipe, output_dir=str(folder)), run.state
    started = time.monotonic()
    images = range(min(recipe.num_images_to_log, len(run.eval_index)))
    pictures = draw_predictions(run.weights.result, run.processor, run.eval_index, recipe.task, images)
    card = model_card(recipe, run.weights.detector.config, run.train_index, report, state)
    export_model(folder, run.weights.result, run.processor, card)
    report.save(folder, *BestPage(report, recipe, state, "", pictures).content)
    draw_curves({"": [entry]})
    return time.monotonic() - started


def _time_checkpoint(run: PreparedRun) -> float:
    """Seconds of a checkpoint."""
    with _scratch_folder(run) as folder:
        started = time.monotonic()
        save_checkpoint(folder, run.checkpointed)
        return time.monotonic() - started


@contextlib.contextmanager
def _scratch_folder(run: PreparedRun) -> Iterator[Path]:
    """A folder in that of the run, on the same disk, which is removed after the block in all processes."""
    folder = run.recipe.run_dir / _FOLDER
    with in_main_process(run.accelerator) as is_main:
        if is_main:
            make_folder(folder)
    try:
        yield folder
    finally:
        run.accelerator.wait_for_everyone()
        if run.accelerator.is_main_process:
            discard(folder)


@contextlib.contextmanager
def _undone(run: PreparedRun) -> Iterator[None]:
    """Restores weights, average, optimizer and random states after the block."""
    scaler = run.accelerator.scaler
    stateful: list[Any] = [run.raw_optimizer, *([] if scaler is None else [scaler])]
    states = [(part, copy.deepcopy(part.state_dict())) for part in stateful]
    restores: list[Callable[[], object]] = [*(_restore_to(part, state) for part, state in states)]
    average = run.weights.average
    modules = [run.model, run.weights.detector, *([] if average is None else [average])]
    tensors = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        with unchanged_states(run.model):
            yield
    finally:
        with torch.no_grad():
            for tensor, before in saved:
                tensor.copy_(before)
        for restore in restores:
            restore()


def _restore_to(part: Any, state: dict[str, Any]) -> Callable[[], object]:
    return lambda: part.load_state_dict(state)
