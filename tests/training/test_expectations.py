from types import SimpleNamespace

import pytest

from modeling_detr.training.expectations import MEASURED, hardly_learned_note, too_short_note
from modeling_detr.training.recipe import Recipe


AIDED = {"data": "mine", "backbone_weights": "w", "encoder_supervision": True, "denoising_groups": 3}
ENOUGH = max(run.steps for run in MEASURED)


def report_of(ap50):
    return SimpleNamespace(log_values=lambda: {"ap50": ap50})


@pytest.mark.parametrize(
    ("keys", "steps", "expected"),
    [
        (AIDED, ENOUGH - 1, "steps may be too few for useful boxes; similar runs reached AP50 0.3 after "),
        (AIDED, ENOUGH, None),
        (
            {**AIDED, "encoder_supervision": False},
            ENOUGH - 1,
            "without encoder_supervision, a new model needs far more",
        ),
        ({**AIDED, "backbone_weights": None}, ENOUGH - 1, "without backbone_weights, a new model needs far more"),
        ({"data": "mine", "model": "m"}, 1, None),  # not measured
        ({**AIDED, "data": "shapes?size=64"}, 1, None),
    ],
)
def test_the_plan_says_what_runs_like_it_have_needed(keys, steps, expected):
    note = too_short_note(Recipe(**keys), steps)
    assert note is None if expected is None else expected in note


def test_a_model_that_has_hardly_learned_anything_is_said_at_the_end():
    note = hardly_learned_note(Recipe(**AIDED, epochs=8), report_of(0.012), 576, 72)
    assert note.startswith(
        "The model has hardly learned to find objects yet: AP50 0.012 after 576 steps (similar runs "
    )
    assert note.endswith("Continue with more epochs, such as --epochs 24 --resume auto.")
    assert hardly_learned_note(Recipe(**AIDED), report_of(0.4), 576, 72) is None
    assert hardly_learned_note(Recipe(**AIDED), report_of(None), 576, 72) is None


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(8, "more steps, such as --max_steps 120"), (2, "more steps, such as --max_steps 120 --epochs 5")],
)
def test_the_advice_to_continue_raises_what_limits_the_run(epochs, expected):
    recipe = Recipe(**AIDED, epochs=epochs, max_steps=40)
    note = hardly_learned_note(recipe, report_of(0.012), 40, steps_per_epoch=25)
    assert note.endswith(f"Continue with {expected} --resume auto.")
