"""A run from its recipe to its best model: epochs, evaluations, checkpoints, logs, stopping and resuming."""

import contextlib
import copy
import dataclasses
import errno
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate.utils import DistributedType, broadcast, gather_object
from numpy.typing import NDArray
from PIL import Image
from timm.utils.model_ema import ModelEmaV3

from modeling_detr.atomic_output import replace_text
from modeling_detr.errors_detr import CheckpointError, OutputError
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.aids import active_aids, build_training_model
from modeling_detr.training.checkpointing import (
    CheckpointedRun,
    TrainingState,
    holds_part,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from modeling_detr.training.distributed import build_accelerator, copy_weights, gather_full, leave_cores_to_loaders
from modeling_detr.training.divergence import NonFiniteLossError, image_indices
from modeling_detr.training.engine import Engine, StepOptions, train_one_epoch
from modeling_detr.training.export import export_model, model_card
from modeling_detr.training.metric_logger import MetricLogger, drop_later_entries
from modeling_detr.training.monitoring import Pace, find_symptoms, is_due
from modeling_detr.training.optimization import build_lr_scheduler, build_optimizer
from modeling_detr.training.pictures import draw_predictions
from modeling_detr.training.plan import plan
from modeling_detr.training.recipe import Recipe, compare_for_resume
from modeling_detr.training.replay import FailedStep
from modeling_detr.training.run_folder import CHECKPOINTS, RECIPE, drop_later_checkpoints, holds_run, tidy_after_kill
from modeling_detr.training.setup import (
    build_loaders,
    build_model,
    build_processor,
    compile_parts,
    head_note,
    open_splits,
)
from modeling_detr.training.signals import StopRequested, StopSignals, TrainingInterrupted
from modeling_detr.training.trackers import check_trackers, start_trackers


_NO_SPACE_REMEDY = "free some space, then resume from the last checkpoint with the same command and --resume auto"


class Trainer:
    """A run. Every process builds one; build it, show its `plan`, let it `train`.

    Args:
        recipe: The run.

    Raises:
        ValueError: The recipe does not fit the data or the model; or the folder already holds a run and the recipe
            does not say to resume it.
        OSError: Something that the recipe names does not exist or cannot be read.
    """

    def __init__(self, recipe: Recipe) -> None:
        check_trackers(recipe.trackers)
        self.recipe = recipe
        self.run_dir = recipe.run_dir
        self.checkpoint = _checkpoint_to_resume(recipe)
        self.accelerator = build_accelerator(recipe)
        leave_cores_to_loaders(self.accelerator, recipe.num_workers)
        self.accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked at it
        with self.accelerator.main_process_first():  # what is made or downloaded is then there for the others
            self.train_index, self.eval_index = open_splits(recipe)
            stuff = [label for label, category in enumerate(self.train_index.categories) if not category.is_thing]
            self.detector = build_model(recipe, self.train_index.id2label, stuff)
            self.processor = build_processor(recipe, self.detector.config)
        self.loaders = build_loaders(
            recipe,
            self.train_index,
            self.eval_index,
            self.processor,
            self.accelerator,
        )
        self.detector.to(self.accelerator.device)
        self._sharded = self.accelerator.distributed_type == DistributedType.FSDP
        # with FSDP a copy trains, in parts, and `detector` is what they are put together in
        self._trained = copy.deepcopy(self.detector) if self._sharded else self.detector
        training_model = build_training_model(self._trained, **active_aids(recipe))
        training_model.to(self.accelerator.device)
        if not self._sharded:  # which wants parameters in their usual order
            # convolutions are a third faster with channels last (measured on a CPU; on a GPU tensor cores want it)
            training_model.to(memory_format=torch.channels_last)
        # the averaged weights, in a detector of their own
        self.ema = ModelEmaV3(self.detector, recipe.ema_decay, use_warmup=True) if recipe.ema_decay > 0 else None
        if recipe.compile:
            compile_parts(self.detector)
        learning_rate, backbone_learning_rate = self._rates()
        self.raw_optimizer = build_optimizer(
            training_model,
            learning_rate=learning_rate,
            backbone_learning_rate=backbone_learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(training_model, self.raw_optimizer)
        self._watch = self._saved_at = time.monotonic()
        self._signals: StopSignals | None = None
        self.state = TrainingState(
            num_processes=self.accelerator.num_processes,
            step_size=self.loaders.train_sampler.step_size,
            num_images=len(self.train_index),
            id2label=dict(self.train_index.id2label),
        )
        note = head_note(recipe, self.train_index.id2label)
        self.notes: list[str] = [] if note is None else [note]
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        # asked of every process, also of one that sees no checkpoint: alone, the others would wait for it for ever
        if len({*gather_object([(self.state.step, self.state.epoch)])}) > 1:
            raise ValueError(
                f"{self.run_dir}: the processes see different checkpoints in it; with several machines output_dir "
                f"must be a folder that all of them share."
            )
        self.steps_per_epoch = self.loaders.train_sampler.steps_per_epoch
        steps_left = self.steps_per_epoch * (recipe.epochs - self.state.epoch) - self.state.step_in_epoch
        self.total_steps = min(self.state.step + max(0, steps_left), recipe.max_steps or sys.maxsize)
        self.scheduler = build_lr_scheduler(
            self.raw_optimizer,
            recipe.lr_schedule,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            drop_at=self._drops(),
            first_step=self.state.step,
        )

    @property
    def result(self) -> Detector:
        """The detector that is judged and exported: the averaged one, if the run keeps it."""
        return self.detector if self.ema is None else cast(Detector, self.ema.module)

    def _put_together(self) -> None:
        """Has `detector` hold the weights that the training has come to; all processes call it."""
        if self._sharded:
            copy_weights(self._trained, self.detector)

    def _rates(self) -> tuple[float, float]:
        """Of the transformer and the heads, and of the backbone."""
        return (
            self.rate_factor * self.recipe.learning_rate,
            self.rate_factor * self.recipe.backbone_learning_rate,
        )

    @property
    def rate_factor(self) -> float:
        """What the recipe's rates are multiplied with for the size of a step."""
        ratio = self.loaders.train_sampler.step_size / self.recipe.scale_lr_from
        return {None: 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[self.recipe.scale_lr]

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps over which the rates rise."""
        return self.recipe.warmup_steps or round(self.recipe.warmup_epochs * self.steps_per_epoch)

    def _drops(self) -> list[int]:
        """When the rates drop, in optimizer steps: with the epochs, though earlier ones may have had other steps."""
        if self.recipe.lr_drop_steps is not None:
            return [*range(self.recipe.lr_drop_steps, self.total_steps, self.recipe.lr_drop_steps)]
        every, state = self.recipe.lr_drop_epochs, self.state
        begun = state.step - state.step_in_epoch  # steps before this epoch
        return [
            begun + max(0, epoch - state.epoch) * self.steps_per_epoch
            for epoch in range(every, self.recipe.epochs, every)
        ]

    # Before the first step

    def plan(self) -> str:
        """What is about to happen, for a person to read."""
        return plan(self)

    def _resume(self, folder: Path) -> None:
        """Continues from a checkpoint: exactly, if the recipe has not changed."""
        changes = compare_for_resume(self.recipe, yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")))
        if changes.model:
            remedy = "undo that, or start a new run with another output_dir"
            raise CheckpointError(folder, f"does not fit this recipe: {changes.model[0]}", remedy)
        id2label = dict(self.train_index.id2label)
        load_checkpoint(folder, self._checkpointed(), id2label=id2label)
        self.state.id2label = id2label  # checkpoints of older versions do not have it
        if self.ema is not None and not holds_part(folder, "ema.safetensors"):
            self._put_together()
            self.ema.set(self.detector)
            self.notes.append(f"{folder} has no averaged weights: the average begins with its weights")
        for group, rate in zip(self.raw_optimizer.param_groups, self._rates(), strict=True):
            group["lr"], group["weight_decay"] = rate, self.recipe.weight_decay  # the recipe's, not the checkpoint's
        self.notes += changes.sentences()
        reordered = [change.name for change in changes.order]
        step_size = self.loaders.train_sampler.step_size
        if self.state.step_size != step_size:
            reordered.append(f"the images of a step (were {self.state.step_size}, are {step_size})")
        if self.state.num_images != len(self.train_index):
            reordered.append(f"the training images (were {self.state.num_images:,}, are {len(self.train_index):,})")
        if self.state.num_processes != self.accelerator.num_processes:
            same = "" if reordered else ": its steps have the same images all the same, so it goes on where it was"
            self.notes.append(
                f"{self.state.num_processes} processes trained, now {self.accelerator.num_processes}{same}"
            )
        if reordered and self.state.step_in_epoch > 0:
            self.notes.append(
                f"goes on with the next epoch, since {', '.join(reordered)} changed in the middle of one"
            )
            self.state.epoch, self.state.step_in_epoch = self.state.epoch + 1, 0
            self.state.epoch_averages.take()
        self.state.num_processes, self.state.step_size = self.accelerator.num_processes, step_size
        self.state.num_images = len(self.train_index)

    # The run

    def train(self) -> EvaluationReport:
        """Trains from wherever the run is to its end.

        Returns:
            The last evaluation.

        Raises:
            NonFiniteLossError: A loss or gradient is not finite; on all processes, before the optimizer moves.
            TrainingInterrupted: SIGINT, SIGTERM or SIGUSR1 came; a checkpoint has been written.
            OSError: Something cannot be written.
        """
        report = None
        self._watch = self._saved_at = time.monotonic()
        with self._open_run() as logger, StopSignals(alone=self.accelerator.num_processes == 1) as signals:
            self._signals = signals
            try:
                while not self._is_at_end():
                    pace = self._train_epoch(logger, signals)
                    report = self._end_epoch(logger, signals, pace)
                if report is None:  # the run had been at its end before
                    report = self.evaluate()
                    if self.state.best_ap is None:
                        self._keep_best(report, self._draw_predictions())
            except StopRequested:
                raise self._interrupted(logger, signals) from None
            finally:
                self._signals = None
        return report

    def _is_at_end(self) -> bool:
        state = self.state
        if state.epoch >= self.recipe.epochs or self._stops_early():
            return True
        return state.closed_step == state.step >= self.total_steps

    def _stops_early(self) -> bool:
        patience = self.recipe.early_stopping_patience
        return patience is not None and self.state.stale_evaluations >= patience

    def evaluate(self) -> EvaluationReport:
        """The detector as it is, on the evaluation images."""
        self._put_together()
        if self.accelerator.num_processes > 1:  # running statistics of batch norms differ between processes
            broadcast(list(self.result.buffers()))
        show = sys.stderr.isatty()
        batches: Iterable[DetectionBatch] = self.loaders.eval
        if self._signals is not None:
            batches = self._signals.until_stopped(batches)
        # Mask AP needs the masks of all queries, panoptic segments those of a few.
        skip = ("masks",) if self.recipe.task == "panoptic" else ()
        with self.accelerator.autocast():
            return evaluate(
                self.result,
                batches,
                self.processor,
                self.eval_index,
                self.accelerator,
                default_evaluators(self.eval_index, self.recipe.task, skip=skip),
                progress=show,
            )

    @contextmanager
    def _open_run(self) -> Iterator[MetricLogger]:
        """The run's folder as the checkpoint has left it, and its logger, closed at the end."""
        step = self.state.step
        if self.accelerator.is_main_process:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            tidy_after_kill(self.run_dir)
            drop_later_checkpoints(self.run_dir, step)
            drop_later_entries(self.run_dir, step, self.state.closed_step)
            start_trackers(self.accelerator, self.recipe, step)  # if one does not, the folder still holds no run
            replace_text(self.run_dir / RECIPE, self.recipe.to_yaml())
        logger = MetricLogger(
            self.run_dir,
            self.accelerator,
            total_steps=self.total_steps,
            epochs=self.recipe.epochs,
            first_step=step,
        )
        try:
            yield logger
        except BaseException as error:
            with contextlib.suppress(OSError):  # on a full disk closing fails too, and says less than what came first
                logger.close()
            if isinstance(error, OutputError):
                raise OutputError(error.where, error.problem, _NO_SPACE_REMEDY) from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the log or a tracker
                raise OutputError(self.run_dir, f"cannot be written ({error.strerror})", _NO_SPACE_REMEDY) from error
            raise
        logger.close()

    def _train_epoch(self, logger: MetricLogger, signals: StopSignals) -> dict[str, float]:
        """Trains from `state.step_in_epoch` to the end of the epoch, or of the run; returns how it went.

        Raises:
            TrainingInterrupted: A signal came; a checkpoint has been written.
        """
        state, recipe = self.state, self.recipe
        pace, epoch_pace = Pace(self.accelerator.device), Pace(self.accelerator.device)
        if state.step >= self.total_steps:  # only its end is left to do
            return epoch_pace.take()
        self.loaders.train_sampler.set_epoch(state.epoch, first_step=state.step_in_epoch)
        options = StepOptions(
            batches_per_step=recipe.gradient_accumulation_steps,
            loss_normalization=recipe.loss_normalization,
            max_pixels=recipe.max_pixels_per_batch,
            max_grad_norm=recipe.max_grad_norm,
            image_mean=self.processor.image_mean,
            image_std=self.processor.image_std,
            seed=recipe.seed,
        )
        steps = train_one_epoch(
            Engine(self.model, self.detector.config, self.optimizer, self.scheduler, self.accelerator, options),
            signals.interruptible(self.loaders.train),
            state.step,
            should_stop=lambda: signals.received is not None,
            wants_checkpoint=self._checkpoint_is_due,
        )
        while state.step < self.total_steps:
            rates = [group["lr"] for group in self.raw_optimizer.param_groups]
            try:
                result = next(steps, None)
            except NonFiniteLossError as error:
                raise self._located(error) from None
            except (OSError, ValueError):  # such as an image that cannot be read
                self._save_what_was_done(logger)
                raise
            if result is None:
                break
            state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
            if self.ema is not None:
                self._put_together()
                self.ema.update(self.detector, state.step)
            values = {**result.losses, "grad_norm": result.grad_norm}
            state.step_averages.add(values)
            state.epoch_averages.add(values)
            pace.add(result)
            epoch_pace.add(result)
            logger.advance(state.epoch, result.losses["loss"])
            if state.step % recipe.log_every_steps == 0:
                named_rates = {"learning_rate": rates[0], "backbone_learning_rate": rates[1]}
                logger.step(state.epoch, state.step, {**state.step_averages.take(), **named_rates, **pace.take()})
            if result.stop_requested:
                raise self._interrupted(logger, signals)
            due = recipe.checkpoint_every_steps and state.step % recipe.checkpoint_every_steps == 0
            due = due or result.checkpoint_requested
            if due and state.step_in_epoch < self.steps_per_epoch:  # else the epoch's end will write one
                self._save_checkpoint(logger)
        return epoch_pace.take()

    def _end_epoch(
        self, logger: MetricLogger, signals: StopSignals, pace: Mapping[str, float]
    ) -> EvaluationReport | None:
        """Evaluates, keeps the model if it is the best, logs, writes a checkpoint; each if it is due.

        Raises:
            TrainingInterrupted: A signal came; if it came before the evaluation was whole, that is done again.
        """
        state, recipe = self.state, self.recipe
        ends_run = state.step >= self.total_steps
        metrics: dict[str, Any] = {}
        report = None
        is_best = False
        if ends_run or (state.epoch + 1) % recipe.eval_every_epochs == 0:
            report = self.evaluate()
            if self._any_process(signals.received is not None):
                raise self._interrupted(logger, signals)
            metrics = {**report.log_values(), "eval_loss": report.losses["loss"]}
            pictures = self._draw_predictions()
            is_best = self._keep_best(report, pictures)
            logger.images("predictions", list(pictures.values()), state.step)
        self._count_seconds()
        averages = {**state.epoch_averages.means(), **pace}
        headline = () if report is None else report.headline()
        logger.epoch(state.epoch, state.step, averages, {**metrics, "seconds": state.seconds}, headline)
        if report is not None:
            due = is_due(state.step, self.total_steps, self.warmup_steps)
            for warning in find_symptoms(report, state.symptoms, due):
                logger.warning(state.epoch, state.step, warning)
        state.closed_step = state.step
        epoch_is_whole = state.step_in_epoch >= self.steps_per_epoch
        if epoch_is_whole:
            state.epoch, state.step_in_epoch = state.epoch + 1, 0
            state.epoch_averages.take()
        interrupted = self._any_process(signals.received is not None)
        if interrupted and not ends_run:
            raise self._interrupted(logger, signals)
        if self._stops_early() and not ends_run:
            ends_run = True
            logger.message(
                f"stopped early: none of the last {state.stale_evaluations} evaluations was better than that after "
                f"epoch {state.best_epoch}"
            )
        if ends_run or is_best or state.epoch % recipe.checkpoint_every_epochs == 0:
            self._save_checkpoint(logger)
        return report

    def _keep_best(self, report: EvaluationReport, pictures: Mapping[str, NDArray[np.uint8]]) -> bool:
        """Exports the model, and the pictures of its predictions, if no earlier one had a higher primary metric.

        Returns:
            Whether it is the best so far.
        """
        state, ap = self.state, report.primary_metric.value
        state.last_ap = ap = -1.0 if math.isnan(ap) else ap  # nan: no ground truth to judge by
        if state.best_ap is not None and ap <= state.best_ap:
            state.stale_evaluations += 1
            return False
        state.stale_evaluations = 0
        state.best_ap, state.best_epoch, state.best_step = ap, state.epoch + 1, state.step
        if self.accelerator.is_main_process:
            card = model_card(self.recipe, self.detector.config, self.train_index, report, state)
            export_model(self.run_dir, self.result, self.processor, card)
            report.save(self.run_dir)
            for name, picture in pictures.items():
                path = self.run_dir / "predictions" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(picture).save(path)
        return True

    def _draw_predictions(self) -> dict[str, NDArray[np.uint8]]:
        """Pictures of evaluation images, on the main process; none on the others."""
        if not self.accelerator.is_main_process:
            return {}
        number = self.recipe.num_images_to_log
        return draw_predictions(self.result, self.processor, self.eval_index, self.recipe.task, number)

    def _save_checkpoint(self, logger: MetricLogger) -> Path:
        self._count_seconds()
        logger.flush()
        folder = save_checkpoint(self.run_dir, self._checkpointed())
        self._saved_at = time.monotonic()
        return folder

    def _checkpointed(self) -> CheckpointedRun:
        average = None if self.ema is None else self.ema.module
        return CheckpointedRun(self.model, self.raw_optimizer, self.accelerator, self.recipe, self.state, average)

    def _save_what_was_done(self, logger: MetricLogger) -> None:
        """A checkpoint before an error ends the run, if this process is alone: of several, each fails by itself."""
        if self.accelerator.num_processes == 1 and self.state.step > 0:
            with contextlib.suppress(OSError):  # a full disk would say less than the error
                folder = self._save_checkpoint(logger)
                logger.message(
                    f"{folder} holds everything up to step {self.state.step}: mend what the error names, and go on "
                    f"with the same command and --resume auto."
                )

    def _checkpoint_is_due(self) -> bool:
        """Whether it is time, by this process's clock."""
        minutes = self.recipe.checkpoint_every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.state.seconds, self._watch = self.state.seconds + now - self._watch, now

    def _interrupted(self, logger: MetricLogger, signals: StopSignals) -> TrainingInterrupted:
        folder = self._save_checkpoint(logger)
        number = signals.received or signal.SIGTERM  # None: it was another process that a signal reached
        return TrainingInterrupted(
            number,
            f"Stopped by {signal.Signals(number).name} after step {self.state.step}; {folder} holds everything. "
            f"Go on with the same command and --resume auto.",
        )

    def _located(self, error: NonFiniteLossError) -> NonFiniteLossError:
        """The error with epoch, step and files, and the step on file to be run again; all processes call it."""
        epoch, step = self.state.epoch + 1, self.state.step + 1
        model = self.accelerator.unwrap_model(self.model)
        weights = gather_full(model.state_dict())  # on all processes: some may hold only parts
        written: list[str] = []
        if error.share is not None:
            images = {index for part, _ in error.share.parts for index in image_indices(part)}
            failed = FailedStep(
                share=error.share,
                weights=weights,
                frozen=[name for name, parameter in model.named_parameters() if not parameter.requires_grad],
                recipe=dataclasses.replace(self.recipe, mixed_precision=self.accelerator.mixed_precision),
                config=self.detector.config,
                image_mean=self.processor.image_mean,
                image_std=self.processor.image_std,
                images={index: self.train_index.images[index].path for index in sorted(images)},
                terms=error.terms,
                epoch=epoch,
                step=step,
                process=self.accelerator.process_index,
            )
            try:
                written = [f"Run it again: detr train --replay {failed.save(self.run_dir)}"]
            except OSError as problem:  # a full disk must not hide what has happened
                written = [str(problem)]
        if self.accelerator.num_processes > 1:
            written = gather_object(written)
        saved = any((self.run_dir / CHECKPOINTS).glob("step_*"))
        resume = ["Go on from the last checkpoint with the same command and --resume auto"] if saved else []
        return NonFiniteLossError(
            error.terms,
            error.image_indices,
            error.finding,
            error.share,
            where=f"epoch {epoch}, step {step}",
            images=", ".join(self.train_index.images[position].path for position in error.image_indices),
            remedy="".join(f" {sentence}." for sentence in [*written, *resume]),
        )

    def _any_process(self, flag: bool) -> bool:
        votes = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, "sum") > 0)


def _checkpoint_to_resume(recipe: Recipe) -> Path | None:
    """The checkpoint that the recipe goes on from; None for a new run, whose folder must be free.

    Raises:
        ValueError: The folder holds a run that the recipe does not say to resume.
        FileNotFoundError: The checkpoint to resume does not exist.
    """
    run_dir = recipe.run_dir
    if recipe.resume is None:
        if holds_run(run_dir):
            raise ValueError(
                f"{run_dir} already holds a run; go on with --resume auto, or choose another --output_dir."
            )
        return None
    if recipe.resume == "auto":
        return newest_checkpoint(run_dir)
    folder = Path(recipe.resume)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such checkpoint; wanted a folder checkpoints/step_…, or --resume auto.")
    if folder.resolve().parents[1] != run_dir.resolve() and holds_run(run_dir):
        raise ValueError(
            f"{run_dir} already holds a run, and {folder} is a checkpoint of another; choose another --output_dir."
        )
    return folder
