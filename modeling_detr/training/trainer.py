"""The run loop: train an epoch, evaluate, keep the best model, log, write a checkpoint."""

import contextlib
import itertools
import math
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray

from modeling_detr.analysis import Evidence
from modeling_detr.atomic_output import make_folder, replace_text
from modeling_detr.errors_detr import OutOfMemoryError, OutputError, RunInUseError
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluator import Evaluator
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import fix_of, output_error, write_failure
from modeling_detr.training.checkpointing import prune_checkpoints, save_checkpoint, set_aside_unreadable
from modeling_detr.training.display import Display
from modeling_detr.training.distributed import any_process, cores_per_process, in_main_process
from modeling_detr.training.divergence import NonFiniteLossError
from modeling_detr.training.engine import StepResult, train_one_epoch
from modeling_detr.training.export import export_model, model_card
from modeling_detr.training.metric_logger import MetricLogger, drop_later_entries
from modeling_detr.training.metrics_server import served_metrics
from modeling_detr.training.monitoring import Pace, Stopwatch, find_symptoms, is_due
from modeling_detr.training.pace_probe import fit_to_minutes
from modeling_detr.training.picture_history import drop_later_pictures, keep_pictures, save_pictures
from modeling_detr.training.pictures import draw_predictions
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.replay import describe_failure
from modeling_detr.training.report_page import BestPage
from modeling_detr.training.resume import checkpoint_to_resume
from modeling_detr.training.run_folder import PREDICTIONS, RECIPE, drop_later_checkpoints, locked, tidy_after_kill
from modeling_detr.training.run_status import Outcome, note_end, note_start
from modeling_detr.training.setup import PreparedRun, prepare_run
from modeling_detr.training.signals import StopRequested, StopSignals, TrainingInterrupted
from modeling_detr.training.trackers import start_trackers


if TYPE_CHECKING:
    from modeling_detr.training.run_metrics import RunMetrics


_RESUME = "with the same command and --resume auto"


