"""A disk that is really full: a small one in memory."""

import subprocess

import pytest
from launched_runs import logged

from modeling_detr.training.checkpointing import find_damage
from modeling_detr.training.trainer import Trainer


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a small separate disk, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", folder]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_full_disk_is_a_clear_error_and_the_run_resumes_with_more_space(tiny_recipe, small_disk, tmp_path):
    options = {"checkpoint_every_steps": 1, "keep_checkpoints": 100, "ema_decay": 0.9, "log_every_steps": 1}
    whole = tiny_recipe(**options, output_dir=str(tmp_path / "whole"))
    Trainer.from_recipe(whole).train()

    recipe = tiny_recipe(**options, output_dir=str(small_disk / "run"), resume="auto")
    with pytest.raises(OSError, match=r"No space left on device.* free some space, then resume .*--resume auto"):
        Trainer.from_recipe(recipe).train()
    checkpoints = sorted((recipe.run_dir / "checkpoints").iterdir())
    assert checkpoints
    assert [find_damage(folder) for folder in checkpoints] == [None] * len(checkpoints)

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    resumed = Trainer.from_recipe(recipe)
    assert resumed.state.step == int(checkpoints[-1].name.removeprefix("step_")) < 10
    resumed.train()
    assert logged(recipe.run_dir) == logged(whole.run_dir)
