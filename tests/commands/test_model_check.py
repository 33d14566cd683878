"""`detr data check --model` and `detr benchmark labels`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands import run_command


DATA = "shapes?train=2&val=6"


@pytest.fixture
def model(tiny_detector: Callable[..., DetrForObjectDetection], tmp_path: Path) -> str:
    names = {0: "circle", 1: "square", 2: "triangle", 3: "star"}
    tiny_detector(num_labels=4, id2label=names).save_pretrained(tmp_path / "model")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_labels_that_the_model_doubts_are_findings(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command("data", ["check", DATA, "--model", model, "--certainty", "0"]) == 0
    printed = capsys.readouterr().out
    assert "suspected label" in printed
    written = json.loads((tmp_path / "runs" / "check" / "suspected_labels.json").read_text())
    assert {category["name"] for category in written["categories"]} == {"circle", "square", "triangle", "star"}
    page = (tmp_path / "runs" / "check" / "data_check.html").read_text()
    assert "<h2>Suspected labels</h2>" in page


def test_a_model_needs_pixels(model, capsys):
    assert run_command("data", ["check", DATA, "--model", model, "--pixels", "false"]) == 2
    assert "--model: needs the pixels" in capsys.readouterr().err


def test_the_share_of_spoilt_labels_that_are_found_is_printed(model, capsys):
    assert run_command("benchmark", ["labels", model, DATA, "--split", "val", "--share", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "| among the first | dropped | moved | renamed | all |" in printed
    assert printed.count("%") == 12


def test_json_is_all_that_is_printed(model, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run_command("data", ["check", DATA, "--model", model, "--json", "--html", str(page)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["findings"]
    assert str(tmp_path / "suspected_labels.json") in printed.err


def test_a_model_that_does_not_exist_is_an_error_before_images_are_read(tmp_path, capsys):
    assert run_command("data", ["check", "no/such/data", "--model", str(tmp_path / "model")]) == 2
    assert str(tmp_path / "model") in capsys.readouterr().err
