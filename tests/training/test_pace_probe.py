import dataclasses
import re
import shutil

import pytest
import torch

from modeling_detr.errors_detr import RecipeError
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.pace_probe import TrainingPace, fit_to_minutes, measure_pace
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.training.run_folder import checkpoint_folders
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer


MINUTES = 0.06
pytestmark = pytest.mark.with_plots  # their time is part of what is measured


def log_of(trainer):
    return read_log(trainer.run.recipe.run_dir / "log.jsonl")


def test_steps_leave_time_for_evaluations_and_checkpoints():
    pace = TrainingPace(seconds_per_step=1.0, seconds_per_evaluation=5.0, seconds_per_checkpoint=2.0)
    recipe = Recipe(eval_every_epochs=2)
    assert pace.seconds_of(20, steps_per_epoch=10, recipe=recipe) == 20 + 5 + 2 * 2
    assert pace.seconds_of(21, steps_per_epoch=10, recipe=recipe) == 21 + 2 * 5 + 3 * 2  # the last step is evaluated
    for minutes in (0.2, 0.5, 1.0, 7.3):
        steps = pace.steps_in(minutes, 10, recipe)
        assert pace.seconds_of(steps, 10, recipe) <= 60 * minutes < pace.seconds_of(steps + 1, 10, recipe)
    assert pace.steps_in(0.1, 10, recipe) == 0


@pytest.mark.parametrize("keys", [{}, {"ema_decay": 0.9, "gradient_accumulation_steps": 2, "denoising_groups": 1}])
def test_measuring_changes_nothing(tiny_recipe, keys):
    run = prepare_run(tiny_recipe(**keys))
    modules = [run.model, *([run.weights.average] if run.weights.average else [])]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    random = torch.get_rng_state()
    pace = measure_pace(run)
    assert min(dataclasses.astuple(pace)) > 0
    for module, state in zip(modules, before, strict=True):
        after = module.state_dict()
        assert all(torch.equal(after[name], value) for name, value in state.items())
    assert not run.raw_optimizer.state
    assert torch.equal(torch.get_rng_state(), random)
    assert not [*run.recipe.run_dir.iterdir()]


def test_a_run_takes_about_its_minutes_and_its_schedule_ends_there(tiny_recipe, capsys):
    trainer = Trainer.from_recipe(tiny_recipe(minutes=MINUTES, epochs=1, eval_every_epochs=5))
    trainer.train()
    steps = trainer.run.schedule.total_steps
    assert trainer.state.step == steps == trainer.run.recipe.max_steps > 5  # more than the epoch of the recipe
    assert 0.2 * MINUTES < trainer.state.seconds / 60 < 5 * MINUTES  # the load of the machine may change
    assert trainer.run.raw_optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)  # of the cosine
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pace"))
    assert int(re.search(r"([\d,]+) steps \(", line)[1].replace(",", "")) == steps
    assert f"fit into {MINUTES:g} minutes" in line


@pytest.mark.slow
def test_a_run_with_minutes_equals_one_with_its_steps(tiny_recipe, tmp_path):
    timed = Trainer.from_recipe(tiny_recipe(minutes=MINUTES, output_dir=str(tmp_path / "timed")))
    timed.train()
    recipe = dataclasses.replace(timed.run.recipe, minutes=None, output_dir=str(tmp_path / "steps"))
    counted = Trainer.from_recipe(recipe)
    counted.train()
    assert [entry["step"] for entry in log_of(timed)] == [entry["step"] for entry in log_of(counted)]
    ours, theirs = (trainer.run.weights.detector.state_dict() for trainer in (timed, counted))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_steps_unless_the_minutes_change(tiny_recipe):
    recipe = tiny_recipe(minutes=MINUTES, checkpoint_every_steps=3, keep_checkpoints=100)
    trainer = Trainer.from_recipe(recipe)
    trainer.train()
    steps = trainer.state.step
    for checkpoint in checkpoint_folders(recipe.run_dir)[1:]:  # as if killed early
        shutil.rmtree(checkpoint)

    resumed = prepare_run(dataclasses.replace(recipe, resume="auto"))
    assert 0 < resumed.state.step < steps
    assert resumed.schedule.total_steps == steps
    assert fit_to_minutes(resumed) == (resumed, None)

    longer = prepare_run(dataclasses.replace(recipe, resume="auto", minutes=20 * MINUTES))
    assert any("minutes changed" in note for note in longer.notes)
    fitted, _ = fit_to_minutes(longer)
    assert fitted.schedule.total_steps > 2 * steps
    assert fitted.recipe.minutes == 20 * MINUTES


def test_drops_of_the_learning_rate_keep_their_share_of_the_run(tiny_recipe):
    recipe = tiny_recipe(minutes=MINUTES, epochs=10, lr_schedule="step", lr_drop_epochs=8)
    run, _ = fit_to_minutes(prepare_run(recipe))
    (drop,) = run.schedule.drop_at
    assert drop / run.schedule.total_steps == pytest.approx(0.8, abs=0.5 / run.schedule.total_steps + 1e-6)


def test_minutes_that_are_too_few_are_an_error(tiny_recipe):
    run = prepare_run(tiny_recipe(minutes=1e-4))
    with pytest.raises(RecipeError, match=r"minutes: got 0\.0001.*a step takes .* and an evaluation .* more minutes"):
        fit_to_minutes(run)


def test_minutes_and_steps_together_are_an_error():
    with pytest.raises(RecipeError, match=r"--epochs: cannot be combined with --minutes"):
        parse_recipe(["shapes", "--minutes", "3", "--epochs", "5"])
    assert parse_recipe(["shapes", "--minutes", "3"]).minutes == 3  # the epochs of a file are replaced
