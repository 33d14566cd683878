"""The search: Optuna proposes values, each trial is a `detr train`, and hopeless ones are stopped early.

Several trials can run at once.
Everything is recorded in `search.journal` when it happens, so that a search continues after any interruption. A trial
that was interrupted is closed and enqueued again with its folder, in which its training continues.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from modeling_detr.atomic_output import discard
from modeling_detr.benchmarks.detr_process import Place, start_detr, stopped_at_the_end
from modeling_detr.errors_detr import SearchError
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import CHECKPOINTS
from modeling_detr.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord
from modeling_detr.tuning.search_space import NEEDS, Dimension
from modeling_detr.tuning.trial_runs import POINTS, Outcome, Start, TrialRun


JOURNAL, TRIALS = "search.journal", "trials"
_FOLDER, _VALUES, _SCORE, _MINUTES, _FAILURE = "folder", "values", "score", "minutes", "failure"
_RANDOM_TRIALS = 5  # after which the sampler learns from the results, and trials may be stopped early
_FAILURES_TO_STOP = 3
_SPARED_POINTS = POINTS * 3 // 10  # of a run, before which it is not stopped
_TRIALS_FOR_IMPORTANCE = 8
_STATES = {
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
}


@dataclass(frozen=True)
class SearchPlan:
    """A search.

    Attributes:
        recipe: The recipe that it starts from.
        recipe_file: Its file.
        dimensions: The keys to search.
        folder: The folder of the search.
        num_trials: How many trials, those of earlier calls included.
        places: Where trials run; as many run at once.
    """

    recipe: Recipe
    recipe_file: Path
    dimensions: Sequence[Dimension]
    folder: Path
    num_trials: int
    places: Sequence[Place] = (Place(),)


class Search:
    """A search in its folder, new or continued.

    Args:
        plan: What to search.
        start: Starts a process; tests pass another function.
        seconds_between_looks: At the processes and their logs.
    """

    def __init__(self, plan: SearchPlan, start: Start = start_detr, seconds_between_looks: float = 1.0) -> None:
        self.plan = plan
        self._start, self._seconds = start, seconds_between_looks
        self._active: dict[Place, _Active] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = plan.folder / JOURNAL
        _drop_incomplete_line(journal)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(_RANDOM_TRIALS, _SPARED_POINTS),
        )

    def records(self) -> list[TrialRecord]:
        """The trials so far, in order; one that was interrupted counts once."""
        latest = self._latest()
        return [_record(number, self.plan.folder, trial) for number, trial in enumerate(latest.values(), start=1)]

    def run(self, report: Callable[[TrialRecord], None]) -> None:
        """Runs the trials that are left, as many at once as there are places.

        Args:
            report: Called with each trial when it has ended.

        Raises:
            SearchError: The first trials all failed.
        """
        self._enqueue_what_was_interrupted()
        failures = 0
        with stopped_at_the_end(lambda: [one.run.process for one in self._active.values()]):
            while self._active or self._has_next():
                self._start_what_has_a_place()
                for record in self._look():
                    report(record)
                    failures += record.state == FAILED
                    ended = [one for one in self.records() if one.state != RUNNING]
                    if failures >= _FAILURES_TO_STOP and all(one.state == FAILED for one in ended):
                        problem = f"the first {failures} trials failed; the last one: {record.failure}"
                        raise SearchError(self.plan.folder, problem, "then continue with the same command")

    def importances(self) -> dict[str, float]:
        """The share of each key in the differences of the scores, largest first; empty with too few trials.

        PED-ANOVA, https://arxiv.org/abs/2304.10255.
        """
        complete = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(complete) < _TRIALS_FOR_IMPORTANCE or len({trial.value for trial in complete}) < 2:
            return {}
        return dict(optuna.importance.get_param_importances(self._study))

    def _latest(self) -> dict[str, FrozenTrial]:
        """Folder of a trial → its newest record in Optuna's study, in the order of the folders."""
        latest: dict[str, FrozenTrial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state is not TrialState.WAITING and _FOLDER in trial.user_attrs and _VALUES in trial.user_attrs:
                latest[trial.user_attrs[_FOLDER]] = trial
        return dict(sorted(latest.items()))

    def _is_waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]))

    def _enqueue_what_was_interrupted(self) -> None:
        waiting = self._study.get_trials(deepcopy=False, states=[TrialState.WAITING])
        enqueued = {trial.user_attrs.get(_FOLDER) for trial in waiting}
        latest = self._latest()
        none_ended = all(trial.state in (TrialState.FAIL, TrialState.RUNNING) for trial in latest.values())
        for folder, trial in latest.items():
            is_repeated = trial.state is TrialState.RUNNING or (none_ended and trial.state is TrialState.FAIL)
            if is_repeated and folder not in enqueued:
                self._study.enqueue_trial(trial.params, user_attrs={_FOLDER: folder})
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._study.tell(trial.number, state=TrialState.FAIL)
        if not latest and not waiting:
            start = {one.key: one.start for one in self.plan.dimensions}
            self._study.enqueue_trial(start, user_attrs={_FOLDER: _folder_name(1)})

    def _has_next(self) -> bool:
        return self._is_waiting() or len(self._latest()) < self.plan.num_trials

    def _start_what_has_a_place(self) -> None:
        for place in self.plan.places:
            if place not in self._active and self._has_next():
                self._active[place] = self._start_next(place)

    def _look(self) -> Iterator[TrialRecord]:
        """The trials that have ended since the last look; waits if none has."""
        ended = [(place, outcome) for place, one in self._active.items() if (outcome := one.run.look()) is not None]
        for place, outcome in ended:
            active = self._active.pop(place)
            self._note_end(active, outcome)
            yield self.records()[[*self._latest()].index(active.name)]
        if not ended:
            time.sleep(self._seconds)

    def _start_next(self, place: Place) -> "_Active":
        known = self._latest()
        # Of one trial at a time, the next proposal depends on those so far only, not on where the search was
        # interrupted. Of several, those that still run count as bad ones, so that the proposals differ.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=self.plan.recipe.seed + len(known),
            n_startup_trials=_RANDOM_TRIALS,
            constant_liar=len(self.plan.places) > 1,
        )
        trial = self._study.ask()
        values = self._draw(trial)
        name = trial.user_attrs.get(_FOLDER, _folder_name(len(known) + 1))
        trial.set_user_attr(_VALUES, values)
        trial.set_user_attr(_FOLDER, name)

        def judge(point: int, score: float) -> bool:
            trial.report(score, point)
            return trial.should_prune()

        arguments = self._arguments(values)
        if name != _folder_name(1):
            arguments += ["--preflight", "false"]  # the first trial checks the data
        folder = self.plan.folder / name
        return _Active(trial, name, TrialRun(self.plan.recipe, arguments, folder, judge, self._start, place))

    def _note_end(self, active: "_Active", outcome: Outcome) -> None:
        trial = active.trial
        trial.set_user_attr(_SCORE, outcome.score)
        trial.set_user_attr(_MINUTES, outcome.minutes)
        if outcome.failure is not None:
            trial.set_user_attr(_FAILURE, outcome.failure)
            self._study.tell(trial, state=TrialState.FAIL)
        elif outcome.is_pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, outcome.score)
        if outcome.failure is None:
            # the model stays; checkpoints of many trials would fill the disk
            discard(self.plan.folder / active.name / CHECKPOINTS)

    def _draw(self, trial: Trial) -> dict[str, Any]:
        """The values of a trial; a key without effect keeps the recipe's value and is left out."""
        values: dict[str, Any] = {}
        for dimension in self.plan.dimensions:
            needed = NEEDS.get(dimension.key)
            if needed is not None and not values.get(needed, getattr(self.plan.recipe, needed)):
                continue
            values[dimension.key] = dimension.value(_suggest(trial, dimension))
        return values

    def _arguments(self, values: Mapping[str, Any]) -> list[str]:
        arguments = [str(self.plan.recipe_file), "--keep_checkpoints", "1"]
        for key, value in values.items():
            text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
            arguments += [f"--{key}", text]
        return arguments


@dataclass(frozen=True)
class _Active:
    """A trial that runs."""

    trial: Trial
    name: str
    run: TrialRun


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.is_whole:
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


def _folder_name(number: int) -> str:
    return f"{TRIALS}/{number:04d}"


def _record(number: int, folder: Path, trial: FrozenTrial) -> TrialRecord:
    facts = trial.user_attrs
    return TrialRecord(
        number=number,
        state=_STATES[trial.state],
        values=facts[_VALUES],
        score=facts.get(_SCORE),
        minutes=facts.get(_MINUTES, 0.0),
        folder=folder / facts[_FOLDER],
        failure=facts.get(_FAILURE),
    )


def _drop_incomplete_line(journal: Path) -> None:
    """Removes the end of a line that a kill left incomplete; Optuna would append to it."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
