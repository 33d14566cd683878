"""Choices of `detr train auto` about time: how many epochs fit into it, and how often to evaluate."""

import math
from typing import NamedTuple

from modeling_detr.data.findings import counted
from modeling_detr.training.auto.situation import Choice, Situation


_EVALUATIONS = 12  # in a run, if they do not take too long
_EVALUATION_SHARE = 0.2  # of the time, at most
_FINE_TUNING_EPOCHS, _NEW_MODEL_EPOCHS = 150, 500  # at most; the second is the longest schedule of the original
_ENOUGH_STEPS = 3000  # for a few images, more epochs than these give


class _Schedule(NamedTuple):
    """What fits into the time: epochs, those between evaluations, the steps if not even an epoch fits, the limit."""

    epochs: int
    eval_every: int
    max_steps: int | None
    is_limited: bool


def _fit(situation: Situation) -> _Schedule:
    pace = situation.measure(situation.settings)
    seconds = 60 * situation.minutes
    an_evaluation = pace.evaluation + pace.checkpoint
    evaluations = min(_EVALUATIONS, max(1, int(_EVALUATION_SHARE * seconds / max(an_evaluation, 1e-6))))
    steps = max(1, int((seconds - evaluations * an_evaluation) / max(pace.step, 1e-6)))
    if steps < pace.steps_per_epoch:
        return _Schedule(1, 1, steps, is_limited=False)
    most = _NEW_MODEL_EPOCHS if situation.is_new else _FINE_TUNING_EPOCHS
    most = max(most, math.ceil(_ENOUGH_STEPS / pace.steps_per_epoch))
    epochs = min(most, steps // pace.steps_per_epoch)
    return _Schedule(epochs, math.ceil(epochs / evaluations), None, is_limited=epochs == most)


def epochs(situation: Situation) -> Choice:
    """As many as fit into the time, by the measured speed of steps, evaluations and checkpoints."""
    if (max_steps := situation.get("max_steps")) is not None:
        return Choice(math.ceil(max_steps / situation.steps_per_epoch), f"those of {max_steps:,} steps (max_steps)")
    fit, pace = _fit(situation), situation.measure(situation.settings)
    speed = f"{pace.step:.2g} s a step, {pace.evaluation:.2g} s an evaluation"
    if fit.max_steps is not None:
        return Choice(1, f"{speed}: not even an epoch fits into {situation.minutes:g} minutes")
    steps = fit.epochs * pace.steps_per_epoch
    if fit.is_limited:
        minutes = (steps * pace.step + _EVALUATIONS * (pace.evaluation + pace.checkpoint)) / 60
        return Choice(fit.epochs, f"more hardly help; about {minutes:.2g} minutes ({counted(steps, 'step')}, {speed})")
    return Choice(fit.epochs, f"{counted(steps, 'step')} in {situation.minutes:g} minutes: {speed}")


def max_steps(situation: Situation) -> Choice | None:
    """The steps that fit into the time if that is less than an epoch."""
    fit = _fit(situation) if situation.fills_time else None
    if fit is None or fit.max_steps is None:
        return None
    return Choice(fit.max_steps, f"a part of an epoch, which fits into {situation.minutes:g} minutes")


def eval_every_epochs(situation: Situation) -> Choice:
    """About a dozen evaluations, fewer if they take long."""
    total = int(situation.settings["epochs"])
    evaluations = min(_EVALUATIONS, total)
    if situation.fills_time:
        fit = _fit(situation)
        evaluations = math.ceil(fit.epochs / fit.eval_every)
    few = ", few because they are slow" if evaluations < min(_EVALUATIONS, total) // 2 else ""
    return Choice(math.ceil(total / evaluations), f"{counted(evaluations, 'evaluation')} in the run{few}")


def checkpoint_every_epochs(situation: Situation) -> Choice:
    """With each evaluation; others follow after `checkpoint_every_minutes`."""
    return Choice(situation.settings["eval_every_epochs"], "with each evaluation, and at least every half hour")


def lr_drop_epochs(situation: Situation) -> Choice | None:
    """The drop of a step schedule, after four fifths of the run."""
    if situation.get("lr_schedule", "step") != "step" or situation.get("lr_drop_steps"):
        return None
    return Choice(max(1, round(0.8 * situation.settings["epochs"])), "the rates drop after four fifths of the run")
