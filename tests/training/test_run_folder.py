"""What a run finds in its folder, also after it was killed."""

import functools
import itertools

from killed_writes import killed_before

from modeling_detr.training.export import export_model
from modeling_detr.training.run_folder import holds_run, tidy_after_kill


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
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "weights"]
        assert (folder / "README.md").read_text() in ("old", "new")
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        if not is_killed:
            break
    assert (folder / "README.md").read_text() == "new"
