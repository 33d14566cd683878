"""An exported folder computes what the model computes, or does not appear at all."""

import copy
import dataclasses
import importlib
import json
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.conversion import load_detector, load_model
from modeling_detr.data import open_dataset
from modeling_detr.deployment import export_detector, targets
from modeling_detr.deployment.checks import Checks, MetricPair
from modeling_detr.deployment.export import ExportRefusedError
from modeling_detr.deployment.targets import TARGETS
from modeling_detr.errors_detr import ModelError, OutputExistsError
from modeling_detr.prediction import predict_objects
from modeling_detr.runtimes import RUNTIMES
from modeling_detr.runtimes.manifest import Manifest


@pytest.fixture(scope="module")
def processor():
    return DetrTorchvisionImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def index():
    return open_dataset("shapes").split("val").select(np.arange(3))


@pytest.fixture(scope="module")
def make_model(tiny_detector, tiny_segmenter, index):
    """Returns a function that makes a detector with the classes of `index`, or a segmenter."""
    labels = len(index.categories)
    return lambda name: (
        tiny_segmenter() if name == "segmenter" else tiny_detector(num_labels=labels, encoder_ffn_dim=512)
    )


@pytest.fixture(scope="module", autouse=True)
def shared_graphs():
    """Trace equal models once, and convert each trace to ONNX once: most of the time of an export."""
    trace, convert = targets.trace_detector, torch.onnx.export
    traces, converted = {}, {}

    def trace_once(model, options, dtype=torch.float32):
        weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
        key = model.config.to_json_string(), weights, options, dtype
        if key not in traces:
            traces[key] = trace(model, options, dtype)
        return traces[key]

    def convert_once(program, **options):
        if id(program) not in converted:  # those of `traces`, which live as long
            converted[id(program)] = convert(program, **options)
        return converted[id(program)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "trace_detector", trace_once)
        patch.setattr(torch.onnx, "export", convert_once)
        yield


@pytest.fixture(scope="module")
def torch_export(make_model, processor, index, tmp_path_factory):
    """The detector, its export as a program of PyTorch with a comparison on images, and the checks of this."""
    model, folder = make_model("detector"), tmp_path_factory.mktemp("torch") / "exported"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", False)  # as on most machines
        checks = export_detector(model, processor, folder, to="torch", data=index)
    return model, folder, checks


def assert_equal_objects(got, expected):
    assert torch.equal(got["labels"], expected["labels"])
    assert torch.allclose(got["scores"], expected["scores"], atol=1e-4)
    assert torch.allclose(got["boxes"], expected["boxes"], atol=1e-2)
    if "masks" in expected:
        assert (got["masks"] != expected["masks"]).sum() <= 1e-3 * expected["masks"].numel()


def assert_predicts_like(model, processor, image, folder):
    exported, exported_processor = load_detector(str(folder), trust_code=True)
    for threshold in (0.0, 0.3):
        expected = predict_objects(model, processor, image, threshold)
        assert_equal_objects(predict_objects(exported, exported_processor, image, threshold), expected)


def test_an_exported_program_predicts_what_the_model_predicts(torch_export, processor, image):
    model, folder, checks = torch_export
    assert max(checks.differences.values()) < 1e-3
    assert_predicts_like(model, processor, image, folder)


CASES = [
    ("segmenter", "torch"),
    *(
        pytest.param(name, to, marks=pytest.mark.slow)
        for name in ("segmenter", "detector")
        for to in ("onnx", "openvino")  # the compiler of aotinductor takes minutes
    ),
]


@pytest.mark.parametrize(("name", "to"), CASES)
def test_an_exported_folder_predicts_what_the_model_predicts(name, to, make_model, processor, image, tmp_path):
    model = make_model(name)
    checks = export_detector(model, processor, tmp_path / "exported", to=to)
    assert max(checks.differences.values()) < 1e-3
    assert_predicts_like(model, processor, image, tmp_path / "exported")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int8_static"])
def test_an_export_of_low_precision_is_small_and_close(precision, make_model, processor, index, tmp_path):
    target = tmp_path / "exported"
    checks = export_detector(
        make_model("detector"),
        processor,
        target,
        precision=precision,
        data=index,
        calibration=index,
        operators="all",
    )
    assert checks.exported_bytes < checks.model_bytes
    assert checks.differences["pred_boxes"] < 0.05
    assert Manifest.read(target).precision == precision


