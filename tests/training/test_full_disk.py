"""A disk that is really full: a small one in memory."""

import dataclasses
import errno
import os
import subprocess

import pytest
from launched_runs import RECIPE, logged, start_prepared

from modeling_detr.errors_detr import OutputError
from modeling_detr.training import checkpointing, trainer
from modeling_detr.training.checkpointing import find_damage, newest_checkpoint
from modeling_detr.training.metric_logger import MetricLogger
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


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "mount its file system for writing, then resume from the last checkpoint"),
        (errno.EDQUOT, "free some of your disk quota, then resume from the last checkpoint"),
        (errno.EIO, "check the disk, then resume from the last checkpoint"),
        (errno.ESTALE, "resume from the last checkpoint"),
    ],
)
@pytest.mark.parametrize("part", ["checkpoint", "log"])
def test_a_disk_that_fails_while_a_run_trains_is_a_clear_error(tiny_recipe, monkeypatch, number, remedy, part):
    recipe = tiny_recipe(checkpoint_every_steps=1, log_every_steps=1, trackers=())

    def fail(_, path):
        raise OSError(number, os.strerror(number), str(path))

    class FailingLog(MetricLogger):
        def step(self, epoch, step, values):
            if step == 3:
                self.path = FailingPath(self.path)
            super().step(epoch, step, values)

    class FailingPath(type(recipe.run_dir)):
        def open(self, *_, **__):
            fail(None, self)

    if part == "log":
        monkeypatch.setattr(trainer, "MetricLogger", FailingLog)
    else:
        write = checkpointing.SAFETENSORS.write
        model = checkpointing.CHECKPOINT_PARTS["model.safetensors"]
        steps = iter(range(1, 99))
        file = checkpointing.FileFormat(
            lambda value, path: fail(value, path) if next(steps) == 3 else write(value, path), model.file.read
        )
        monkeypatch.setitem(checkpointing.CHECKPOINT_PARTS, "model.safetensors", dataclasses.replace(model, file=file))
    where = recipe.run_dir / ("log.jsonl" if part == "log" else "checkpoints/step_00000003")
    with pytest.raises(OutputError) as raised:
        Trainer.from_recipe(recipe).train()
    problem = f"{where}: cannot be written ({os.strerror(number)})"
    assert str(raised.value) == f"{problem}; {remedy} with the same command and --resume auto."
    assert newest_checkpoint(recipe.run_dir).name == "step_00000002"


@pytest.mark.parametrize("options", [["--checkpoint_every_steps", 1], []], ids=["checkpoint", "model"])
def test_all_processes_end_with_the_reason_if_the_main_one_cannot_write(options, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        RECIPE.replace("  num_queries", "  freeze_batch_norm: false\n  freeze_backbone_stem: false\n  num_queries")
    )

    # the log fits, the weights do not
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    arguments = [recipe, "--output_dir", tmp_path / "run", *options]
    run = start_prepared(tmp_path / "printed.txt", *arguments, processes=2, before=limit)
    printed, _ = run.communicate(timeout=120)
    assert [process.exitcode for process in run.processes] == [2, 2]
    assert "cannot be written (File too large); raise the limit on the size of files (ulimit -f)" in printed
    assert "Connection closed by peer" not in printed  # the other process did not fail by itself
    assert "Traceback" not in printed
