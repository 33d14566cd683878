"""Finding and loading a model, whatever the user names."""

from pathlib import Path

import pytest
import torch

from modeling_detr import DetrForObjectDetection, DetrForSegmentation, DetrTorchvisionImageProcessor
from modeling_detr.conversion.sources import (
    SOURCES,
    ModelSource,
    explain_missing_model,
    find_model,
    load_model,
)
from modeling_detr.errors_detr import ModelError, ModelNotFoundError


@pytest.fixture
def model_folder(tiny_detector, tmp_path):
    """The exported model of a run."""
    folder = tmp_path / "run" / "model"
    tiny_detector(num_labels=2, id2label={0: "disc", 1: "star"}).save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def test_the_folder_of_a_run_loads_its_exported_model(model_folder):
    model, processor = load_model(str(model_folder.parent))
    assert isinstance(model, DetrForObjectDetection)
    assert not model.training
    assert model.config.id2label == {0: "disc", 1: "star"}
    assert processor.size == {"shortest_edge": 64, "longest_edge": 96}


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "config.json").write_text("{}")
    cases = {
        str(tmp_path / "weights.bin"): (ModelError, r"weights\.bin: empty file; download it again"),
        str(tmp_path / "copied"): (ModelNotFoundError, "no weights, expected model.safetensors; copy or download the"),
        str(tmp_path): (ModelNotFoundError, "no model in this folder, expected config.json or model/config.json"),
    }
    for source, (error, message) in cases.items():
        with pytest.raises(error, match=message):
            load_model(source)


def test_a_mistyped_path_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in (str(tmp_path / "none"), "runs/none", "./none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"no such folder .*or a Hub id such as"):
            find_model(source)
    for source in ("facebook/detr-resnet-50", "gpt2"):
        assert find_model(source) == source


def test_a_model_that_the_hub_does_not_provide_is_one_sentence():
    message = r"^me/mine: no such folder, and not available from the Hub \(We couldn't connect\)\.$"
    with pytest.raises(FileNotFoundError, match=message), explain_missing_model("me/mine"):
        raise OSError("We couldn't connect.\nCheck your internet connection.")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'detr-r50'\?$"), explain_missing_model("detr-r51"):
        raise OSError("We couldn't connect.")


def test_a_plug_in_adds_a_kind_of_checkpoint(model_folder, tmp_path, monkeypatch):
    (tmp_path / "weights.mine").touch()
    fetched = []

    def fetch(source: str) -> Path:
        fetched.append(source)
        return model_folder

    kind = ModelSource("a checkpoint of mine", matches=lambda source: source.endswith(".mine"), fetch=fetch)
    monkeypatch.setitem(SOURCES, "mine", kind)
    model, _ = load_model(str(tmp_path / "weights.mine"))
    assert fetched == [str(tmp_path / "weights.mine")]
    assert torch.equal(
        model.class_labels_classifier.weight,
        DetrForObjectDetection.from_pretrained(model_folder).class_labels_classifier.weight,
    )
    assert not isinstance(model, DetrForSegmentation)
