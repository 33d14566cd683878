"""What the page shows of a run: its state, progress, warnings, plan, pictures and curves."""

import enum
import itertools
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_detr.atomic_output import is_running
from modeling_detr.errors_detr import DetrError, printable
from modeling_detr.input_files import MAX_YAML_BYTES, read_text
from modeling_detr.training.picture_history import Pictures, find_pictures
from modeling_detr.training.run_folder import LOG, NONFINITE, RECIPE, lock_holder
from modeling_detr.training.run_status import RunStatus, read_status
from modeling_detr.visualization import curve_block
from modeling_detr.watching.log_follower import LogFollower
from modeling_detr.watching.signs import find_signs


_SHORTEST_SILENCE, _SILENCE_BEFORE_STEPS, _SILENCE_FACTOR = 60.0, 600.0, 4.0  # seconds; times the longest gap so far
_MAX_WARNINGS = 20
_METRICS = (("pq", "PQ"), ("mask_ap", "mask AP"), ("ap", "AP"))  # the first one that is logged is the headline


class State(enum.StrEnum):
    """Where a run is."""

    WAITING = "waiting"
    TRAINING = "training"
    SILENT = "silent"
    KILLED = "killed"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunView:
    """What the page shows.

    Attributes:
        state: Where the run is.
        line: The state as a sentence.
        share: Which part of the steps has been taken, from 0 to 1; None if not known.
        highlights: Text of each number that matters most, and its name.
        warnings: Where each warning comes from, and its text, the latest first.
        plan: The plan of the run; empty if it is not known.
        recipe: The recipe of the run; empty if there is none.
        pictures: Predictions of its evaluations, the earliest first.
        curves: The values of `pages.Curves`.
    """

    state: State
    line: str
    share: float | None = None
    highlights: Sequence[tuple[str, str]] = ()
    warnings: Sequence[tuple[str, str]] = ()
    plan: str = ""
    recipe: str = ""
    pictures: Sequence[Pictures] = ()
    curves: Mapping[str, object] = field(default_factory=dict)

    def values(self) -> dict[str, object]:
        """All of it as plain values; texts of the run are `printable`."""
        return {
            "state": self.state.value,
            "line": printable(self.line),
            "share": self.share,
            "highlights": [[printable(value), printable(name)] for value, name in self.highlights],
            "warnings": [[printable(where), printable(text)] for where, text in self.warnings],
            "plan": _printable_lines(self.plan),
            "recipe": _printable_lines(self.recipe),
            "pictures": [
                {
                    "key": pictures.key,
                    "title": printable(pictures.title),
                    "names": list(map(printable, pictures.names)),
                    "version": str(pictures.version),
                }
                for pictures in self.pictures
            ],
            "curves": self.curves,
        }


class RunWatcher:
    """Collects the view of a run.

    Args:
        run_dir: The folder of the run, which may not exist yet.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._log = LogFollower(run_dir / LOG)

    def view(self, now: float | None = None) -> RunView:
        """The run as it is now.

        Args:
            now: Seconds since 1970; None: the time of the clock.
        """
        now = time.time() if now is None else now
        entries, status = self._log.entries(), read_status(self.run_dir)
        progress = [entry for entry in entries if _is_progress(entry)]
        last = progress[-1] if progress else {}
        total = None if status is None else status.total_steps
        quiet = None if self._log.modified is None else max(0.0, now - self._log.modified)
        if quiet is None and status is not None and status.starts:
            quiet = max(0.0, now - status.starts[-1].time)
        state = self._state(status, progress, quiet)
        seconds_left = _seconds_left(status, progress) if state in (State.TRAINING, State.SILENT) else None
        return RunView(
            state=state,
            line=" ".join(_sentences(state, status, last, quiet, self.run_dir)),
            share=min(1.0, last.get("step", 0) / total) if total else None,
            highlights=_highlights(progress, seconds_left),
            warnings=[*self._signs(progress, state), *_logged_warnings(entries)],
            plan="" if status is None else status.plan,
            recipe=_text(self.run_dir / RECIPE),
            pictures=find_pictures(self.run_dir, progress),
            curves=curve_block({self.run_dir.resolve().name: entries}).values(),
        )

    def _state(self, status: RunStatus | None, progress: Sequence[Mapping[str, Any]], quiet: float | None) -> State:
        if status is None and not progress:
            return State.WAITING
        if status is not None and status.outcome is not None:
            return State(status.outcome)
        holder = lock_holder(self.run_dir)
        if holder is not None and holder[0] == platform.node() and not is_running(holder[1]):
            return State.STOPPED if status is None else State.KILLED  # None: a run of an older version
        return State.SILENT if quiet is not None and quiet > _longest_silence(progress) else State.TRAINING

    def _signs(self, progress: Sequence[Mapping[str, Any]], state: State) -> list[tuple[str, str]]:
        signs = find_signs(progress) if state in (State.TRAINING, State.SILENT) else []
        found = [("now", text) for text in signs]
        if (self.run_dir / NONFINITE).is_dir() and any((self.run_dir / NONFINITE).iterdir()):
            text = f"A loss was not finite; {NONFINITE}/ has the step. detr train --replay FILE repeats it."
            found.append((NONFINITE, text))
        return found


def _is_progress(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is of steps or an epoch, and says of which."""
    return entry.get("kind") in ("step", "epoch") and all(type(entry.get(key)) is int for key in ("step", "epoch"))