@pytest.mark.parametrize("options", [{"postprocess": True, "fixed_size": (160, 160)}, {"pixel_mask": False}])
def test_every_form_of_export_predicts_what_the_model_predicts(options, tiny_detector, processor, image, tmp_path):
    model = tiny_detector()
    export_detector(model, processor, tmp_path / "exported", to="torch", **options)
    exported, exported_processor = load_detector(str(tmp_path / "exported"), trust_code=True)
    assert_equal_objects(
        predict_objects(exported, exported_processor, image, 0.0),
        predict_objects(model, exported_processor, image, 0.0),
    )


ONE_SIZE = {"to": "torch", "fixed_size": (96, 160)}  # faster to export than images of any size


def test_a_model_with_16_bit_weights_is_exported(tiny_detector, processor, tmp_path):
    model = tiny_detector().bfloat16()
    checks = export_detector(model, processor, tmp_path / "exported", **ONE_SIZE)
    assert checks.differences["logits"] < 1e-4
    assert model.dtype == torch.bfloat16


def test_the_folder_says_what_is_in_it(torch_export):
    model, folder, _ = torch_export
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["labels"] == list(model.config.class_names)
    assert manifest["inputs"] == ["pixel_values", "pixel_mask"]
    assert manifest["versions"]["torch"] == version("torch")
    assert manifest["checks"]["differences"]["logits"] < 1e-4
    files = {path.name for path in folder.iterdir()}
    written = {"model.pt2", "config.json", "preprocessor_config.json", "export.json", "detect.py"}
    assert files == written | {"handler.py", "app.py", "requirements.txt"}
    with pytest.raises(ModelError, match="exported model, which can only predict"):
        load_model(str(folder))


def test_a_spoilt_export_is_refused_and_leaves_nothing(tiny_detector, processor, tmp_path, monkeypatch):
    target = TARGETS["torch"]

    def write_spoilt(model, folder, settings):
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            spoilt.class_labels_classifier.bias += 0.1
        return target.write(spoilt, folder, settings)

    monkeypatch.setitem(TARGETS, "torch", dataclasses.replace(target, write=write_spoilt))
    with pytest.raises(ExportRefusedError, match=r"not written, because logits differs by 0\.1") as caught:
        export_detector(tiny_detector(), processor, tmp_path / "exported", **ONE_SIZE)
    assert caught.value.checks.differences["logits"] == pytest.approx(0.1, abs=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_a_fall_of_ap_is_refused():
    checks = Checks("int8", {"logits": 0.4}, [MetricPair("AP", 0.5, 0.485)], 10, 1.0, 1.0, 10, 5)
    assert checks.problems(0.01) == ["the metric AP falls by 0.0150, expected at most 0.01"]
    assert checks.problems(0.02) == []
    assert "0.4850" in checks.table()


def test_outputs_that_are_not_numbers_are_refused():
    checks = Checks("int8", {"logits": float("nan")}, [], 0, 1.0, 1.0, 10, 5)
    assert checks.problems(0.01) == ["logits is not finite, or of another shape than the model's"]


def test_ap_is_compared_on_a_dataset(torch_export):
    _, _, checks = torch_export
    assert checks.images == 3
    assert [pair.name for pair in checks.metrics] == ["AP", "AP50"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"to": "onxx"}, "to: got 'onxx', which is unknown; did you mean 'onnx'"),
        ({"to": "torch", "precision": "int8"}, "torch has no precision 'int8'"),
        ({"to": "onnx", "precision": "int8_static"}, "int8_static needs images to calibrate it"),
    ],
)
def test_what_cannot_be_exported_is_an_error_before_any_work(options, problem, tiny_detector, processor, tmp_path):
    with pytest.raises(ModelError, match=problem):
        export_detector(tiny_detector(), processor, tmp_path / "exported", **options)


def test_an_existing_folder_is_kept(tiny_detector, processor, tmp_path):
    with pytest.raises(OutputExistsError):
        export_detector(tiny_detector(), processor, tmp_path, to="torch")


def test_every_target_has_a_runtime():
    assert set(TARGETS) == set(RUNTIMES)
    modules = {
        "modeling_detr.runtimes.aotinductor",
        "modeling_detr.runtimes.onnx",
        "modeling_detr.runtimes.openvino",
        "modeling_detr.runtimes.torch",
    }
    assert {runtime.module for runtime in RUNTIMES.values()} == modules
    for module in modules:
        assert callable(importlib.import_module(module).open_model)
