"""Monitoring of a run: speed, memory, and signs that training is going wrong although the loss is finite.

Each evaluation is checked for two signs: no query finds anything, or all queries of an image predict the same box.
Both are normal for a DETR that has not learned anything yet. A sign is therefore reported only after two evaluations
in a row, and only if the model had learned something before or has trained long enough to do so.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modeling_detr.evaluation.evaluators.queries import QueryMetrics
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.training.engine import StepResult
from modeling_detr.training.memory import peak_gib


_MIN_OBJECT_QUERIES = 0.01  # queries that predict a class, per true object
_MIN_SPREAD = 0.1  # relative to true boxes; with two objects, 1 % of queries on the second already gives 0.2
_MIN_EVALUATIONS = 2  # in a row
_LEARNED_AP50 = 0.1
# Steps after the warm-up in which a model should have begun to learn: a share of the run, within these bounds.
_SHARE_OF_RUN, MIN_STEPS, MAX_STEPS = 0.2, 200, 10_000


# Speed and memory


class Pace:
    """Measures speed, loader wait and memory over steps of training.

    Args:
        device: The device of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._waited = 0, 0.0
        self._since = time.monotonic()

    def add(self, step: StepResult) -> None:
        """Count a step."""
        self._images += step.num_images
        self._waited += step.loader_wait

    def take(self) -> dict[str, float]:
        """Return the measurements since the last call, and start over.

        `images_per_second`; `loader_wait`, the share of the time (0 to 1) spent waiting for images; `memory_gib`, the
        peak of the process so far, see `peak_gib`.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        measurements = {
            "images_per_second": self._images / seconds,
            "loader_wait": min(1.0, self._waited / seconds),
            "memory_gib": peak_gib(self._device),
        }
        self._images, self._waited, self._since = 0, 0.0, now
        return measurements


class Stopwatch:
    """Measures the duration of a run, including earlier starts, and the time since its last checkpoint.

    Args:
        seconds: Duration of earlier starts.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._started = self._checkpoint_at = time.monotonic()
        self._earlier = seconds

    @property
    def seconds(self) -> float:
        """Seconds of the run so far."""
        return self._earlier + time.monotonic() - self._started

    def note_checkpoint(self) -> None:
        """Restart the time since the last checkpoint."""
        self._checkpoint_at = time.monotonic()

    def minutes_since_checkpoint(self) -> float:
        """Minutes since the last checkpoint, or since the start."""
        return (time.monotonic() - self._checkpoint_at) / 60


# Signs that training is going wrong


@dataclass
class Symptom:
    """The history of one sign that training is going wrong.

    Attributes:
        in_a_row: Number of evaluations in a row, up to the latest, that showed it.
        was_well: Whether an earlier evaluation, of a model that had learned something, did not show it.
        reported: Whether it has been reported since it appeared.
    """

    in_a_row: int = 0
    was_well: bool = False
    reported: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Symptom":
        """Rebuild a history from plain values; in checkpoints of older versions `reported` is called `told`."""
        return cls(**{"reported" if name == "told" else name: value for name, value in values.items()})


def is_due(step: int, total_steps: int, warmup_steps: int) -> bool:
    """Whether a run has trained long enough for its model to find objects."""
    share = _SHARE_OF_RUN * (total_steps - warmup_steps)
    return step >= warmup_steps + min(max(share, MIN_STEPS), MAX_STEPS)


def find_symptoms(report: EvaluationReport, history: dict[str, Symptom], due: bool) -> list[str]:
    """Return warnings to show after an evaluation; each sign is reported once until it disappears.

    Args:
        report: The evaluation.
        history: Name of the sign → its history; updated in place.
        due: See `is_due`.
    """
    queries = report.results.get("queries")
    if not isinstance(queries, QueryMetrics):
        return []
    ap50 = report.log_values().get("ap50")
    has_learned = isinstance(ap50, float) and ap50 >= _LEARNED_AP50
    present = {}
    if queries.object_queries < _MIN_OBJECT_QUERIES * queries.objects:
        present["nothing_found"] = (
            f"the model predicts almost only 'no object': per evaluation image, {queries.object_queries:.2g} queries "
            f"predict a class, but there are {queries.objects:.1f} objects on average"
        )
    if queries.spread is not None and queries.spread < _MIN_SPREAD:
        present["collapsed"] = (
            f"the queries have collapsed: within an evaluation image, predicted boxes vary only "
            f"{queries.spread:.1%} as much as true boxes"
        )
    warnings = []
    for name in ("nothing_found", "collapsed"):
        symptom = history.setdefault(name, Symptom())
        if name not in present:
            history[name] = Symptom(was_well=symptom.was_well or has_learned)
            continue
        symptom.in_a_row += 1
        if symptom.in_a_row >= _MIN_EVALUATIONS and (symptom.was_well or due) and not symptom.reported:
            symptom.reported = True
            warnings.append(f"{present[name]}. {_remedy(symptom)}")
    return warnings


def _remedy(symptom: Symptom) -> str:
    if symptom.was_well:
        return (
            f"This was not the case {symptom.in_a_row} evaluations ago. Resume from an earlier checkpoint (--resume "
            f"FOLDER) with a lower learning_rate and backbone_learning_rate, or a longer warm-up."
        )
    return (
        "The model has not learned to find objects yet. Check the data (detr data check), and try lower learning "
        "rates or a longer warm-up. A DETR with random weights needs many steps, or encoder_supervision, "
        "denoising_groups and local_start."
    )
