"""What is known of a trial of a search, without Optuna's types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


COMPLETE, PRUNED, FAILED, RUNNING = "complete", "pruned", "failed", "running"


@dataclass(frozen=True)
class TrialRecord:
    """A trial; the first is the recipe itself.

    Attributes:
        number: From 1.
        state: `COMPLETE`, `PRUNED`, `FAILED` or `RUNNING`.
        values: Key of the recipe → its value in this trial, for the keys that are searched.
        score: The best primary metric of its evaluations; None if there was none.
        minutes: Duration of training and evaluations.
        folder: The folder of its run.
        failure: Why it failed; None if it did not.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    score: float | None
    minutes: float
    folder: Path
    failure: str | None = None


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial with the highest score, the earlier of equal ones; only those that were trained to the end count."""
    complete = [record for record in records if record.state == COMPLETE and record.score is not None]
    return max(complete, key=lambda record: (record.score, -record.number), default=None)
