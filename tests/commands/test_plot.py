import html
import json
import re
from pathlib import Path

import pytest

from modeling_detr.commands import plot, run_command
from modeling_detr.commands.plot import main, run_names
from modeling_detr.errors_detr import OutputError, RunNotFoundError
from modeling_detr.training.metric_logger import read_original_log


def run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    entries = [
        {"kind": "epoch", "epoch": epoch, "step": epoch, "loss": 1 / epoch, "ap": 0.1 * epoch} for epoch in (1, 2)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"kind": "ep')
    return folder


def test_the_curves_of_a_run_are_saved_beside_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run")
    assert main([str(folder)]) == 0
    assert (folder / "curves.png").stat().st_size > 5_000
    assert capsys.readouterr().out.strip() == str(folder / "curves.png")


def test_several_runs_are_plotted_together(tmp_path: Path) -> None:
    first, second = run(tmp_path / "first"), run(tmp_path / "second")
    assert main([str(first), str(second / "log.jsonl"), "--output", str(tmp_path / "both.svg")]) == 0
    assert (tmp_path / "both.svg").is_file()
    assert not (first / "curves.png").exists()


def test_runs_with_the_same_name_get_their_parent_folders() -> None:
    assert run_names([Path("/a/x/log.jsonl"), Path("/b/x/log.jsonl")]) == ["a/x", "b/x"]
    assert run_names([Path("/a/x/log.jsonl"), Path("/a/y/log.jsonl")]) == ["x", "y"]


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"contains no log\.jsonl or log\.txt; expected the folder of a run"):
        main([str(tmp_path)])


def test_a_file_that_is_not_a_log_is_an_error(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(RunNotFoundError, match=r"photo\.jpg: not a log; expected log\.jsonl or log\.txt"):
        main([str(photo)])


@pytest.mark.parametrize("content", ["", '{"kind": "warning", "step": 1}\n', '{"kind": "st'])
def test_a_run_without_an_entry_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(RunNotFoundError, match=rf"^{tmp_path}: no log entries yet|not a log"):
        main([str(tmp_path)])


def test_a_run_in_its_first_epoch_is_plotted(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "epoch": 1, "step": 10, "loss": 3.0}\n{"kind": "st')
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_a_page_has_the_curves_and_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(tmp_path / "<b>first"), run(tmp_path / "second")
    page = tmp_path / "curves.html"
    assert main([str(first), str(second), "--output", str(page), "--smooth", "0.9", "--x", "epochs"]) == 0
    assert capsys.readouterr().out == f"see {page.as_uri()}\n"
    text = page.read_text(encoding="utf-8")
    assert "<b>first" not in text
    data = json.loads(html.unescape(re.search('data-curves="(.*?)"', text)[1]))
    assert [one["name"] for one in data["runs"]] == ["<b>first", "second"]
    assert (data["axis"], data["smoothing"]) == ("epochs", 0.9)
    assert data["runs"][0]["tables"][1]["y"]["ap"] == [0.1, 0.2]


def test_an_axis_that_a_log_does_not_have_is_an_error_that_names_another(tmp_path, capsys):
    assert run_command("plot", [str(run(tmp_path / "old")), "--x", "images"]) == 2
    expected = "detr plot: old: its log does not count images; choose another axis (--axis steps)."
    assert " ".join(capsys.readouterr().err.split()) == expected.replace("--axis", "--x")


def test_smoothing_is_less_than_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--smooth: got 1, expected at least 0 and less than 1"):
        main([str(run(tmp_path / "run")), "--smooth", "1"])


def test_a_log_of_the_original_is_plotted_with_unweighted_losses(tmp_path):
    line = {"epoch": 0, "train_loss": 9.0, "train_loss_bbox": 5.0, "train_loss_bbox_unscaled": 1.0}
    log = tmp_path / "log.txt"
    tested = {
        "test_coco_eval_bbox": [0.1, 0.2],
        "test_coco_eval_masks": [0.3, 0.4],
        "test_PQ_all": {"pq": 0.5, "n": 7},
    }
    log.write_text(json.dumps({**line, "train_class_error": 80.0, "train_lr": 1e-4, **tested}) + "\n")
    (entry,) = read_original_log(log)
    assert [entry[name] for name in ("ap50", "mask_ap", "mask_ap50", "pq")] == [0.2, 0.3, 0.4, 0.5]
    assert (entry["loss_bbox"], entry["learning_rate"]) == (1.0, 1e-4)
    assert (entry["epoch"], entry["ap"], entry["class_error"]) == (1, 0.1, 80.0)
    assert plot.main([str(log), "--output", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_folder_with_both_logs_is_plotted_from_ours(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plot, "plot_curves", lambda runs, *_: drawn.update(runs))
    theirs, ours = tmp_path / "theirs", run(tmp_path / "ours")
    theirs.mkdir()
    for folder in (theirs, ours):
        (folder / "log.txt").write_text(json.dumps({"epoch": 4, "train_loss": 9.0}) + "\n")
    assert main([str(theirs), str(ours)]) == 0
    assert {name: [entry["epoch"] for entry in entries] for name, entries in drawn.items()} == {
        "theirs": [5],
        "ours": [1, 2],
    }


def test_an_unsupported_image_format_is_refused_before_drawing(tmp_path):
    with pytest.raises(OutputError, match=r"curves\.xyz: unsupported image format; expected one of .*\.png"):
        plot.main([str(run(tmp_path / "run")), "--output", str(tmp_path / "curves.xyz")])
