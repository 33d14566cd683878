"""The kinds of files that a detector can be exported to: `TARGETS`, by the name that `detr export --to` takes.

A plug-in may add one:

    TARGETS["tflite"] = ExportTarget("a LiteRT model", ("ai_edge_torch",), "litert", ("float32",), write_tflite)

`modeling_detr.runtimes.RUNTIMES` needs an entry of the same name, which runs what was written.
"""

import re
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_detr.deployment.graph import GraphOptions, TracedDetector, trace_detector
from modeling_detr.deployment.precisions import Operators, Precision
from modeling_detr.segmentation_detr import Detector


Batches = Iterable[dict[str, np.ndarray]]
"""Inputs of the graph by name, for calibration."""

_AXES = {"pixel_values": ("images", "channels", "height", "width")}


@dataclass(frozen=True)
class ExportSettings:
    """What is to be written.

    Attributes:
        graph: The inputs and outputs.
        precision: One of the target's `precisions`.
        calibration: Calibration batches, for `int8_static`; iterated over once.
        operators: What `int8_static` quantises: `conv`, `linear` or `all`.
    """

    graph: GraphOptions = field(default_factory=GraphOptions)
    precision: Precision = "float32"
    calibration: Batches = ()
    operators: Operators = "conv"


@dataclass(frozen=True)
class WrittenModel:
    """What a target has written.

    Attributes:
        file: The file's name.
        inputs: Names of the inputs, in their order.
        outputs: Names of the outputs, in their order.
        runtime_options: Options that the runtime is started with.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    runtime_options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportTarget:
    """A kind of file that a detector can be exported to.

    Attributes:
        description: A noun with an article, for messages: "an ONNX model".
        packages: Modules that have to be installed.
        extra: The extra of this package that installs them.
        precisions: The precisions that `write` supports.
        write: `write(model, folder, settings)`: writes the files into an existing folder.
        runs_with: The package that runs what was written.
    """

    description: str
    packages: tuple[str, ...]
    extra: str
    precisions: tuple[Precision, ...]
    write: Callable[[Detector, Path, ExportSettings], WrittenModel]
    runs_with: str = "torch"


def write_onnx(model: Detector, folder: Path, settings: ExportSettings) -> WrittenModel:
    """Writes `model.onnx` with PyTorch's exporter."""
    from modeling_detr.deployment.onnx_precision import quantize_dynamically, quantize_statically, store_weights_as

    traced = trace_detector(model, settings.graph)
    file, float32 = folder / "model.onnx", folder / "float32.onnx"
    _save_onnx(traced, float32)
    if settings.precision == "float16" or settings.precision == "bfloat16":
        store_weights_as(float32, file, settings.precision)
    elif settings.precision == "int8":
        quantize_dynamically(float32, file)
    elif settings.precision == "int8_static":
        quantize_statically(float32, file, settings.calibration, settings.operators)
    else:
        shutil.copyfile(float32, file)
    float32.unlink()
    _remove_debug_information(file)
    return WrittenModel(file.name, traced.inputs, traced.outputs)


def write_openvino(model: Detector, folder: Path, settings: ExportSettings) -> WrittenModel:
    """Writes `model.xml` and `model.bin`, from an ONNX model."""
    from modeling_detr.deployment.openvino_export import write_openvino as write

    traced = trace_detector(model, settings.graph)
    onnx_file = folder / "float32.onnx"
    _save_onnx(traced, onnx_file)
    options = write(onnx_file, folder, settings.precision, settings.calibration, settings.operators)
    onnx_file.unlink()
    return WrittenModel("model.xml", traced.inputs, traced.outputs, options)


def write_torch(model: Detector, folder: Path, settings: ExportSettings) -> WrittenModel:
    """Writes `model.pt2` with `torch.export`; in 16-bit precisions it also computes in them, except for the heads."""
    traced = trace_detector(model, settings.graph, getattr(torch, settings.precision))
    torch.export.save(traced.program, folder / "model.pt2")
    return WrittenModel("model.pt2", traced.inputs, traced.outputs)


def write_aotinductor(model: Detector, folder: Path, settings: ExportSettings) -> WrittenModel:
    """Compiles `model.pt2` with AOTInductor, for this kind of processor."""
    traced = trace_detector(model, settings.graph)
    with warnings.catch_warnings(action="ignore"):
        torch._inductor.aoti_compile_and_package(traced.program, package_path=str(folder / "model.pt2"))
    return WrittenModel("model.pt2", traced.inputs, traced.outputs)


TARGETS: dict[str, ExportTarget] = {
    "onnx": ExportTarget(
        "an ONNX model",
        ("onnx", "onnxscript", "onnxruntime"),
        "export",
        ("float32", "float16", "bfloat16", "int8", "int8_static"),
        write_onnx,
        "onnxruntime",
    ),
    "openvino": ExportTarget(
        "an OpenVINO model",
        ("onnx", "onnxscript", "openvino", "nncf"),
        "export,openvino",
        ("float32", "float16", "bfloat16", "int8", "int8_static"),
        write_openvino,
        "openvino",
    ),
    "torch": ExportTarget("a program of torch.export", (), "", ("float32", "float16", "bfloat16"), write_torch),
    "aotinductor": ExportTarget("a program compiled by AOTInductor", (), "", ("float32",), write_aotinductor),
}


def _save_onnx(traced: TracedDetector, file: Path) -> None:
    import onnx

    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            traced.program, dynamo=True, verbose=False, input_names=traced.inputs, output_names=traced.outputs
        )
    assert program is not None  # with dynamo=True it never is
    program.save(file)
    written = onnx.load(file)
    _name_axes(written.graph)
    onnx.save(written, file)


def _remove_debug_information(file: Path) -> None:
    """Removes the Python lines that each node comes from: a quarter of a small file, and paths of this machine."""
    import onnx

    written = onnx.load(file)
    graph = written.graph
    for entry in [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del entry.metadata_props[:]
    onnx.save(written, file)


def _name_axes(graph: Any) -> None:
    """Replaces the exporter's names of variable axes, such as `s52`, in all shapes of an ONNX graph."""
    names = {}
    for value in graph.input:
        for axis, dimension in zip(_AXES.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
            if dimension.dim_param:
                names[dimension.dim_param] = axis
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dimension.dim_param)
