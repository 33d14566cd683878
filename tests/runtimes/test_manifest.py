"""`export.json` is read as untrusted input."""

import json

import numpy as np
import pytest
import torch

from modeling_detr.conversion import load_detector
from modeling_detr.errors_detr import ModelError
from modeling_detr.runtimes.exported_detector import ExportedDetector
from modeling_detr.runtimes.manifest import Manifest, is_exported


VALID = {
    "format_version": 1,
    "runtime": "torch",
    "file": "model.pt2",
    "task": "detection",
    "inputs": ["pixel_values"],
    "outputs": ["logits", "pred_boxes"],
    "labels": ["a"],
}


def write(folder, **changes):
    content = {key: value for key, value in {**VALID, **changes}.items() if value is not None}
    (folder / "export.json").write_text(json.dumps(content))
    return folder


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = Manifest(
        "onnx", "model.onnx", "instance", "int8", ("pixel_values",), ("logits", "pred_boxes"), ("a", "b"), (1,)
    )
    manifest.save(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert is_exported(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 2}, "has format_version 2, expected 1; export the model again"),
        ({"labels": None}, "has no 'labels'"),
        ({"inputs": "pixel_values"}, "inputs is 'pixel_values'"),
        ({"labels": [1]}, "labels is"),
        ({"file": "../model.pt2"}, "expected a file of the folder"),
        ({"runtime_options": [1]}, "runtime_options is"),
        ({"fixed_size": "large"}, "fixed_size is 'large'"),
        ({"fixed_size": [640]}, "fixed_size is"),
        ({"fixed_size": [10**9, 640]}, "expected a height and a width of at most 16384 pixels"),
        ({"inputs": ["images"]}, "inputs are 'images', expected pixel_values"),
        ({"outputs": ["logits"]}, "outputs are 'logits', expected logits and pred_boxes among them"),
        ({"outputs": ["logits", "pred_boxes", "pred_masks"]}, "only one of pred_masks and mask_queries"),
        ({"stuff_labels": [10**30]}, "expected numbers of the 1 labels"),
    ],
)
def test_a_malformed_manifest_is_an_error(changes, problem, tmp_path):
    with pytest.raises(ModelError, match=problem.replace(".", r"\.").replace("(", r"\(")):
        Manifest.read(write(tmp_path, **changes))


def test_an_unknown_runtime_is_an_error(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its runtime is 'onxx', which is unknown; did you mean 'onnx'"):
        ExportedDetector.from_folder(write(tmp_path, runtime="onxx"))


def test_a_damaged_file_is_an_error(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"not a program")
    with pytest.raises(ModelError, match=r"model\.pt2: cannot be opened"):
        load_detector(str(write(tmp_path)), trust_code=True)


@pytest.mark.parametrize(
    ("make_run", "problem"),
    [
        (lambda inputs: {"logits": np.zeros((1, 7, 9)), "pred_boxes": np.zeros((1, 7, 4))}, "has logits of 9 classes"),
        (lambda inputs: {"logits": np.zeros((1, 7, 6))}, "has no output 'pred_boxes'"),
        (
            lambda inputs: inputs["tokens"],
            r"fails on images of shape \(1, 3, 8, 8\) \('tokens'\); export the mode",
        ),
    ],
)
def test_another_model_than_the_exported_one_is_an_error(make_run, problem, tiny_config, tmp_path, monkeypatch):
    tiny_config().save_pretrained(tmp_path)
    monkeypatch.setattr("modeling_detr.runtimes.torch.open_model", lambda folder, export: make_run)
    write(tmp_path, labels=list(tiny_config().class_names))
    model = ExportedDetector.from_folder(tmp_path, trust_code=True)
    with pytest.raises(ModelError, match=problem):
        model(torch.zeros(1, 3, 8, 8))


def test_other_labels_than_those_of_the_config_are_an_error(tiny_config, tmp_path, monkeypatch):
    tiny_config().save_pretrained(tmp_path)
    monkeypatch.setattr("modeling_detr.runtimes.torch.open_model", lambda folder, export: dict)
    with pytest.raises(ModelError, match=r"its labels are not those of config\.json \(1 and 5\)"):
        ExportedDetector.from_folder(write(tmp_path), trust_code=True)
