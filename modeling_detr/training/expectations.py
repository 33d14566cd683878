"""How many steps runs have needed until their boxes were useful: measured runs, for the plan and the end of a run."""

import math
from typing import NamedTuple

from modeling_detr.data.findings import counted
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.training.recipe import Recipe


USEFUL_AP50 = 0.3
_HARDLY_ANYTHING = 0.1  # AP50


class MeasuredRun(NamedTuple):
    """A run of a new model with an ImageNet backbone and the training aids, 8 images per step; see docs/results.md.

    Attributes:
        data: What it was trained on.
        steps: Optimizer steps until the evaluation's AP50 was at least `USEFUL_AP50`.
    """

    data: str
    steps: int


MEASURED = (MeasuredRun("292 images of blood cells", 360),)


def usual_steps(recipe: Recipe) -> str | None:
    """The steps that runs like this one have needed, in words; None if no such run was measured."""
    if recipe.model is not None or recipe.task != "detection" or recipe.data_source.startswith("shapes"):
        return None
    keys = ("backbone_weights", "encoder_supervision", "denoising_groups")
    missing = [key for key in keys if not getattr(recipe, key)]
    if missing:
        return (
            f"without {' and '.join(missing)}, a new model needs far more; the original trains for 300 epochs of COCO"
        )
    runs = ", ".join(f"{counted(run.steps, 'step')} on {run.data}" for run in MEASURED)
    return f"similar runs reached AP50 {USEFUL_AP50:g} after {runs}"


def too_short_note(recipe: Recipe, total_steps: int) -> str | None:
    """A note for the plan of a run that is shorter than others needed; None if it is not."""
    usual = usual_steps(recipe)
    if usual is None or total_steps >= max(run.steps for run in MEASURED):
        return None
    return f"{counted(total_steps, 'step')} may be too few for useful boxes; {usual}"


def hardly_learned_note(recipe: Recipe, report: EvaluationReport, steps: int, steps_per_epoch: int) -> str | None:
    """A sentence for the end of a run whose model has hardly learned anything; None if it has.

    Args:
        recipe: The recipe of the run.
        report: Its last evaluation.
        steps: Its optimizer steps.
        steps_per_epoch: Steps of an epoch.
    """
    ap50 = report.log_values().get("ap50")
    if not isinstance(ap50, float) or ap50 >= _HARDLY_ANYTHING:
        return None
    usual = usual_steps(recipe)
    return (
        f"The model has hardly learned to find objects yet: AP50 {ap50:.3f} after {counted(steps, 'step')}"
        + (f" ({usual})" if usual else "")
        + f". Continue with {_longer(recipe, steps_per_epoch)} --resume auto."
    )


def _longer(recipe: Recipe, steps_per_epoch: int) -> str:
    """The options that make a run three times as long, whichever of minutes, epochs and steps limits it."""
    if recipe.minutes is not None:
        return f"more time, such as --minutes {3 * recipe.minutes:g}"
    if recipe.max_steps is None:
        return f"more epochs, such as --epochs {3 * recipe.epochs}"
    max_steps = 3 * recipe.max_steps
    epochs = math.ceil(max_steps / steps_per_epoch)
    return f"more steps, such as --max_steps {max_steps}" + (f" --epochs {epochs}" if epochs > recipe.epochs else "")
