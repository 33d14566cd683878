"""What a run has announced as saved survives a power cut at any moment, and the run goes on from there."""

import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
from block_device import BlockDevice
from launched_runs import logged
from power_cuts import ForgetfulDisk, files_in
from safetensors.torch import load_file

from modeling_detr.saved_thresholds import THRESHOLDS
from modeling_detr.training import trainer
from modeling_detr.training.checkpointing import find_damage, newest_checkpoint
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.run_folder import checkpoint_folders, step_of
from modeling_detr.training.trainer import Trainer


OPTIONS = {"checkpoint_every_steps": 2, "keep_checkpoints": 1, "ema_decay": 0.9, "log_every_steps": 1}


class Promises:
    """What a run has announced as saved."""

    def __init__(self, monkeypatch, when_saved) -> None:
        self.step, self.models = 0, []
        save, export = trainer.save_checkpoint, trainer.export_model

        def save_checkpoint(run_dir, run):
            folder = save(run_dir, run)
            self.step = run.state.step
            when_saved()
            return folder

        def export_model(run_dir, *arguments):
            folder = export(run_dir, *arguments)
            self.models.append(files_in(folder))
            return folder

        monkeypatch.setattr(trainer, "save_checkpoint", save_checkpoint)
        monkeypatch.setattr(trainer, "export_model", export_model)

    def check(self, run_dir: Path, *, all_whole: bool = True) -> None:
        """Check what a power cut has left.

        Args:
            run_dir: The folder of the run.
            all_whole: Whether checkpoints older than the one announced last must be whole too.
        """
        whole = [folder for folder in checkpoint_folders(run_dir) if find_damage(folder) is None]
        if all_whole:
            assert whole == checkpoint_folders(run_dir)
        if self.step:
            assert step_of(whole[-1]) >= self.step
            steps = [entry["step"] for entry in read_log(run_dir / "log.jsonl") if entry["kind"] == "step"]
            assert steps[: self.step] == [*range(1, self.step + 1)]
            assert list(run_dir.glob("trackers/**/events.out.tfevents.*"))
            assert (run_dir / "recipe.yaml").stat().st_size
        if self.models:
            # between two renames, the model has its hidden name
            model = next(path for path in (run_dir / "model", run_dir / ".model.previous") if path.exists())
            load_file(model / "model.safetensors")
            if all_whole:
                written = files_in(model)
                # added at the end of the run, also under a hidden name
                thresholds = {name: written.pop(name) for name in [*written] if THRESHOLDS in name}
                assert written in self.models
                assert THRESHOLDS not in thresholds or json.loads(thresholds[THRESHOLDS])


def assert_resumes(run_dir: Path, step: int, tiny_recipe, whole: Path) -> None:
    assert step_of(newest_checkpoint(run_dir)) >= step  # a newer one may be complete, but not yet announced
    Trainer.from_recipe(tiny_recipe(**OPTIONS, output_dir=str(run_dir), resume="auto")).train()
    assert logged(run_dir) == logged(whole)
    assert len(checkpoint_folders(run_dir)) <= 2  # the newest and the best
    assert not list(run_dir.rglob(".*partial*"))


@pytest.mark.slow
def test_whatever_was_announced_was_synced(tiny_recipe, tmp_path, monkeypatch):
    """On a disk that forgets everything else, before each sync with all removals, and after each sync without them."""
    disk_root, copies, cuts = tmp_path / "disk", {}, []
    disk_root.mkdir()

    def check(*, forget_removed: bool = False) -> None:
        copy = disk.cut(tmp_path / "copy", forget_removed=forget_removed)
        promises.check(copy / "runs/mine", all_whole=not forget_removed)
        shutil.rmtree(copy)
        cuts.append(promises.step)

    def check_and_copy() -> None:
        check()
        copies[promises.step] = disk.cut(tmp_path / f"after_{promises.step}")

    disk = ForgetfulDisk(disk_root, monkeypatch, functools.partial(check, forget_removed=True), check)
    promises = Promises(monkeypatch, check_and_copy)
    recipe = tiny_recipe(**OPTIONS, output_dir=str(disk_root / "runs/mine"))
    Trainer.from_recipe(recipe).train()
    assert len(cuts) > 200
    assert promises.step == 10
    left, written = files_in(disk.cut(tmp_path / "end")), files_in(disk_root)
    assert {name for name in written if written[name] != left.get(name)} <= {"runs/mine/.lock"}
    monkeypatch.undo()
    disk.close()
    for step in (2, 8):
        assert_resumes(copies[step] / "runs/mine", step, tiny_recipe, recipe.run_dir)


@pytest.fixture
def device(tmp_path):
    try:
        device = BlockDevice(tmp_path / "device")
    except OSError as error:
        pytest.skip(f"mounting a block device is not allowed here: {error}")
    yield device
    device.close()


@pytest.mark.slow
def test_a_block_device_has_whatever_was_announced_before_each_file_operation(
    device, tiny_recipe, tmp_path, monkeypatch
):
    """Its blocks are copied before each operation that changes names, and mounted as after a power cut."""
    run_dir = device.root / "runs/mine"
    cuts, kept = [], {}
    is_active = False

    def cut(moment: str = "saved") -> None:
        nonlocal is_active
        is_active = False
        image = device.cut()
        with device.mounted(image) as place:
            promises.check(place / "runs/mine")
        cuts.append(moment)
        if moment not in kept:
            kept[moment] = promises.step, shutil.copyfile(image, tmp_path / f"kept_{len(kept)}")
        is_active = True

    def hook(event: str, arguments) -> None:
        if is_active and event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            names = [Path(str(argument)).name for argument in arguments if isinstance(argument, str | Path)]
            cut(_moment(event, names))

    promises = Promises(monkeypatch, cut)
    sys.addaudithook(hook)
    is_active = True
    try:
        Trainer.from_recipe(tiny_recipe(**OPTIONS, output_dir=str(run_dir))).train()
    finally:
        is_active = False
    monkeypatch.undo()
    assert promises.step == 10
    assert len(cuts) > 80
    assert {"saved", "before an older checkpoint is removed", "between two renames of the model"} <= {*kept}
    for step, image in kept.values():
        with device.mounted(image) as place:
            if step:
                assert_resumes(place / "runs/mine", step, tiny_recipe, run_dir)


def _moment(event: str, names: list[str]) -> str:
    if event == "os.rename" and names[0] == "step_00000002":
        return "before an older checkpoint is removed"
    if event == "os.rename" and names[0].startswith(".model.partial") and names[1] == "model":
        return "between two renames of the model"
    return event
