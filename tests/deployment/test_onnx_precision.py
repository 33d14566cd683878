"""ONNX files with smaller weights compute nearly the same, and the heads stay as they are."""

import numpy as np
import pytest


onnx = pytest.importorskip("onnx", reason="needs the ONNX packages: pip install 'modeling-detr[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'modeling-detr[export]'")

from modeling_detr.deployment.onnx_precision import (  # noqa: E402
    head_names,
    layer_names,
    quantize_dynamically,
    quantize_statically,
    store_weights_as,
)
from modeling_detr.errors_detr import ModelError  # noqa: E402


def run(path, batch):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, batch)


def head_weights(path):
    """Weights that the nodes of the heads read, by name."""
    model = onnx.load(path)
    heads = set(head_names(model))
    read = {name for node in model.graph.node if node.name in heads for name in node.input}
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name in read}


WRITERS = {
    "float16": (lambda source, target, _: store_weights_as(source, target, "float16"), 0.01),
    "bfloat16": (lambda source, target, _: store_weights_as(source, target, "bfloat16"), 0.05),
    "int8": (lambda source, target, _: quantize_dynamically(source, target), 0.2),
    "static": (quantize_statically, 0.2),
    "static_all": (lambda source, target, batches: quantize_statically(source, target, batches, "all"), 0.3),
}


@pytest.mark.parametrize("precision", WRITERS)
def test_a_smaller_file_computes_nearly_the_same_on_any_batch(precision, onnx_file, batches, tmp_path):
    write, tolerance = WRITERS[precision]
    write(onnx_file, tmp_path / "small.onnx", iter(batches))
    assert (tmp_path / "small.onnx").stat().st_size < onnx_file.stat().st_size
    for batch in batches:
        for output, expected in zip(run(tmp_path / "small.onnx", batch), run(onnx_file, batch), strict=True):
            assert np.abs(output - expected).max() < tolerance


@pytest.mark.parametrize("precision", WRITERS)
def test_the_heads_keep_their_weights(precision, onnx_file, batches, tmp_path):
    WRITERS[precision][0](onnx_file, tmp_path / "small.onnx", iter(batches))
    written, expected = head_weights(tmp_path / "small.onnx"), head_weights(onnx_file)
    assert len(expected) >= 8  # weight and bias of the class head and of three layers for boxes
    assert written.keys() == expected.keys()
    for name, values in written.items():
        assert values.dtype == expected[name].dtype
        np.testing.assert_array_equal(values, expected[name])


def test_16_bit_weights_are_the_nearest_to_the_original(onnx_file, tmp_path):
    store_weights_as(onnx_file, tmp_path / "small.onnx", "float16")
    original = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(onnx_file).graph.initializer}
    stored = {
        one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "small.onnx").graph.initializer
    }
    halved = [name for name in stored if name.endswith("_float16")]
    assert len(halved) > 20
    for name in halved:
        np.testing.assert_array_equal(stored[name], original[name.removesuffix("_float16")].astype(np.float16))


def test_weights_beyond_the_range_of_float16_stay_in_float32(onnx_file, batches, tmp_path):
    model = onnx.load(onnx_file)
    name = next(node.input[1] for node in model.graph.node if node.name in layer_names(model, "linear"))
    weights = next(one for one in model.graph.initializer if one.name == name)
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0, 0] = 1e6
    weights.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "large.onnx")
    store_weights_as(tmp_path / "large.onnx", tmp_path / "small.onnx", "float16")
    stored = {
        one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "small.onnx").graph.initializer
    }
    np.testing.assert_array_equal(stored[name], values)
    assert all(np.isfinite(output).all() for output in run(tmp_path / "small.onnx", batches[0]))


def test_operators_choose_the_layers_that_are_quantised(onnx_file):
    model = onnx.load(onnx_file)
    convolutions, linear = set(layer_names(model, "conv")), set(layer_names(model, "linear"))
    assert convolutions
    assert linear
    assert not convolutions & linear
    assert set(layer_names(model, "all")) == convolutions | linear
    assert not (convolutions | linear) & set(head_names(model))
    with pytest.raises(ModelError, match="did you mean 'conv'"):
        layer_names(model, "convs")


def test_an_empty_calibration_set_is_an_error(onnx_file, tmp_path):
    with pytest.raises(ModelError, match="the calibration set: has no images; choose"):
        quantize_statically(onnx_file, tmp_path / "small.onnx", [])
    assert not (tmp_path / "small.onnx").exists()


def test_a_file_without_the_exporters_metadata_is_an_error(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match="does not record which nodes belong to the heads"):
        quantize_dynamically(tmp_path / "bare.onnx", tmp_path / "small.onnx")


def test_quantising_gives_no_advice_and_leaves_no_files(onnx_file, tmp_path, caplog):
    (tmp_path / "model.onnx").write_bytes(onnx_file.read_bytes())
    quantize_dynamically(tmp_path / "model.onnx", tmp_path / "small.onnx")
    assert not caplog.records
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "small.onnx"}
