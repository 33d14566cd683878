"""What a run finds in its folder, also after it was killed."""

import functools
import itertools
import json
import os

import pytest
from killed_writes import killed_before
from launched_runs import start_code, wait_for_line

from modeling_detr.endpoint_files import APP, HANDLER, REQUIREMENTS
from modeling_detr.errors_detr import RunInUseError
from modeling_detr.training.export import export_model
from modeling_detr.training.run_folder import holds_run, locked, tidy_after_kill
from modeling_detr.training.trainer import Trainer


class Part:
    def save_pretrained(self, folder) -> None:
        (folder / "weights").write_text("new")


def test_a_model_whose_replacement_was_killed_is_restored(tmp_path):
    folder = export_model(tmp_path, Part(), Part(), "card")
    folder.rename(tmp_path / ".model.previous")
    assert holds_run(tmp_path)
    tidy_after_kill(tmp_path)
    assert (folder / "README.md").read_text() == "card"


def test_an_empty_folder_is_not_a_run(tmp_path):
    assert not holds_run(tmp_path)
    assert not holds_run(tmp_path / "missing")


def test_a_kill_at_any_file_operation_leaves_the_exported_model_before_or_after(tmp_path):
    for operation in itertools.count():
        folder = export_model(tmp_path / str(operation), Part(), Part(), "old")
        is_killed = killed_before(operation, functools.partial(export_model, folder.parent, Part(), Part(), "new"))
        assert holds_run(folder.parent)
        tidy_after_kill(folder.parent)
        assert {path.name for path in folder.iterdir()} == {"README.md", "weights", HANDLER, APP, REQUIREMENTS}
        assert (folder / "README.md").read_text() in ("old", "new")
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        if not is_killed:
            break
    assert (folder / "README.md").read_text() == "new"


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    hold = "import sys, time; from modeling_detr.training.run_folder import locked; from pathlib import Path\n"
    hold += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    first = start_code(tmp_path / "printed.txt", hold, tmp_path)
    assert wait_for_line(first, 0) == "locked\n"
    with pytest.raises(RunInUseError, match=f"process {first.pid} on .* is training in it; stop it"), locked(tmp_path):
        pass
    first.kill()
    first.wait(60)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_was_starting_while_another_trained_does_not_remove_its_work(tiny_recipe, resume):
    late = Trainer.from_recipe(tiny_recipe(resume=resume))
    Trainer.from_recipe(tiny_recipe()).train()
    run_dir = late.run.recipe.run_dir
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"}
    with pytest.raises(ValueError, match=r"already contains a run|has trained in it while this one was starting"):
        late.train()
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"} == before
