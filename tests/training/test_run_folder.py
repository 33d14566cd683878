"""What a run finds in its folder, also after it was killed."""

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
