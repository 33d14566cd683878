"""ONNX files with weights in 16 bits, or with int8 arithmetic by ONNX Runtime's quantisers.

Layers are found by the modules that PyTorch's exporter records for each node. The heads always stay in float32: half
precision shifts boxes of large images by pixels.
"""

import ast
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from modeling_detr.deployment.precisions import Operators
from modeling_detr.errors_detr import ModelError, did_you_mean


HEADS = frozenset({"class_labels_classifier", "bbox_predictor", "bbox_attention", "mask_head"})
"""Names of the modules that stay in float32."""

# Weights of 7 bits: sums of products with 8 overflow in 16 bits on CPUs with AVX2 but without VNNI
_REDUCE_RANGE = True
_LAYERS = {"conv": ("Conv",), "linear": ("MatMul", "Gemm"), "all": ("Conv", "MatMul", "Gemm")}  # operators → op types
_MIN_WEIGHTS = 1024  # smaller tensors stay as they are: they would save less than the nodes cost
_SCOPES = "pkg.torch.onnx.name_scopes"


def store_weights_as(source: Path, target: Path, dtype: Literal["float16", "bfloat16"]) -> None:
    """Writes a file whose convolutions and linear layers have weights in 16 bits.

    They are cast to float32 when the file is loaded and computing stays in float32, so every runtime runs it, at the
    same speed. Weights that are too large for float16 stay in float32.

    Args:
        source: An ONNX file that PyTorch's exporter wrote.
        target: The file to write.
        dtype: `float16` (10 bits of precision) or `bfloat16` (7 bits, but the range of float32).

    Raises:
        ModelError: The file does not record its modules, or has no such layers.
    """
    model = onnx.load(source)
    graph = model.graph
    names = set(layer_names(model, "all"))
    weights = {node.input[1] for node in graph.node if node.name in names}
    weights -= {name for node in graph.node if node.name not in names for name in node.input}
    casts = []
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        if initializer.name not in weights or values.dtype != np.float32 or values.size < _MIN_WEIGHTS:
            continue
        name, stored = initializer.name, _rounded(values, dtype)
        if np.isfinite(numpy_helper.to_array(stored).astype(np.float32)).all():
            stored.name = f"{name}_{dtype}"
            initializer.CopyFrom(stored)
            casts.append(helper.make_node("Cast", [stored.name], [name], f"{name}_to_float32", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def quantize_dynamically(source: Path, target: Path) -> None:
    """Writes a file with int8 weights of the linear layers, whose inputs are quantised while the model runs.

    Weights have a scale per output channel. The scale of an input is that of the whole batch, so the outputs of an
    image depend slightly on the other images.

    Args:
        source: An ONNX file that PyTorch's exporter wrote.
        target: The file to write.

    Raises:
        ModelError: The file does not record its modules, or has no linear layers.
    """
    from onnxruntime.quantization import quantize_dynamic

    names = layer_names(onnx.load(source), "linear")
    with _without_advice():
        quantize_dynamic(source, target, nodes_to_quantize=names, per_channel=True, reduce_range=_REDUCE_RANGE)


def quantize_statically(
    source: Path, target: Path, batches: Iterable[Mapping[str, NDArray[Any]]], operators: Operators = "conv"
) -> None:
    """Writes a file with int8 layers whose inputs and outputs are quantised by ranges seen in calibration.

    Activations are uint8 and weights int8 with a scale per output channel, as ONNX Runtime recommends for CPUs.

    Args:
        source: An ONNX file that PyTorch's exporter wrote.
        target: The file to write.
        batches: Calibration batches, the model's inputs by name; read one at a time. A hundred images are enough.
        operators: `conv`, `linear` or `all`.

    Raises:
        ModelError: There are no batches, the file does not record its modules, or has no such layers.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    names = layer_names(onnx.load(source), operators)
    with _without_advice():
        quantize_static(
            source,
            target,
            _BatchReader(checked_batches(batches)),
            op_types_to_quantize=list(_LAYERS[operators]),
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=_REDUCE_RANGE,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def layer_names(model: onnx.ModelProto, operators: Operators) -> list[str]:
    """Names of the nodes that are convolutions or linear layers with constant weights, without those of the heads.

    Raises:
        ModelError: The operators are unknown, the model does not record its modules, or has no such layers.
    """
    if operators not in _LAYERS:
        raise ModelError("operators", f"got '{operators}'", did_you_mean(operators, _LAYERS))
    heads = set(head_names(model))
    constants = {initializer.name for initializer in model.graph.initializer}
    names = [
        node.name
        for node in model.graph.node
        if node.op_type in _LAYERS[operators] and node.input[1] in constants and node.name not in heads
    ]
    if not names:
        raise ModelError("the ONNX model", f"has no layers for operators '{operators}'", "choose other operators")
    return names


def head_names(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes of the heads.

    Raises:
        ModelError: The model does not record its modules.
    """
    names = [node.name for node in model.graph.node if _modules(node) & HEADS]
    if not names:
        raise ModelError(
            "the ONNX model",
            f"does not record which nodes belong to the heads, expected '{_SCOPES}' in their metadata",
            "use the file as torch.onnx.export(…, dynamo=True) writes it",
        )
    return names


def checked_batches(batches: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
    """The same batches, one at a time.

    Raises:
        ModelError: There are none.
    """
    empty = True
    for batch in batches:
        empty = False
        yield dict(batch)
    if empty:
        raise ModelError("the calibration set", "has no images", "choose a dataset or a split with some")


def _modules(node: NodeProto) -> set[str]:
    """The names of all modules around a node, such as {"model", "decoder", "layers", "0", "fc1"}."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    return {name for path in ast.literal_eval(scopes) for name in path.split(".")}


def _rounded(values: NDArray[Any], dtype: str) -> TensorProto:
    """A tensor in 16 bits, rounded to the nearest; values that are too large become infinite."""
    numpy_dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype.upper()))
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(values.astype(numpy_dtype))


class _BatchReader:
    """Batches in the form that ONNX Runtime reads them."""

    def __init__(self, batches: Iterator[dict[str, NDArray[Any]]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, or None."""
        return next(self.batches, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the quantisers' advice to preprocess the file, which PyTorch's exporter has done."""
    logger = logging.getLogger()
    logger.addFilter(_is_no_advice)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
