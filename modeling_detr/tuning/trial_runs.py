"""Trains the trials of a search, each in a process of its own, and watches their evaluations while they run."""

import contextlib
import itertools
import math
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_detr.atomic_output import make_folder
from modeling_detr.benchmarks.detr_process import Place, failure_of, stop_all
from modeling_detr.errors_detr import RunInUseError
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import LOG, locked


# Starts `detr` with arguments, the file for what it prints, and where; tests pass another function.
Start = Callable[[Sequence[str], Path, Place], "subprocess.Popen[bytes]"]
# Is given a point of the run and the best score so far; returns whether to stop the run there.
Judge = Callable[[int, float], bool]

POINTS = 20  # at which the scores of runs are compared, evenly over a run
METRICS = {"detection": "ap", "instance": "mask_ap", "panoptic": "pq"}  # task → primary metric in the log
_OUTPUT = "train.txt"
_SECONDS_TO_UNLOCK = 120.0  # for a process that still writes its checkpoint after the search was killed


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        score: The best primary metric of its evaluations; None if there was none.
        minutes: Duration of training and evaluations.
        is_pruned: Whether it was stopped because others were better at that point.
        failure: Why it failed; None if it did not.
    """

    score: float | None
    minutes: float
    is_pruned: bool = False
    failure: str | None = None


class TrialRun:
    """A trial that trains, or continues if its folder has a checkpoint.

    Args:
        recipe: The recipe that the trials vary.
        arguments: Those of `detr train`, without its folder.
        folder: The folder of its run.
        judge: See `Judge`.
        start: Starts the process.
        place: Where it runs.

    Attributes:
        process: Its process.
    """

    def __init__(
        self, recipe: Recipe, arguments: Sequence[str], folder: Path, judge: Judge, start: Start, place: Place
    ) -> None:
        make_folder(folder)
        _wait_until_unlocked(folder)
        self._folder, self._judge, self._metric = folder, judge, METRICS[recipe.task]
        self._evaluations = Evaluations(folder / LOG, recipe)
        command = ["train", *arguments, "--output_dir", str(folder), "--resume", "auto"]
        self.process = start(command, folder / _OUTPUT, place)

    def look(self) -> Outcome | None:
        """How it ended; None if it still trains. A hopeless one is stopped."""
        code = self.process.poll()
        evaluations = self._evaluations
        for point, score in evaluations.new_points():
            if code is None and self._judge(point, score):
                stop_all([self.process])
                return Outcome(evaluations.best, evaluations.minutes, is_pruned=True)
        if code is None:
            return None
        failure = None if code == 0 else failure_of("train", code, self._folder / _OUTPUT)
        if failure is None and evaluations.best is None:
            failure = f"its log has no evaluation with a value of {self._metric} ({self._folder / LOG})"
        return Outcome(evaluations.best, evaluations.minutes, failure=failure)


class Evaluations:
    """The evaluations in the log of a run, which may still be written.

    Args:
        log: The log; it need not exist yet.
        recipe: The recipe of the run; it decides how long the run is.

    Attributes:
        best: The highest primary metric so far; None before the first.
        minutes: Duration of training and evaluations so far.
    """

    def __init__(self, log: Path, recipe: Recipe) -> None:
        self.best: float | None = None
        self.minutes = 0.0
        self._log, self._recipe = log, recipe
        self._seen = self._size = 0
        self._point = -1

    def new_points(self) -> Iterator[tuple[int, float]]:
        """The points of the run that have been reached since the last call, with the best score at each.

        Runs evaluate at different times; a point without an evaluation has the score of the one before.
        """
        size = self._log.stat().st_size if self._log.is_file() else 0
        if size == self._size:
            return
        self._size = size
        entries = [entry for entry in read_log(self._log) if entry["kind"] == "epoch"]
        for entry in entries[self._seen :]:
            self._seen += 1
            self.minutes = max(self.minutes, (entry.get("seconds") or 0.0) / 60)
            value = entry.get(METRICS[self._recipe.task])
            if value is None:
                continue
            point = min(POINTS, math.floor(POINTS * self._share(entry)))
            if self.best is not None:
                yield from ((skipped, self.best) for skipped in range(self._point + 1, point))
            self.best = value if self.best is None else max(self.best, value)
            if point > self._point:
                yield point, self.best
            self._point = max(self._point, point)

    def _share(self, entry: dict[str, Any]) -> float:
        """How much of the run has passed at an entry of the log, from 0 to about 1."""
        recipe = self._recipe
        if recipe.minutes:
            return float(entry.get("seconds") or 0.0) / (60 * recipe.minutes)
        by_steps = entry["step"] / recipe.max_steps if recipe.max_steps else 0.0
        return float(max(entry["epoch"] / recipe.epochs, by_steps))


def _wait_until_unlocked(folder: Path) -> None:
    """Waits for the process of a search that was killed, which writes a checkpoint before it ends."""
    until = time.monotonic() + _SECONDS_TO_UNLOCK
    for _ in itertools.count():
        with contextlib.suppress(RunInUseError), locked(folder):
            return
        if time.monotonic() > until:
            return  # the process that starts will say who trains there
        time.sleep(0.2)
