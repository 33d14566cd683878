"""The status of a run, for those who look at its folder: how long it will be, its plan, its starts, how it ended."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from modeling_detr.atomic_output import replace_text
from modeling_detr.errors_detr import DetrError
from modeling_detr.input_files import parse_json, read_text
from modeling_detr.training.run_folder import STATUS


Outcome: TypeAlias = Literal["finished", "stopped", "failed"]
_OUTCOMES = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Start:
    """A start of the run.

    Attributes:
        step: Optimizer steps taken before.
        seconds: Duration of the run before.
        time: When it was, in seconds since 1970.
    """

    step: int
    seconds: float
    time: float


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
        total_steps: Optimizer steps of the whole run.
        epochs: Epochs of the whole run.
        plan: See `plan.plan`; may be empty.
        starts: The first start and each resume.
        outcome: How the last start ended; None while it trains, and after a kill.
        text: What else is known about the end.
    """

    total_steps: int
    epochs: int
    plan: str = ""
    starts: tuple[Start, ...] = field(default_factory=tuple)
    outcome: Outcome | None = None
    text: str = ""


def note_start(run_dir: Path, step: int, seconds: float, total_steps: int, epochs: int, plan: str) -> None:
    """Write the status of a run that starts, or continues after `step` optimizer steps.

    Raises:
        OutputError: It cannot be written.
    """
    previous = read_status(run_dir) if step > 0 else None
    starts = () if previous is None else previous.starts
    start = Start(step, seconds, time.time())
    _write(run_dir, RunStatus(total_steps, epochs, plan, (*starts, start)))


def note_end(run_dir: Path, outcome: Outcome, text: str = "") -> None:
    """Add to the status of a run how it ended.

    Raises:
        OutputError: It cannot be written.
    """
    status = read_status(run_dir)
    if status is not None:
        _write(run_dir, dataclasses.replace(status, outcome=outcome, text=text))


def read_status(run_dir: Path) -> RunStatus | None:
    """The status of a run; None if there is none, or the file is damaged."""
    try:
        values = parse_json(run_dir / STATUS, read_text(run_dir / STATUS))
        starts = tuple(
            Start(int(one["step"]), float(one["seconds"]), float(one["time"])) for one in values.get("starts", ())
        )
        outcome = values.get("outcome")
        return RunStatus(
            total_steps=int(values["total_steps"]),
            epochs=int(values["epochs"]),
            plan=str(values.get("plan", "")),
            starts=starts,
            outcome=outcome if outcome in _OUTCOMES else None,
            text=str(values.get("text", "")),
        )
    except (DetrError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _write(run_dir: Path, status: RunStatus) -> None:
    replace_text(run_dir / STATUS, json.dumps(dataclasses.asdict(status), indent=1) + "\n")
