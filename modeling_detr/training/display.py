"""What a run shows while it trains: on a terminal a table of its epochs above two bars, else one line per epoch."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from modeling_detr.errors_detr import printable
from modeling_detr.evaluation.metrics import Metric
from modeling_detr.line_breaks import fitted


_BAR = "{desc:<13}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
_LONG_WAIT = 0.2  # share of the time above which the loader slows down training
_MAX_METRICS = 2  # in a table of 80 columns
_NONE = "-"
_BOLD, _GREEN, _YELLOW = "1", "32", "33"


@dataclass(frozen=True)
class EpochSummary:
    """What is shown of an epoch.

    Attributes:
        epoch: From 1.
        step: Optimizer steps taken so far.
        loss: Mean loss of the epoch.
        metrics: Headline metrics of its evaluation, the primary one first; empty if it was not evaluated.
        pace: The values of `Pace.take`.
    """

    epoch: int
    step: int
    loss: float
    metrics: Sequence[Metric]
    pace: Mapping[str, float]


class Display:
    """Shows the progress of a run.

    Args:
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        epochs: Epochs of the whole run.
        first_step: Optimizer steps taken before this start of the run.
        best: The best value of the primary metric so far.
        cores_are_free: Whether more loader processes would have cores to run on.
        with_bars: Whether to show bars, if stderr is a terminal.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int,
        epochs: int,
        first_step: int = 0,
        best: float | None = None,
        cores_are_free: bool = True,
        with_bars: bool = True,
    ) -> None:
        self._total_steps, self._steps_per_epoch, self._epochs = total_steps, steps_per_epoch, epochs
        self._best = -math.inf if best is None else best
        self._cores_are_free = cores_are_free
        self._started, self._first_step = time.monotonic(), first_step
        self._pace: list[str] = []
        self._columns: list[str] | None = None
        self._is_warned_of_loader = False
        self._bars: tuple[tqdm[Any], tqdm[Any]] | None = None
        if with_bars and _has_room_for_bars():
            run = _bar(total_steps, position=1, initial=first_step)
            run.set_description_str("run", refresh=False)
            self._bars = _bar(steps_per_epoch, position=0), run

    def advance(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        """Move the bars to a step; `epoch` and `step_in_epoch` count from 1."""
        if self._bars is None:
            return
        epoch_bar, run_bar = self._bars
        description = f"epoch {epoch}/{self._epochs}"
        if epoch_bar.desc != description:  # the first step of this start in the epoch
            steps_left = self._total_steps - run_bar.n  # fewer than the epoch has, with max_steps
            epoch_bar.reset(total=min(self._steps_per_epoch, step_in_epoch - 1 + steps_left))
            epoch_bar.initial = epoch_bar.n = step_in_epoch - 1
            epoch_bar.set_description_str(description, refresh=False)
        epoch_bar.set_postfix_str(", ".join([f"loss {loss:.3f}", *self._pace]), refresh=False)
        for bar in (epoch_bar, run_bar):
            bar.update()

    def show_pace(self, pace: Mapping[str, float]) -> None:
        """Show the values of `Pace.take` beside the bar of the epoch."""
        self._pace = [f"{pace['images_per_second']:.1f} images/s"]
        if pace["loader_wait"] > _LONG_WAIT:
            self._pace = [f"loader wait {pace['loader_wait']:.0%}"]

    def epoch(self, summary: EpochSummary) -> None:
        """Print the line of an epoch."""
        metrics = [metric for metric in summary.metrics if not math.isnan(metric.value)]
        is_best = bool(metrics) and metrics[0].value > self._best
        if is_best:
            self._best = metrics[0].value
        if self._bars is None or not sys.stdout.isatty():
            self.message(" · ".join(self._line(summary, metrics)))
        else:
            self._print_row(summary, metrics, is_best)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self.message(f"warning: {text}", _YELLOW)

    def message(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        tqdm.write(_styled(fitted(printable(text), indent=2), style), file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the bars."""
        for bar in reversed(self._bars or ()):
            bar.close()

    def _line(self, summary: EpochSummary, metrics: Sequence[Metric]) -> list[str]:
        pace, wait = summary.pace, summary.pace["loader_wait"]
        parts = [f"epoch {summary.epoch}/{self._epochs}", f"step {summary.step}/{self._total_steps}"]
        parts += [f"loss {summary.loss:.3f}", *(f"{metric.name} {metric.value:.3f}" for metric in metrics)]
        parts += [f"{pace['images_per_second']:.1f} images/s", f"{pace['memory_gib']:.1f} GiB"]
        if wait > _LONG_WAIT:
            parts.append(f"loader wait {wait:.0%}{': raise num_workers' if self._cores_are_free else ''}")
        return [*parts, f"{self._time_left(summary.step)} left"] if summary.step < self._total_steps else parts

    def _print_row(self, summary: EpochSummary, metrics: Sequence[Metric], is_best: bool) -> None:
        """Print the line of an epoch as a row of a table, with its head if it is the first one or has new metrics."""
        names = [metric.name for metric in metrics[:_MAX_METRICS]]
        if self._columns is None or (names and names != self._columns):
            self._columns = names
            titles = [*names, "best"] if names else []
            self.message(_row("epoch", "loss", titles, "images/s", "memory", "left"), _BOLD)
        values = [f"{metric.value:.3f}" for metric in metrics[:_MAX_METRICS]] or [_NONE] * len(self._columns)
        if self._columns:
            values.append(f"{self._best:.3f}" if math.isfinite(self._best) else _NONE)
        pace = summary.pace
        self.message(
            _row(
                f"{summary.epoch}/{self._epochs}",
                f"{summary.loss:.3f}",
                values,
                f"{pace['images_per_second']:.1f}",
                f"{pace['memory_gib']:.1f} GiB",
                self._time_left(summary.step) if summary.step < self._total_steps else _NONE,
            ),
            _GREEN if is_best else "",
        )
        if pace["loader_wait"] > _LONG_WAIT and not self._is_warned_of_loader:
            self._is_warned_of_loader = True
            remedy = "; raise num_workers" if self._cores_are_free else ""
            self.message(f"the loader took {pace['loader_wait']:.0%} of the time{remedy}", _YELLOW)

    def _time_left(self, step: int) -> str:
        seconds = (time.monotonic() - self._started) / max(1, step - self._first_step) * (self._total_steps - step)
        hours, minutes = divmod(math.ceil(seconds / 60), 60)
        return f"{hours}:{minutes:02d} h" if hours else f"{minutes} min"


def _bar(total: int, position: int, initial: int = 0) -> "tqdm[Any]":
    # the average speed, evaluations and checkpoints included; a recent one would jump after each of them
    style = {"dynamic_ncols": True, "smoothing": 0, "bar_format": _BAR, "leave": False}
    return tqdm(total=total, position=position, initial=initial, **style)  # type: ignore[call-overload, no-any-return]


def _row(epoch: str, loss: str, metrics: Sequence[str], images: str, memory: str, left: str) -> str:
    figures = "".join(f"{text:>10}" for text in (loss, *metrics))
    return f"{epoch:>9}{figures}{images:>10}{memory:>11}{left:>9}"


def _styled(text: str, style: str) -> str:
    """The text in a style of the terminal, if stdout is one that has styles; see no-color.org."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain or not style else f"\x1b[{style}m{text}\x1b[0m"


def _has_room_for_bars() -> bool:
    """Whether stderr is a terminal with a size; tqdm draws no bar without one."""
    with contextlib.suppress(OSError):  # such as a stream that only behaves like a terminal
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).lines > 0
    return True
