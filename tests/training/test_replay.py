"""A non-finite step is saved and can be replayed."""

import errno
import re

import pytest
import torch
from poisoned_train import poison

from modeling_detr.commands import train
from modeling_detr.data.batch import DetrCollator
from modeling_detr.training import replay
from modeling_detr.training.checkpointing import find_damage, newest_checkpoint
from modeling_detr.training.divergence import NonFiniteLossError
from modeling_detr.training.engine import StepLosses
from modeling_detr.training.replay import FailedStep
from modeling_detr.training.trainer import Trainer


@pytest.fixture
def nan_in_image_7(monkeypatch):
    monkeypatch.setattr(DetrCollator, "__call__", DetrCollator.__call__)  # restored afterwards
    poison(7)


def test_a_nan_in_one_image_stops_the_run_and_the_step_can_be_replayed(tiny_recipe, nan_in_image_7, capsys):
    recipe = tiny_recipe(checkpoint_every_steps=1, denoising_groups=1, encoder_supervision=True)
    with pytest.raises(NonFiniteLossError) as error:
        Trainer.from_recipe(recipe).train()
    message = str(error.value)
    assert re.search(
        r"epoch 1, step \d: not finite: loss and \d+ of its terms\. .* Images: shapes\S*/train/000007\.png\. ", message
    )
    (file,) = (recipe.run_dir / "nonfinite").iterdir()
    assert f"Run the step again: detr train --replay {file}. Resume from the last checkpoint" in message
    assert find_damage(newest_checkpoint(recipe.run_dir)) is None

    assert train.main(["--replay", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "first in the output of detector.model.backbone" in printed
    assert re.findall(r"/(\d+)\.png  64x64, \d+ boxes, (.*): NOT FINITE by", printed) == [
        ("000007", "1 values not finite")
    ]
    assert printed.count(": finite by itself") == 3
    assert printed.endswith("the step is not finite again\n")


def test_a_replay_equals_the_run_bit_for_bit(tiny_recipe, monkeypatch, capsys):
    """Dropout and noise are replayed too; a step that was not finite for an outside reason is finite in the replay."""
    computed = []
    original = StepLosses.__call__

    def recorded(self, *arguments):
        losses = original(self, *arguments)
        computed.append({name: float(loss.detach()) for name, loss in losses.items()})
        return losses

    monkeypatch.setattr(StepLosses, "__call__", recorded)
    options = {"denoising_groups": 1, "encoder_supervision": True, "gradient_accumulation_steps": 2, "batch_size": 2}
    trainer = Trainer.from_recipe(tiny_recipe(**options))
    trainer.run.weights.detector.model.query_position_embeddings.weight.register_hook(
        lambda gradient: gradient * (torch.nan if len(computed) >= 6 else 1.0)
    )
    with pytest.raises(NonFiniteLossError, match=r"step 3: not finite: gradient"):
        trainer.train()
    (file,) = (trainer.run.recipe.run_dir / "nonfinite").iterdir()
    in_run = computed[4:6]
    computed.clear()
    assert train.main(["--replay", str(file)]) == 0
    assert computed[:2] == in_run
    assert capsys.readouterr().out.endswith("the step is finite here\n")


def test_a_full_disk_does_not_hide_the_original_error(tiny_recipe, nan_in_image_7, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(replay, "save_file", full)
    recipe = tiny_recipe()
    with pytest.raises(NonFiniteLossError, match=r"000007\.png\. .*safetensors: cannot be written \(No space left"):
        Trainer.from_recipe(recipe).train()
    assert not [*(recipe.run_dir / "nonfinite").iterdir()]


def test_only_a_saved_step_can_be_replayed(tiny_recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file, expected a file in the nonfinite/ folder of a run"):
        train.main(["--replay", str(tmp_path / "nowhere")])
    recipe = tiny_recipe(max_steps=1)
    Trainer.from_recipe(recipe).train()
    with pytest.raises(ValueError, match="not a step saved by this version"):
        train.main(["--replay", str(recipe.run_dir / "model" / "model.safetensors")])


def test_a_folder_is_refused_with_its_failed_steps(tmp_path):
    with pytest.raises(ValueError, match=r"a folder, which contains no failed step\."):
        FailedStep.load(tmp_path)
    (tmp_path / "nonfinite").mkdir()
    (tmp_path / "nonfinite/step_00000001_process_0.safetensors").touch()
    with pytest.raises(ValueError, match=r"a folder, expected one of .*step_00000001_process_0\.safetensors\."):
        FailedStep.load(tmp_path)
