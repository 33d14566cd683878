"""A run on a disk that forgets everything that was not synced."""

import shutil

import pytest
from launched_runs import logged
from power_cuts import ForgetfulDisk, files_in
from safetensors.torch import load_file

from modeling_detr.training import trainer
from modeling_detr.training.checkpointing import find_damage, newest_checkpoint
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.run_folder import checkpoint_folders, step_of
from modeling_detr.training.trainer import Trainer


class Promises:
    """What a run has announced as saved, checked against what a power cut leaves."""

    def __init__(self, tmp_path, monkeypatch) -> None:
        self.disk_root, self.copy = tmp_path / "disk", tmp_path / "copy"
        self.disk_root.mkdir()
        self.step, self.models, self.num_cuts = 0, [], 0
        self.kept = {}  # step → a copy of the disk when that checkpoint was announced
        self.disk = ForgetfulDisk(self.disk_root, monkeypatch, self.check)
        save, export = trainer.save_checkpoint, trainer.export_model

        def save_checkpoint(run_dir, run):
            folder = save(run_dir, run)
            self.step = run.state.step
            self.check()
            self.kept[self.step] = self.disk.cut(tmp_path / f"cut_{self.step}")
            return folder

        def export_model(run_dir, *arguments):
            folder = export(run_dir, *arguments)
            self.models.append(files_in(folder))
            return folder

        monkeypatch.setattr(trainer, "save_checkpoint", save_checkpoint)
        monkeypatch.setattr(trainer, "export_model", export_model)

    def check(self) -> None:
        for forget_removed in (False, True):
            run_dir = self.disk.cut(self.copy, forget_removed=forget_removed) / "runs/mine"
            self.num_cuts += 1
            whole = [folder for folder in checkpoint_folders(run_dir) if find_damage(folder) is None]
            if not forget_removed:
                assert whole == checkpoint_folders(run_dir)
            if self.step:
                assert step_of(whole[-1]) >= self.step
                steps = [entry["step"] for entry in read_log(run_dir / "log.jsonl") if entry["kind"] == "step"]
                assert steps[: self.step] == [*range(1, self.step + 1)]
                assert list(run_dir.glob("trackers/**/events.out.tfevents.*"))
                assert (run_dir / "recipe.yaml").stat().st_size
            if self.models:
                model = run_dir / "model"
                if not model.exists():  # between two renames
                    model = run_dir / ".model.previous"
                load_file(model / "model.safetensors")
                if not forget_removed:
                    assert files_in(model) in self.models
            shutil.rmtree(self.copy)


@pytest.fixture
def promises(tmp_path, monkeypatch):
    promises = Promises(tmp_path, monkeypatch)
    yield promises
    promises.disk.close()


def test_a_power_cut_at_any_sync_leaves_whole_whatever_was_announced(promises, tiny_recipe, tmp_path, monkeypatch):
    options = {"checkpoint_every_steps": 2, "keep_checkpoints": 1, "ema_decay": 0.9, "log_every_steps": 1}
    recipe = tiny_recipe(**options, output_dir=str(promises.disk_root / "runs/mine"))
    Trainer.from_recipe(recipe).train()
    assert promises.num_cuts > 400
    assert promises.step == 10
    left = files_in(promises.disk.cut(tmp_path / "end"))
    written = files_in(promises.disk_root)
    assert {name for name in written if written[name] != left.get(name)} <= {"runs/mine/.lock"}

    monkeypatch.undo()
    for step in (2, 5, 8):
        run_dir = promises.kept[step] / "runs/mine"
        assert step_of(newest_checkpoint(run_dir)) == step
        Trainer.from_recipe(tiny_recipe(**options, output_dir=str(run_dir), resume="auto")).train()
        assert logged(run_dir) == logged(recipe.run_dir)
