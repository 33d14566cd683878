"""Trains the runs of a study, each in a process of its own, and continues where an interrupted study stopped.

The folder of a run also has `planned.json`, the arguments that it was started with, and, once it has been trained and
scored, `finished.json`. What the processes print is in `train.txt` and `evaluate.txt`.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.atomic_output import make_folder, replace_text
from modeling_detr.benchmarks.detr_process import Place, failure_of, start_detr, stopped_at_the_end
from modeling_detr.benchmarks.study import PlannedRun
from modeling_detr.errors_detr import FileContentError, StudyError
from modeling_detr.input_files import read_json
from modeling_detr.training.recipe_parsing import parse_recipe


PLANNED, FINISHED = "planned.json", "finished.json"
SCORED = "scored"  # folder of `detr evaluate`
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class _Job:
    """A run in progress: the commands that are left, and the process of the current one."""

    run: PlannedRun
    place: Place
    commands: list[tuple[str, list[str]]]
    current: str = ""
    process: "subprocess.Popen[bytes] | None" = None


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has been trained and scored."""
    return (run.folder / FINISHED).is_file()


def check_arguments(runs: Sequence[PlannedRun]) -> None:
    """Checks that the runs that have been started before were started with the same arguments.

    Raises:
        StudyError: One was not.
    """
    for run in runs:
        if not (run.folder / PLANNED).is_file():
            continue
        try:
            before = read_json(run.folder / PLANNED)
        except FileContentError:
            before = None
        if before != list(run.arguments):
            changed = _difference(before if isinstance(before, list) else [], run.arguments)
            raise StudyError(
                run.folder, f"has been trained with other settings ({changed})", "choose another --output_dir"
            )


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    old, new = (dict(zip(arguments[1::2], arguments[2::2], strict=False)) for arguments in (before, now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    changes = [f"{name} {old.get(name, 'not given')}, now {new.get(name, 'not given')}" for name in names]
    return "; ".join(changes) or "another recipe"


def run_study(
    runs: Sequence[PlannedRun], places: Sequence[Place], report: Callable[[PlannedRun, str | None], None]
) -> list[str]:
    """Trains and scores the runs that are not finished. A run that fails does not stop the others.

    Args:
        runs: All runs of the study; those that others start from come first.
        places: Where they run; as many run at once.
        report: Called with each run when it is finished, or failed with a reason.

    Returns:
        A sentence for each run that failed.

    Raises:
        StudyError: See `check_arguments`.
    """
    check_arguments(runs)
    waiting, failures = [run for run in runs if not is_finished(run)], dict[Path, str]()
    active: list[_Job] = []
    with stopped_at_the_end(lambda: [job.process for job in active if job.process is not None]):
        while waiting or active:
            for job in [*active]:
                failure = _look_at(job)
                if job.process is not None:
                    continue
                active.remove(job)
                if failure is not None:
                    failures[job.run.folder] = failure
                report(job.run, failure)
            for run in [*waiting]:
                if run.after in failures:
                    failures[run.folder] = f"the model to start from, {run.after}, could not be trained"
                    waiting.remove(run)
                    report(run, failures[run.folder])
                elif len(active) < len(places) and (run.after is None or (run.after / FINISHED).is_file()):
                    waiting.remove(run)
                    taken = [job.place for job in active]
                    job = _Job(run, next(place for place in places if place not in taken), _commands(run))
                    _start_next(job)
                    active.append(job)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return [f"{run}: {failures[run.folder]}" for run in runs if run.folder in failures]


def _commands(run: PlannedRun) -> list[tuple[str, list[str]]]:
    """Training, and an evaluation of its model."""
    recipe = parse_recipe([*run.arguments, "--output_dir", str(run.folder)])
    train = ["train", *run.arguments, "--output_dir", str(run.folder), "--resume", "auto"]
    score = ["evaluate", str(run.folder), recipe.data_source, "--output_dir", str(run.folder / SCORED)]
    score += ["--num_pictures", "0", "--batch_size", str(recipe.eval_batch_size or recipe.batch_size)]
    score += ["--num_workers", str(recipe.num_workers)]
    if recipe.data_format is not None:
        score += ["--data_format", recipe.data_format]
    return [("train", train), ("evaluate", score)]


def _start_next(job: _Job) -> None:
    """Starts the next command of a job, on its share of the cores."""
    job.current, arguments = job.commands.pop(0)
    make_folder(job.run.folder)
    if job.current == "train":
        replace_text(job.run.folder / PLANNED, json.dumps(list(job.run.arguments)))
    job.process = start_detr(arguments, _output(job), job.place)


def _look_at(job: _Job) -> str | None:
    """Moves a job on if its process has ended; when nothing is left, its process is None. A failure is returned."""
    code = None if job.process is None else job.process.poll()
    if code is None:
        return None
    job.process = None
    if code != 0:
        return failure_of(job.current, code, _output(job))
    if job.commands:
        _start_next(job)
    else:
        replace_text(job.run.folder / FINISHED, json.dumps({"arguments": list(job.run.arguments)}))
    return None


def _output(job: _Job) -> Path:
    return job.run.folder / f"{job.current}.txt"
