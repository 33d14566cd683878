"""Runs whose loader processes end or hang: they stop with a checkpoint, and resume as if nothing had happened."""

import dataclasses
import signal
import time

import psutil
import pytest
import torch
from launched_runs import logged

from modeling_detr.errors_detr import LoaderError
from modeling_detr.training import trainer as trainer_module
from modeling_detr.training.trainer import Trainer


pytestmark = pytest.mark.usefixtures("no_child_processes")


def signal_loaders_after(step: int, number: signal.Signals, monkeypatch) -> None:
    """Send a signal to the loader processes after a step."""
    original = trainer_module.train_one_epoch

    def signalling(*arguments, **options):
        for taken, result in enumerate(original(*arguments, **options), start=1):
            yield result
            if taken == step:
                for process in psutil.Process().children():
                    process.send_signal(number)
                time.sleep(0.1)

    monkeypatch.setattr(trainer_module, "train_one_epoch", signalling)


def assert_same_weights(first: Trainer, second: Trainer) -> None:
    ours, expected = first.run.model.state_dict(), second.run.model.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(values, expected[name]) for name, values in ours.items())


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            signal.SIGKILL,
            r"^shapes\[train\]: loader process \d+ was killed by SIGKILL while loading .*: lower num_workers",
        ),
        (
            signal.SIGSTOP,
            r"^shapes\[train\]: no batch for 0.02 minutes; loader process \d+, which loads .*, is stopped",
        ),
    ],
)
def test_a_run_without_its_loaders_saves_a_checkpoint_and_resumes_to_the_same_bits(
    number, message, tiny_recipe, tmp_path, monkeypatch, capsys
):
    keys = {"data": "shapes?size=64&train=64&val=4", "epochs": 1, "num_workers": 1, "loader_timeout_minutes": 0.02}
    whole = Trainer.from_recipe(tiny_recipe(**keys, output_dir=str(tmp_path / "whole")))
    whole.train()
    recipe = tiny_recipe(**keys)
    with monkeypatch.context() as patch:
        signal_loaders_after(4, number, patch)
        with pytest.raises(LoaderError, match=message):
            Trainer.from_recipe(recipe).train()
    (checkpoint,) = (recipe.run_dir / "checkpoints").iterdir()
    taken = int(checkpoint.name.removeprefix("step_"))
    assert 4 <= taken < 16
    assert f"{checkpoint} has all progress up to step {taken}: fix the error below" in capsys.readouterr().out
    resumed = Trainer.from_recipe(dataclasses.replace(recipe, resume="auto"))
    assert resumed.state.step == taken
    resumed.train()
    assert resumed.state.step == 16
    assert_same_weights(resumed, whole)


def test_loaders_that_end_during_an_evaluation_end_the_run_with_a_checkpoint(tiny_recipe, monkeypatch):
    original = trainer_module.evaluate

    def killing(model, batches, *arguments, **options):
        def batches_then_kill():
            for batch in batches:
                yield batch
                for process in psutil.Process().children():
                    process.kill()
                time.sleep(0.1)

        return original(model, batches_then_kill(), *arguments, **options)

    recipe = tiny_recipe(num_workers=1, epochs=1, eval_batch_size=1, max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "evaluate", killing)
        with pytest.raises(LoaderError, match=r"^shapes\[val\]: loader process"):
            Trainer.from_recipe(recipe).train()
    resumed = Trainer.from_recipe(dataclasses.replace(recipe, resume="auto"))
    assert resumed.state.step == 3
    resumed.train()
    assert [entry["kind"] for entry in logged(recipe.run_dir)][-1] == "epoch"
