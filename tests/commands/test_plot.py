import json
from pathlib import Path

import pytest

from modeling_detr.commands.plot import main, run_names


def run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    entries = [
        {"kind": "epoch", "epoch": epoch, "step": epoch, "loss": 1 / epoch, "ap": 0.1 * epoch} for epoch in (1, 2)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"kind": "ep')
    return folder


def test_the_curves_of_a_run_go_beside_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run")
    assert main([str(folder)]) == 0
    assert (folder / "curves.png").stat().st_size > 5_000
    assert capsys.readouterr().out.strip() == str(folder / "curves.png")


def test_several_runs_go_into_one_picture(tmp_path: Path) -> None:
    first, second = run(tmp_path / "first"), run(tmp_path / "second")
    assert main([str(first), str(second / "log.jsonl"), "--output", str(tmp_path / "both.svg")]) == 0
    assert (tmp_path / "both.svg").is_file()
    assert not (first / "curves.png").exists()


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert run_names([Path("/a/x/log.jsonl"), Path("/b/x/log.jsonl")]) == ["a/x", "b/x"]
    assert run_names([Path("/a/x/log.jsonl"), Path("/a/y/log.jsonl")]) == ["x", "y"]


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such run; wanted a folder with log\.jsonl"):
        main([str(tmp_path)])
