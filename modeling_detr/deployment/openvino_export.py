"""OpenVINO models in any precision, from an ONNX file that PyTorch's exporter wrote."""

import io
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from modeling_detr.deployment.onnx_precision import checked_batches, head_names
from modeling_detr.deployment.precisions import Operators, Precision
from modeling_detr.errors_detr import ModelError, did_you_mean


_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_OPERATIONS = {"conv": _CONVOLUTIONS, "linear": ("MatMul",), "all": (*_CONVOLUTIONS, "MatMul")}


def write_openvino(
    onnx_file: Path,
    folder: Path,
    precision: str,
    batches: Iterable[Mapping[str, NDArray[Any]]] = (),
    operators: Operators = "conv",
) -> dict[str, str]:
    """Writes `model.xml` and `model.bin`.

    The weights of the heads stay in float32. Only `bfloat16` computes in 16 bits: without the option that is returned,
    OpenVINO does so for every model if the CPU has bfloat16.

    Args:
        onnx_file: The detector in float32, as PyTorch's exporter wrote it.
        folder: Where to write.
        precision: `float32`; `float16`: weights; `bfloat16`: weights, and computing where the CPU has it; `int8`:
            weights, for which OpenVINO may quantise inputs while the model runs; `int8_static`: layers whose inputs
            are quantised by ranges seen in calibration.
        batches: Calibration batches for `int8_static`, the model's inputs by name; read one at a time. A hundred
            images are enough.
        operators: What `int8_static` quantises: `conv`, `linear` or `all`.

    Returns:
        The properties to compile the model with.

    Raises:
        ModelError: The precision is unknown, there are no batches, or the ONNX file does not record its modules.
    """
    import openvino

    if precision not in get_args(Precision):
        raise ModelError("precision", f"got '{precision}'", did_you_mean(precision, get_args(Precision)))
    if operators not in _OPERATIONS:
        raise ModelError("operators", f"got '{operators}'", did_you_mean(operators, _OPERATIONS))
    heads = set(head_names(onnx.load(onnx_file)))
    model = openvino.Core().read_model(
        onnx_file
    )  # convert_model would report its use to OpenVINO, in forked processes
    if precision in ("float16", "bfloat16"):
        _store_weights_as(precision, _layers(model, heads, "all"))
    elif precision == "int8":
        kept = [operation for operation in model.get_ops() if _onnx_node(operation) in heads]
        model = _with_int8_weights(model, kept)
    elif precision == "int8_static":
        model = _quantized(model, _layers(model, heads, operators), batches)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)  # which would also round the heads
    return {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}


def _layers(model: Any, heads: Collection[str], operators: Operators) -> list[Any]:
    """The operations with constant weights, without those of the ONNX nodes `heads`.

    OpenVINO fuses some layers with what follows them, and then names them after that.
    """
    return [
        operation
        for operation in model.get_ordered_ops()
        if operation.get_type_name() in _OPERATIONS[operators]
        and operation.input_value(1).get_node().get_type_name() == "Constant"
        and _onnx_node(operation) not in heads
    ]


def _store_weights_as(dtype: str, layers: Iterable[Any]) -> None:
    """Stores the weights of layers in 16 bits, cast to float32; too large ones stay as they are."""
    import openvino
    from openvino import opset13

    kind = openvino.Type.f16 if dtype == "float16" else openvino.Type.bf16
    largest = np.finfo(np.float16 if dtype == "float16" else np.float32).max
    for layer in layers:
        weights = layer.input_value(1).get_node().get_data()
        if np.abs(weights).max() <= largest:
            rounded = opset13.constant(weights, kind)
            layer.input(1).replace_source_output(opset13.convert(rounded, "f32").output(0))


def _with_int8_weights(model: Any, kept: Iterable[Any]) -> Any:
    """The model with int8 weights, a scale per output channel, except those of the operations `kept`."""
    with _quiet_nncf() as nncf:
        ignored = nncf.IgnoredScope(names=[one.get_friendly_name() for one in kept], validate=False)
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)


def _quantized(model: Any, layers: Iterable[Any], batches: Iterable[Mapping[str, NDArray[Any]]]) -> Any:
    """The model with int8 arithmetic in `layers`."""
    chosen = {layer.get_friendly_name() for layer in layers}
    names = [one.get_friendly_name() for one in model.get_ops() if one.get_type_name() != "Constant"]
    with tempfile.TemporaryDirectory() as folder, _quiet_nncf() as nncf:
        stored = _StoredBatches(Path(folder), batches)
        return nncf.quantize(
            model,
            nncf.Dataset(stored),
            subset_size=len(stored.files),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[name for name in names if name not in chosen], validate=False),
            # weights of 7 bits: sums of products with 8 overflow in 16 bits on CPUs with AVX2 but without VNNI
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )


class _StoredBatches:
    """Batches in files, because NNCF iterates over them several times and all of them may not fit into memory."""

    def __init__(self, folder: Path, batches: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self.files = []
        for number, batch in enumerate(checked_batches(batches)):
            self.files.append(folder / f"{number}.npz")
            np.savez(self.files[-1], **batch)  # type: ignore[arg-type]  # names of inputs, none of them `allow_pickle`

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for file in self.files:
            with np.load(file) as arrays:
                yield dict(arrays)


def _onnx_node(operation: Any) -> str:
    """The ONNX node that an operation was made from; OpenVINO adds a suffix if it makes several of one."""
    name: str = operation.get_friendly_name()
    return name.partition("/")[0]


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without its messages and progress bars."""
    os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF reports its use
    import nncf

    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)  # nncf.set_log_level would also change handlers that others have added
    try:
        with redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        logger.setLevel(level)
