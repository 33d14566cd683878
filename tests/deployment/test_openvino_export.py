"""OpenVINO models of any precision compute nearly the same, and the heads stay in float32."""

import subprocess
import sys

import numpy as np
import pytest


openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'modeling-detr[export,openvino]'")

from modeling_detr.deployment.openvino_export import write_openvino  # noqa: E402
from modeling_detr.errors_detr import ModelError  # noqa: E402
from modeling_detr.runtimes.openvino import open_model  # noqa: E402


def opened(folder, options):
    export = {"file": "model.xml", "outputs": ["logits", "pred_boxes"], "runtime_options": options}
    return open_model(folder, export)


def head_constants(folder):
    """Types of the weights that the last layers read."""
    operations = openvino.Core().read_model(folder / "model.xml").get_ordered_ops()
    return [
        operation.input_value(1).get_element_type().get_type_name()
        for operation in operations
        if operation.get_type_name() == "MatMul"
        and operation.input_value(1).get_node().get_type_name() == "Constant"
        and operation.output(0).get_partial_shape()[-1].get_length() in (4, 6)  # sides of a box; classes
    ]


TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.2, "int8": 0.2}


@pytest.fixture(scope="module")
def expected(onnx_file, batches, tmp_path_factory):
    """The outputs of ONNX Runtime in float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    return [session.run(None, batch) for batch in batches]


def assert_close(folder, options, batches, expected, tolerance):
    run = opened(folder, options)
    for batch, (logits, boxes) in zip(batches, expected, strict=True):
        outputs = run(batch)
        assert list(outputs) == ["logits", "pred_boxes"]
        assert np.abs(outputs["logits"] - logits).max() < tolerance
        assert np.abs(outputs["pred_boxes"] - boxes).max() < tolerance


@pytest.mark.parametrize("precision", TOLERANCES)
def test_each_precision_computes_nearly_the_same_on_any_batch(precision, onnx_file, batches, expected, tmp_path):
    options = write_openvino(onnx_file, tmp_path, precision)
    assert options == {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
    assert_close(tmp_path, options, batches, expected, TOLERANCES[precision])
    assert head_constants(tmp_path) == ["f32", "f32"]
    if precision != "float32":
        assert (tmp_path / "model.bin").stat().st_size < 0.7 * onnx_file.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("operators", ["conv", "all"])
def test_static_quantisation_keeps_the_heads_and_is_silent(operators, onnx_file, batches, expected, tmp_path, capsys):
    options = write_openvino(onnx_file, tmp_path, "int8_static", iter(batches), operators)
    assert_close(tmp_path, options, batches, expected, 0.3)
    assert head_constants(tmp_path) == ["f32", "f32"]
    operations = openvino.Core().read_model(tmp_path / "model.xml").get_ordered_ops()
    quantised = {
        operation.get_type_name()
        for operation in operations
        if any(value.get_source_output().get_node().get_type_name() == "FakeQuantize" for value in operation.inputs())
    }
    assert quantised - {"ShapeOf"} == ({"Convolution"} if operators == "conv" else {"Convolution", "MatMul"})
    assert capsys.readouterr().out == ""


def test_an_empty_calibration_set_is_an_error(onnx_file, tmp_path):
    with pytest.raises(ModelError, match="the calibration set: has no images; choose"):
        write_openvino(onnx_file, tmp_path, "int8_static", [])
    assert not [*tmp_path.iterdir()]


def test_unknown_names_are_errors(onnx_file, tmp_path):
    with pytest.raises(ModelError, match="did you mean 'float16'"):
        write_openvino(onnx_file, tmp_path, "fp16")
    with pytest.raises(ModelError, match="did you mean 'conv'"):
        write_openvino(onnx_file, tmp_path, "int8_static", operators="convs")


def test_a_damaged_file_is_an_error_with_its_name(onnx_file, tmp_path):
    options = write_openvino(onnx_file, tmp_path, "float32")
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(ValueError, match=r"model\.xml: OpenVINO cannot open it"):
        opened(tmp_path, options)


def test_a_process_survives_signals_after_its_models_are_gone(onnx_file, tmp_path):
    write_openvino(onnx_file, tmp_path, "float32")
    code = f"""
import faulthandler, gc, os, signal
from pathlib import Path
from modeling_detr.runtimes.openvino import open_model

faulthandler.enable()  # as pytest does
export = {{"file": "model.xml", "outputs": ["logits", "pred_boxes"], "runtime_options": {{}}}}
first = open_model(Path({str(tmp_path)!r}), export)
second = open_model(Path({str(tmp_path)!r}), export)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