def _sentences(
    state: State, status: RunStatus | None, last: Mapping[str, Any], quiet: float | None, run_dir: Path
) -> list[str]:
    """The state of the run in words."""
    if state is State.WAITING:
        return [f"Waiting for the run to start: {run_dir} has no log yet."]
    silence = f"no new log entry for {_duration(quiet or 0.0)}"
    resume = "Continue with the same command and --resume auto."
    text = "" if status is None else status.text
    sentences = [
        {
            State.TRAINING: "Training.",
            State.SILENT: f"Training, but {silence}: it may be evaluating, or it may have been killed.",
            State.KILLED: f"Killed: its process has ended without saying so, {silence}. {resume}",
            State.STOPPED: text or "Its process has ended.",
            State.FAILED: f"Ended with an error: {text}",
            State.FINISHED: "Finished.",
        }[state]
    ]
    if last:
        epochs = "" if status is None else f" of {status.epochs:,}"
        steps = "" if status is None else f" of {status.total_steps:,}"
        sentences.append(f"Epoch {last['epoch']:,}{epochs}, step {last['step']:,}{steps}.")
    elif state is State.TRAINING:
        sentences.append("No step has been logged yet.")
    if status is not None and len(status.starts) > 1:
        times = "" if len(status.starts) == 2 else f" {len(status.starts) - 1} times, the last time"
        sentences.append(f"Resumed{times} at step {status.starts[-1].step:,}.")
    return sentences


def _longest_silence(progress: Sequence[Mapping[str, Any]]) -> float:
    """The seconds between two entries that are still usual for the run, evaluations included."""
    times = [float(entry["seconds"]) for entry in progress[-500:] if isinstance(entry.get("seconds"), int | float)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not gaps:
        return _SILENCE_BEFORE_STEPS
    has_evaluated = any(entry.get("kind") == "epoch" for entry in progress)
    least = _SHORTEST_SILENCE if has_evaluated else _SILENCE_BEFORE_STEPS
    return max(least, _SILENCE_FACTOR * max(gaps))


def _seconds_left(status: RunStatus | None, progress: Sequence[Mapping[str, Any]]) -> float | None:
    """The seconds that the remaining steps take at the speed since the last start, evaluations included."""
    timed = [entry for entry in progress if isinstance(entry.get("seconds"), int | float)]
    if status is None or not status.starts or not timed:
        return None
    start, last = status.starts[-1], timed[-1]
    taken, left = last["step"] - start.step, status.total_steps - last["step"]
    return (last["seconds"] - start.seconds) / taken * left if taken > 0 and left > 0 else None


def _highlights(progress: Sequence[Mapping[str, Any]], seconds_left: float | None) -> list[tuple[str, str]]:
    """The numbers at the head of the page."""
    found: list[tuple[str, str]] = []
    for key, name in _METRICS:
        scored = [entry for entry in progress if isinstance(entry.get(key), int | float)]
        if scored:
            best = max(scored, key=lambda entry: entry[key])
            found += [(f"{scored[-1][key]:.3f}", f"{name}, epoch {scored[-1]['epoch']}")]
            found += [(f"{best[key]:.3f}", f"best, epoch {best['epoch']}")] if best is not scored[-1] else []
            break
    latest = progress[-1] if progress else {}
    if isinstance(latest.get("loss"), int | float):
        found.append((f"{latest['loss']:.3f}", "loss"))
    if isinstance(latest.get("images_per_second"), int | float):
        found.append((f"{latest['images_per_second']:.1f}", "images per second"))
    if isinstance(latest.get("seconds"), int | float):
        found.append((_duration(latest["seconds"]), "so far"))
    if seconds_left is not None:
        found.append((_duration(seconds_left), "left"))
    return found


def _logged_warnings(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The warnings of the run itself, the latest first."""
    logged = [entry for entry in entries if entry.get("kind") == "warning"]
    return [(f"step {entry.get('step')}", str(entry.get("text"))) for entry in logged[: -_MAX_WARNINGS - 1 : -1]]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes} min"


def _text(path: Path) -> str:
    """A small text file; empty if it cannot be read."""
    try:
        return read_text(path, MAX_YAML_BYTES, errors="replace")
    except (DetrError, OSError):
        return ""


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))
