import functools
import itertools
import json
import re
import shutil

import pytest
import torch
from accelerate import Accelerator
from killed_writes import killed_before
from mutations import JSON_VALUES
from torch import nn

from modeling_detr.errors_detr import CheckpointError, CheckpointVersionError
from modeling_detr.training import checkpointing
from modeling_detr.training.checkpointing import (
    CHECKPOINT_PARTS,
    TEXT,
    Averages,
    CheckpointedRun,
    CheckpointPart,
    TrainingState,
    find_damage,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    set_aside_unreadable,
)
from modeling_detr.training.run_folder import checkpoint_folders, drop_later_checkpoints, tidy_after_kill


class Run:
    """A model and an optimizer after a few steps."""

    def __init__(self, width: int = 3) -> None:
        torch.manual_seed(width)
        self.accelerator = Accelerator(cpu=True)
        self.model = nn.Linear(2, width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    def step(self) -> None:
        self.model(torch.ones(1, 2)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def checkpointed(self, recipe, state=None):
        return CheckpointedRun(self.model, self.optimizer, self.accelerator, recipe, state or TrainingState())

    def save(self, folder, recipe, step):
        state = TrainingState(step=step, best_ap=0.25, epoch_averages=Averages({"loss": 1 / 3}, 2))
        return save_checkpoint(folder, self.checkpointed(recipe, state))


def test_a_loaded_checkpoint_continues_bit_for_bit(tmp_path, tiny_recipe):
    run = Run()
    run.step()
    folder = run.save(tmp_path, tiny_recipe(), step=12)
    run.step()
    other = Run(width=3)
    resumed = other.checkpointed(tiny_recipe())
    load_checkpoint(folder, resumed)
    other.step()
    assert torch.equal(other.model.weight, run.model.weight)
    assert folder.name == "step_00000012"
    assert resumed.state == TrainingState(step=12, best_ap=0.25, epoch_averages=Averages({"loss": 1 / 3}, 2))


def test_only_the_newest_checkpoints_are_kept(tmp_path, tiny_recipe):
    run = Run()
    for step in (5, 9, 100):
        run.save(tmp_path, tiny_recipe(keep_checkpoints=2), step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000009", "step_00000100"]
    assert newest_checkpoint(tmp_path).name == "step_00000100"


@pytest.mark.parametrize("damage", ["cut", "gone", "state", "changed", "other", "file", "link"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, tiny_recipe, damage):
    run = Run()
    older, newer = run.save(tmp_path, tiny_recipe(), 1), run.save(tmp_path, tiny_recipe(), 2)
    optimizer = newer / "optimizer.pt"
    data = optimizer.read_bytes()
    if damage == "cut":
        optimizer.write_bytes(data[:-10])
    elif damage == "gone":
        optimizer.unlink()
    elif damage == "changed":
        optimizer.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "state":
        (newer / "state.json").write_text('{"state": {')
    elif damage == "other":
        (newer / "state.json").write_text('{"state": {"step": 2}, "files": {}}')
    else:  # something else of that name
        shutil.rmtree(newer)
        newer.write_text("") if damage == "file" else newer.symlink_to("nowhere")
    with pytest.warns(UserWarning, match="step_00000002: damaged checkpoint"):
        assert newest_checkpoint(tmp_path) == older
    with pytest.raises(ValueError, match="damaged checkpoint"):
        load_checkpoint(newer, run.checkpointed(tiny_recipe()))
    set_aside_unreadable(tmp_path, 1)
    drop_later_checkpoints(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        older.name,
        f"unreadable_{newer.name}",
    ]


def test_if_every_checkpoint_is_damaged_nothing_is_touched(tmp_path, tiny_recipe):
    run = Run()
    for step in (1, 2):
        (run.save(tmp_path, tiny_recipe(), step) / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"all checkpoints are damaged: step_00000002 \(optimizer.pt has changed"
    ):
        newest_checkpoint(tmp_path)
    assert len([*tmp_path.glob("checkpoints/step_*")]) == 2


@pytest.mark.parametrize("change", [{"version": 99}, {"state": {"new_key": 1}}])
def test_a_checkpoint_of_a_newer_version_is_not_taken_for_a_damaged_one(tmp_path, tiny_recipe, change):
    run = Run()
    run.save(tmp_path, tiny_recipe(), 1)
    newer = run.save(tmp_path, tiny_recipe(), 2)
    content = json.loads((newer / "state.json").read_text())
    content |= change | {"state": content["state"] | change.get("state", {})}
    (newer / "state.json").write_text(json.dumps(content))
    expected = "version 99" if "version" in change else "unknown keys new_key"
    with pytest.raises(CheckpointVersionError, match=f"step_00000002: written by another version.*{expected}"):
        newest_checkpoint(tmp_path)
    set_aside_unreadable(tmp_path, 1)
    assert (tmp_path / "checkpoints/unreadable_step_00000002/state.json").is_file()


def test_values_of_wrong_types_in_the_state_are_damage(tmp_path, tiny_recipe):
    folder = Run().save(tmp_path, tiny_recipe(), 1)
    text = (folder / "state.json").read_text()
    for key in ('"epoch": 0', '"count": 0', '"symptoms": {}', '"version": 1'):
        assert key in text
        for value in JSON_VALUES:
            (folder / "state.json").write_text(text.replace(key, f"{key.partition(':')[0]}: {value}"))
            try:
                damage = find_damage(folder)
            except CheckpointVersionError:
                continue
            is_valid = key.startswith('"version"') or re.fullmatch(r"{}|\d{1,19}|[\d.]+(e-?\d+)?", value)
            assert damage == "state.json is not readable" or is_valid, (key, value)


def test_a_checkpoint_may_not_name_files_elsewhere(tmp_path, tiny_recipe):
    folder = Run().save(tmp_path, tiny_recipe(), 1)
    content = json.loads((folder / "state.json").read_text())
    content["files"]["/dev/zero"] = {"size": 0, "crc32": 0}
    (folder / "state.json").write_text(json.dumps(content))
    assert find_damage(folder) == "/dev/zero is missing"


def test_a_checkpoint_without_a_version_is_read(tmp_path, tiny_recipe):
    folder = Run().save(tmp_path, tiny_recipe(), 1)
    content = json.loads((folder / "state.json").read_text())
    assert content.pop("version") == 1
    (folder / "state.json").write_text(json.dumps(content))
    assert newest_checkpoint(tmp_path) == folder


def test_a_checkpoint_of_another_model_is_refused(tmp_path, tiny_recipe):
    folder = Run(width=3).save(tmp_path, tiny_recipe(), 1)
    other = Run(width=4)
    with pytest.raises(ValueError, match=r"step_00000001: does not fit this model: .*size mismatch"):
        load_checkpoint(folder, other.checkpointed(tiny_recipe()))


def test_a_full_disk_does_not_damage_earlier_checkpoints(tmp_path, tiny_recipe, monkeypatch):
    run = Run()
    first = run.save(tmp_path, tiny_recipe(keep_checkpoints=1), 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(tmp_path, tiny_recipe(keep_checkpoints=1), 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]
    assert find_damage(first) is None


def test_a_half_written_folder_is_not_a_checkpoint(tmp_path, tiny_recipe):
    whole = Run().save(tmp_path, tiny_recipe(), 1)
    half = tmp_path / "checkpoints" / ".step_00000002.writing"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == whole


def test_the_state_is_plain_json(tmp_path, tiny_recipe):
    folder = Run().save(tmp_path, tiny_recipe(), 3)
    content = json.loads((folder / "state.json").read_text())
    assert content["state"]["step"] == 3
    assert set(content["files"]) == {"model.safetensors", "optimizer.pt", "recipe.yaml"}


@pytest.mark.parametrize("step", [2, 1])
def test_a_kill_at_any_file_operation_leaves_a_checkpoint_to_resume(tmp_path, tiny_recipe, step):
    """While a new checkpoint replaces the old one, or is written again under the same name."""
    recipe, run = tiny_recipe(keep_checkpoints=1), Run()
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        run.save(folder, recipe, 1)
        is_killed = killed_before(operation, functools.partial(run.save, folder, recipe, step))
        assert newest_checkpoint(folder) is not None
        tidy_after_kill(folder)
        newest = newest_checkpoint(folder)
        assert newest.name in ("step_00000001", f"step_{step:08d}")
        load_checkpoint(newest, run.checkpointed(recipe))
        if not is_killed:
            break
    assert operation > 10
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{step:08d}"]


def test_a_kill_while_old_checkpoints_are_removed_leaves_none_too_many(tmp_path, tiny_recipe):
    recipe, run = tiny_recipe(keep_checkpoints=1), Run()
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        for step in (1, 2):
            run.save(folder, tiny_recipe(keep_checkpoints=2), step)
        is_killed = killed_before(operation, functools.partial(run.save, folder, recipe, 3))
        assert not any(map(find_damage, checkpoint_folders(folder)))  # none is removed in part
        newest = newest_checkpoint(folder)
        restarted = shutil.copytree(folder, tmp_path / f"{operation}_restarted")
        tidy_after_kill(restarted)
        prune_checkpoints(restarted, keep=1, best_step=None)
        assert [path.name for path in (restarted / "checkpoints").iterdir()] == [newest.name]
        newest = run.save(folder, recipe, 4)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [newest.name]
        if not is_killed:
            break
    assert operation > 20


def test_a_part_added_to_the_table_is_saved_restored_and_checked(tmp_path, tiny_recipe, monkeypatch):
    """As a plug-in would add them: one in a separate file, one as JSON in state.json."""
    restored = {}
    parts = {
        "notes.txt": CheckpointPart(lambda run: "a note", lambda run, text: restored.update(notes=text), TEXT),
        "coffee": CheckpointPart(lambda run: {"cups": 3}, lambda run, cups: restored.update(cups)),
    }
    run = Run()
    old = run.save(tmp_path, tiny_recipe(), 1)  # without these parts
    for name, part in parts.items():
        monkeypatch.setitem(CHECKPOINT_PARTS, name, part)
    load_checkpoint(old, run.checkpointed(tiny_recipe()))
    assert restored == {}
    folder = run.save(tmp_path, tiny_recipe(), 2)
    load_checkpoint(folder, run.checkpointed(tiny_recipe()))
    assert restored == {"notes": "a note", "cups": 3}
    (folder / "notes.txt").write_text("another")
    assert find_damage(folder) == "notes.txt has changed since it was written"


def test_averages_are_means_and_restart():
    averages = Averages()
    averages.add({"loss": 1.0})
    averages.add({"loss": 2.0})
    assert averages.take() == {"loss": 1.5}
    assert averages.take() == {}
