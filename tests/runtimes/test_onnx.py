"""An exported folder runs where neither PyTorch nor the package can be imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.deployment.preprocessing import preprocessing_of
from modeling_detr.deployment.runner_file import runner_source
from modeling_detr.runtimes.detect import Detector
from modeling_detr.runtimes.onnx import open_model


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(["modeling_detr", "torch", "torchvision", "transformers", "timm", "scipy"]))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def onnx_model():
    """A model that answers two boxes, the first with the image's mean as the logit of its class."""
    numbers = {
        "others": np.array([[[0, -9, 0], [-9, 1, 0]]], np.float32),
        "place": np.array([[[1, 0, 0], [0, 0, 0]]], np.float32),
        "constant_boxes": np.array([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1]]], np.float32),
    }
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("ReduceMean", ["pixel_values"], ["mean"], keepdims=0),
            node("Mul", ["mean", "place"], ["first"]),
            node("Add", ["first", "others"], ["logits"]),
            node("Identity", ["constant_boxes"], ["pred_boxes"]),
        ],
        "tiny",
        [
            value("pixel_values", onnx.TensorProto.FLOAT, [1, 3, "height", "width"]),
            value("pixel_mask", onnx.TensorProto.INT64, [1, "height", "width"]),
        ],
        [value("logits", onnx.TensorProto.FLOAT, [1, 2, 3]), value("pred_boxes", onnx.TensorProto.FLOAT, [1, 2, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    onnx.save(onnx_model(), folder / "model.onnx")
    export = {
        "format_version": 1,
        "runtime": "onnx",
        "file": "model.onnx",
        "inputs": ["pixel_values", "pixel_mask"],
        "labels": ["cat", "größerer Hund"],
        "stuff_labels": [],
        "fixed_size": None,
        "runtime_options": {"session.intra_op.allow_spinning": "0"},
        "preprocessing": preprocessing_of(DetrTorchvisionImageProcessor(size={"shortest_edge": 40})),
    }
    (folder / "export.json").write_text(json.dumps(export))
    (folder / "config.json").write_text("{}")
    (folder / "detect.py").write_text(runner_source("onnx"), encoding="utf-8")
    Image.new("RGB", (60, 30), (200, 210, 220)).save(folder / "photo.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, folder / "detect.py", *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)


def test_the_written_file_detects_without_torch_and_without_the_package(folder):
    result = run(folder, folder / "photo.png", "--threshold", "0.6")
    assert (result.returncode, result.stderr) == (0, "")
    detections = [json.loads(line) for line in result.stdout.splitlines()]
    assert [detection["name"] for detection in detections] == ["cat", "größerer Hund"]
    assert np.allclose([detection["box_xyxy"] for detection in detections], [[24, 9, 36, 21], [0, 0, 30, 30]])
    assert detections == Detector(folder)(folder / "photo.png", 0.6)
    pixels = DetrTorchvisionImageProcessor(size={"shortest_edge": 40})(Image.open(folder / "photo.png"))
    mean = pixels["pixel_values"].mean().item()
    assert detections[0]["score"] == pytest.approx(np.exp(mean) / (np.exp(mean) + np.exp(-9) + 1), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.png", "does not exist or is not a file"), ("broken.jpg", "cannot identify image file"), (".", "does")],
)
def test_an_image_that_cannot_be_read_is_an_error_of_one_line(folder, name, message):
    result = run(folder, folder / name)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("detect.py: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_broken_model_file_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model\.onnx: ONNX Runtime cannot open it"):
        open_model(tmp_path, {"file": "model.onnx", "runtime_options": {}})


def test_a_folder_of_a_later_version_is_refused(folder, tmp_path):
    export = json.loads((folder / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps(export | {"format_version": 2}))
    with pytest.raises(ValueError, match="format_version"):
        Detector(tmp_path)
