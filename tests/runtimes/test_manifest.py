"""`export.json` is read as untrusted input."""

import json

import pytest

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
    manifest = Manifest("onnx", "model.onnx", "instance", "int8", ("pixel_values",), ("logits",), ("a", "b"), (1,))
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