class Trainer:
    """Trains a prepared run to its end. Every process has one.

    Args:
        run: The run; see `prepare_run`.
        command: The command that started it, for the page of the report.
        plan: See `plan.plan`; it is written into the status of the run.

    Attributes:
        run: The run.
        state: The progress of the run.
    """

    def __init__(self, run: PreparedRun, command: str = "", plan: str = "") -> None:
        self.run = run
        self._command, self._plan = command, plan
        self._page: BestPage | None = None
        self._evaluators: Sequence[Evaluator] = ()  # of the last evaluation
        self.state = run.state
        self._signals = StopSignals(alone=run.accelerator.num_processes == 1)
        self._stopwatch = Stopwatch()
        self._logger: MetricLogger
        self._metrics: RunMetrics | None = None
        self._reported_unreadable: set[int] = set()

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> "Trainer":
        """Prepare a run and return its trainer; see `prepare_run` for the errors."""
        return cls(prepare_run(recipe))

    def train(self) -> EvaluationReport:
        """Train from the current state to the end of the run.

        Returns:
            The last evaluation.

        Raises:
            NonFiniteLossError: A loss or the gradient is not finite. Raised in all processes, before the optimizer
                steps.
            TrainingInterrupted: SIGINT, SIGTERM or SIGUSR1 arrived, or another process cannot load its images; a
                checkpoint has been written.
            LoaderError: A loader process has ended or keeps the run waiting; a checkpoint has been written. The same
                holds for any other error of a batch, such as an image that cannot be read.
            OSError: A file cannot be written.
        """
        report = None
        self._decide_steps()
        self._stopwatch = Stopwatch(self.state.seconds)
        with self._open_folder(), self._signals:
            try:
                while not self._is_finished():
                    pace = self._train_epoch()
                    report = self._evaluate_if_due()
                    is_best = report is not None and self._keep_if_best(report)
                    self._log_epoch(pace, report)
                    if is_best or self._is_last_epoch or self._stops_early():
                        self._finish_page()
                    self._end_epoch(is_best)
                if report is None:  # the run had already finished
                    report = self._evaluate_to_the_end()
                    if self.state.best_ap is None:
                        self._keep_if_best(report)
            except StopRequested:
                raise self._stopped() from None
        for loader in (self.run.loaders.train, self.run.loaders.eval):
            loader.close()
        return report

    def _decide_steps(self) -> None:
        """Find out how many steps fit into the minutes of the recipe, if it gives minutes."""
        try:
            self.run, line = fit_to_minutes(self.run)
        except NonFiniteLossError as error:
            raise describe_failure(error, self.run) from None
        if line is not None and self.run.accelerator.is_main_process:
            print(fitted(line, indent=10), flush=True)

    def _is_finished(self) -> bool:
        if self.state.epoch >= self.run.recipe.epochs or self._stops_early():
            return True
        return self.state.closed_step == self.state.step >= self.run.schedule.total_steps

    def _stops_early(self) -> bool:
        patience = self.run.recipe.early_stopping_patience
        return patience is not None and self.state.stale_evaluations >= patience

    @property
    def _is_last_epoch(self) -> bool:
        return self.state.step >= self.run.schedule.total_steps

    # One epoch

    def _train_epoch(self) -> dict[str, float]:
        """Train to the end of the epoch or the run; return its speed, loader wait and memory (see `Pace.take`).

        Raises:
            TrainingInterrupted: A signal arrived; a checkpoint has been written.
        """
        state, run = self.state, self.run
        pace, epoch_pace = Pace(run.accelerator.device), Pace(run.accelerator.device)
        if self._is_last_epoch:  # only the evaluation remains
            return epoch_pace.take()
        run.loaders.train_sampler.set_epoch(state.epoch, first_step=state.step_in_epoch)
        remaining = (run.schedule.total_steps - state.step) * run.recipe.gradient_accumulation_steps
        steps = train_one_epoch(
            run.engine(),
            itertools.islice(self._signals.interruptible(run.loaders.train), remaining),
            state.step,
            should_stop=lambda: self._signals.should_stop,
            wants_checkpoint=self._checkpoint_is_overdue,
        )
        while state.step < run.schedule.total_steps:
            rates = [group["lr"] for group in run.raw_optimizer.param_groups]
            result = self._next_step(steps)
            if result is None:
                self._stop_if_requested()
                break
            state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
            run.weights.update_average(state.step)
            self._report_limit()
            pace.add(result)
            epoch_pace.add(result)
            self._log_step(result, rates, pace)
            if result.stop_requested or (run.accelerator.num_processes == 1 and self._signals.should_stop):
                raise self._stopped()
            if self._checkpoint_is_due_within_epoch(result):
                self._save_checkpoint()
        return epoch_pace.take()

    def _next_step(self, steps: Iterator[StepResult]) -> StepResult | None:
        """Take a step. A non-finite loss is reported with its step; before other errors a checkpoint is written."""
        try:
            return next(steps, None)
        except NonFiniteLossError as error:
            raise describe_failure(error, self.run) from None
        except OutOfMemoryError as error:
            self._save_before_error()
            images = self.run.train_index.images
            paths = "".join(f", {images[index].path}" for index in error.image_indices[:1])
            raise OutOfMemoryError(f"step {self.state.step + 1}{paths}", error.problem, error.remedy) from error
        except (OSError, ValueError):
            self._save_before_error()
            raise

    def _evaluate_if_due(self) -> EvaluationReport | None:
        """Evaluate after every `eval_every_epochs` epochs and at the end of the run.

        Raises:
            TrainingInterrupted: A signal arrived; the evaluation is repeated after a resume.
        """
        if not self._is_last_epoch and (self.state.epoch + 1) % self.run.recipe.eval_every_epochs != 0:
            return None
        return self._evaluate_to_the_end()

    def _evaluate_to_the_end(self) -> EvaluationReport:
        report = self.evaluate()
        self._stop_if_requested()  # the report is then incomplete
        return report

    def evaluate(self) -> EvaluationReport:
        """Evaluate the current model on the evaluation images."""
        run = self.run
        run.weights.gather()
        if run.accelerator.num_processes > 1:  # running statistics of batch norms differ between processes
            broadcast(list(run.weights.result.buffers()))
        # Mask AP is skipped: it needs the masks of all queries, panoptic segments only those of a few.
        skip = ("masks",) if run.recipe.task == "panoptic" else ()
        self._evaluators = default_evaluators(run.eval_index, run.recipe.task, skip=skip)
        with run.accelerator.autocast():
            return evaluate(
                run.weights.result,
                self._signals.until_stopped(run.loaders.eval),
                run.processor,
                run.eval_index,
                run.accelerator,
                self._evaluators,
                progress=sys.stderr.isatty(),
            )

    def _keep_if_best(self, report: EvaluationReport) -> bool:
        """Export the model and pictures of its predictions if its primary metric is the highest so far.

        Returns:
            Whether the metric is the highest so far.
        """
        state, run = self.state, self.run
        pictures = self._draw_predictions()
        value = report.primary_metric.value
        state.last_ap = value = -1.0 if math.isnan(value) else value  # nan: no ground truth
        is_best = state.best_ap is None or value > state.best_ap
        state.stale_evaluations = 0 if is_best else state.stale_evaluations + 1
        if is_best:
            state.best_ap, state.best_epoch, state.best_step = value, state.epoch + 1, state.step
        with in_main_process(run.accelerator) as is_main:
            if is_best and is_main:
                card = model_card(run.recipe, run.weights.detector.config, run.train_index, report, state)
                export_model(run.recipe.run_dir, run.weights.result, run.processor, card)
                evidence = Evidence.of(self._evaluators)
                self._page = BestPage(report, run.recipe, state, self._command, pictures, evidence)
                report.save(run.recipe.run_dir, *self._page.content)
                save_pictures(run.recipe.run_dir / PREDICTIONS, pictures)
            if is_main:
                keep_pictures(run.recipe.run_dir, state.step, pictures)
            self._logger.images("predictions", list(pictures.values()), state.step)
        return is_best

    def _finish_page(self) -> None:
        """Add analyses and curves to the page of the best evaluation, if this process knows it."""
        with in_main_process(self.run.accelerator):
            if self._page is not None:
                self._page.finish()

    def _end_epoch(self, is_best: bool) -> None:
        """Move on to the next epoch, and write a checkpoint if one is due.

        Raises:
            TrainingInterrupted: A signal arrived; a checkpoint has been written.
        """
        state, recipe, is_last = self.state, self.run.recipe, self._is_last_epoch
        state.closed_step = state.step
        if state.step_in_epoch >= self.run.schedule.steps_per_epoch:
            state.epoch, state.step_in_epoch = state.epoch + 1, 0
            state.epoch_averages.take()
        if not is_last:
            self._stop_if_requested()
        if self._stops_early() and not is_last:
            is_last = True
            self._logger.message(
                f"stopped early: no improvement in the last {state.stale_evaluations} evaluations, since epoch "
                f"{state.best_epoch}"
            )
        if is_last or is_best or state.epoch % recipe.checkpoint_every_epochs == 0:
            self._save_checkpoint()

    # The log

    def _log_step(self, result: StepResult, rates: list[float], pace: Pace) -> None:
        state = self.state
        values = {**result.losses, "grad_norm": result.grad_norm}
        state.step_averages.add(values)
        state.epoch_averages.add(values)
        self._logger.advance(state.epoch, state.step_in_epoch, result.losses["loss"])
        if self._metrics is not None:
            self._metrics.note_step(state.epoch, state.step, result)
        self._report_unreadable()
        if state.step % self.run.recipe.log_every_steps == 0:
            named_rates = {"learning_rate": rates[0], "backbone_learning_rate": rates[1]}
            progress = {"images": self._images_so_far, "seconds": self._stopwatch.seconds}
            values = {**state.step_averages.take(), **named_rates, **pace.take(), **progress}
            with in_main_process(self.run.accelerator):
                self._logger.step(state.epoch, state.step, values)
            if self._metrics is not None:
                self._metrics.note_logged(values)

    @property
    def _images_so_far(self) -> int:
        """The images that the run has trained on; earlier epochs count as they are now, if the dataset has changed."""
        per_epoch, step_size = len(self.run.train_index), self.run.loaders.train_sampler.step_size
        return self.state.epoch * per_epoch + min(self.state.step_in_epoch * step_size, per_epoch)

    def _report_limit(self) -> None:
        """Say once that a step ran out of memory, and keep the limit found for checkpoints."""
        text = self.run.limit.report()
        if text is not None:
            self.state.max_pixels = self.run.limit.pixels
            self._logger.warning(self.state.epoch, self.state.step, text)

    def _report_unreadable(self) -> None:
        """Warn once of each training image that cannot be read and was replaced."""
        unreadable = self.run.loaders.train.unreadable
        for number, (image, reason) in enumerate(unreadable.items(), start=1):
            if image not in self._reported_unreadable:
                self._reported_unreadable.add(image)
                without = f"training continues without it ({number} of {len(self.run.train_index)} images)"
                remedy = f"detr data check {shlex.quote(self.run.recipe.data_source)} --fix OUT copies the rest"
                text = f"{reason}; {without}; {remedy}"
                self._logger.warning(self.state.epoch, self.state.step, text, of_this_process=True)

    def _log_epoch(self, pace: Mapping[str, float], report: EvaluationReport | None) -> None:
        """Log the averages of the epoch, the metrics of its evaluation, and warnings if training is going wrong."""
        state, schedule = self.state, self.run.schedule
        metrics = {} if report is None else {**report.log_values(), "eval_loss": report.losses["loss"]}
        state.seconds = self._stopwatch.seconds
        averages = {**state.epoch_averages.means(), **pace}
        headline = () if report is None else report.headline()
        with in_main_process(self.run.accelerator):
            progress = {"images": self._images_so_far, "seconds": state.seconds}
            self._logger.epoch(state.epoch, state.step, averages, {**metrics, **progress}, headline)
        if self._metrics is not None and report is not None:
            self._metrics.note_evaluation(metrics, state.best_ap)
        if report is not None:
            due = is_due(state.step, schedule.total_steps, schedule.warmup_steps)
            for warning in find_symptoms(report, state.symptoms, due):
                self._logger.warning(state.epoch, state.step, warning)

    def _draw_predictions(self) -> dict[str, NDArray[np.uint8]]:
        """Draw evaluation images with their predictions, on the main process."""
        run = self.run
        if not run.accelerator.is_main_process:
            return {}
        images = range(min(run.recipe.num_images_to_log, len(run.eval_index)))
        return draw_predictions(run.weights.result, run.processor, run.eval_index, run.recipe.task, images)

    # Checkpoints

    def _save_checkpoint(self) -> Path:
        self.state.seconds = self._stopwatch.seconds
        with in_main_process(self.run.accelerator):
            self._logger.flush()
        folder = save_checkpoint(self.run.recipe.run_dir, self.run.checkpointed)
        self._stopwatch.note_checkpoint()
        return folder

    def _checkpoint_is_due_within_epoch(self, result: StepResult) -> bool:
        """Whether to write a checkpoint after a step; the end of an epoch writes its own."""
        every, step = self.run.recipe.checkpoint_every_steps, self.state.step
        due = result.checkpoint_requested or (every is not None and step % every == 0)
        return due and self.state.step_in_epoch < self.run.schedule.steps_per_epoch

    def _checkpoint_is_overdue(self) -> bool:
        """Whether it is time for a checkpoint, by the clock of this process."""
        minutes = self.run.recipe.checkpoint_every_minutes
        return minutes is not None and self._stopwatch.minutes_since_checkpoint() >= minutes

    def _save_before_error(self) -> None:
        """Write a checkpoint before an error in a step ends the run. One of several processes cannot do so alone."""
        if self.run.accelerator.num_processes == 1:
            self._save_and_tell()

    def _save_and_tell(self) -> None:
        """Write a checkpoint of the steps taken, if there are any, before an error ends the run."""
        if self.state.step > 0:
            with contextlib.suppress(OSError):  # the error matters more than a full disk
                folder = self._save_checkpoint()
                self._logger.message(
                    f"{folder} has all progress up to step {self.state.step}: fix the error below, then resume "
                    f"{_RESUME}."
                )

    def _stop_if_requested(self) -> None:
        """Stop if a signal arrived, or a batch cannot be loaded, in any process; all of them call this together.

        Raises:
            TrainingInterrupted: See `train`; and the errors of a batch.
        """
        if any_process(self.run.accelerator, self._signals.should_stop):
            raise self._stopped()

    def _stopped(self) -> Exception:
        """Write a checkpoint; return the exception to raise. All processes call this together."""
        failed = gather_object([self._signals.failure is not None])
        if any(failed):
            self._save_and_tell()
            return self._signals.failure or TrainingInterrupted(
                signal.SIGTERM,
                f"Stopped after step {self.state.step}: rank {failed.index(True)} cannot load its images.",
            )
        folder = self._save_checkpoint()
        number = self._signals.received or signal.SIGTERM  # None: the signal reached another process
        return TrainingInterrupted(
            number,
            f"Stopped by {signal.Signals(number).name} after step {self.state.step}; the checkpoint is {folder}. "
            f"Resume {_RESUME}.",
        )

    # The folder of the run

    @contextmanager
    def _open_folder(self) -> Iterator[None]:
        """Lock the folder of the run, prepare it and open its log."""
        with contextlib.ExitStack() as stack:
            self._lock_folder(stack)
            self._metrics = stack.enter_context(
                served_metrics(self.run.recipe, self.run.accelerator, self._build_metrics)
            )
            stack.enter_context(self._open_log())
            # Until all are here, a signal ends each process at once; then all of them record it, see `StopSignals`.
            self.run.accelerator.wait_for_everyone()
            yield

    def _build_metrics(self) -> "RunMetrics":
        from modeling_detr.training.run_metrics import RunMetrics  # needs an optional package

        return RunMetrics.of(self.run, lambda: 60 * self._stopwatch.minutes_since_checkpoint())

    def _lock_folder(self, stack: contextlib.ExitStack) -> None:
        """Lock the folder in the main process; all processes raise if another run has locked or changed it."""
        run, run_dir = self.run, self.run.recipe.run_dir
        with in_main_process(run.accelerator) as is_main:
            if is_main:
                make_folder(run_dir)
                stack.enter_context(locked(run_dir))
                # another run may have trained here and ended since this one looked, and its work must not be removed
                if checkpoint_to_resume(run.recipe) != run.checkpoint:
                    problem = "another run has trained in it while this one was starting"
                    raise RunInUseError(run_dir, problem, "start again, with --resume auto")

    @contextmanager
    def _open_log(self) -> Iterator[None]:
        """Prepare the folder and open the log; an error of writing becomes one that says how to continue."""
        run, run_dir, step = self.run, self.run.recipe.run_dir, self.state.step
        with _explained_failures(run_dir):
            with in_main_process(run.accelerator) as is_main:
                if is_main:
                    self._prepare_folder()
            display = Display(
                total_steps=run.schedule.total_steps,
                steps_per_epoch=run.schedule.steps_per_epoch,
                epochs=run.schedule.epochs,
                first_step=step,
                best=self.state.best_ap,
                cores_are_free=cores_per_process() > run.recipe.num_workers + 1,
                with_bars=run.accelerator.is_main_process,
            )
            self._logger = MetricLogger(run_dir, run.accelerator, display)
            try:
                yield
            except BaseException as error:
                outcome: Outcome = "stopped" if isinstance(error, TrainingInterrupted) else "failed"
                with contextlib.suppress(OSError):  # on a full disk, closing fails too
                    self._logger.close()
                with contextlib.suppress(OSError):
                    self._note_end(outcome, str(error))
                raise
            self._logger.close()
            self._note_end("finished")

    def _note_end(self, outcome: Outcome, text: str = "") -> None:
        if self.run.accelerator.is_main_process:
            note_end(self.run.recipe.run_dir, outcome, text)

    def _prepare_folder(self) -> None:
        run, run_dir, step = self.run, self.run.recipe.run_dir, self.state.step
        tidy_after_kill(run_dir)
        set_aside_unreadable(run_dir, step)
        drop_later_checkpoints(run_dir, step)
        prune_checkpoints(run_dir, run.recipe.keep_checkpoints, self.state.best_step)
        drop_later_entries(run_dir, step, self.state.closed_step)
        drop_later_pictures(run_dir, step)
        start_trackers(run.accelerator, run.recipe, step)  # early, so that a failure leaves no run behind
        replace_text(run_dir / RECIPE, run.recipe.to_yaml())
        schedule = run.schedule
        note_start(run_dir, step, self.state.seconds, schedule.total_steps, schedule.epochs, self._plan)


@contextmanager
def _explained_failures(run_dir: Path) -> Iterator[None]:
    """Turn an error of writing to the folder of a run into one that says how to continue the run."""
    try:
        yield
    except OSError as error:
        failure = write_failure(error, [run_dir])
        if failure is None:
            raise
        # the log or a tracker raises the system's own error
        explained = error if isinstance(error, OutputError) else output_error(run_dir, failure)
        steps = [fix_of(failure, Path(explained.where)), f"resume from the last checkpoint {_RESUME}"]
        raise OutputError(explained.where, explained.problem, ", then ".join(filter(None, steps))) from error
