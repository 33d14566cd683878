"""What runs an exported model: one file for each runtime, and a detector in NumPy and Pillow, `detect.py`.

A runtime's file has one function, `open_model(folder, export)`, whose text is copied into the `detect.py` of an
exported folder. So it imports what it needs itself.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_detr.errors_detr import ModelError, did_you_mean


RunModel = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""A model: from its inputs to its outputs, NumPy arrays by name."""


_EXPORT_AGAIN = "export the model again"


@dataclass(frozen=True)
class Runtime:
    """A library that runs exported models.

    Attributes:
        module: The module with `open_model`.
        package: The module that has to be installed.
        extra: The extra of this package that installs it.
        runs_code: Whether a file can run any code when it is opened.
    """

    module: str
    package: str
    extra: str
    runs_code: bool = False


RUNTIMES: dict[str, Runtime] = {
    "onnx": Runtime("modeling_detr.runtimes.onnx", "onnxruntime", "export"),
    "openvino": Runtime("modeling_detr.runtimes.openvino", "openvino", "openvino"),
    "torch": Runtime("modeling_detr.runtimes.torch", "torch", "", runs_code=True),
    "aotinductor": Runtime("modeling_detr.runtimes.aotinductor", "torch", "", runs_code=True),
}


def open_model(folder: Path, export: dict[str, Any], trust_code: bool = False) -> RunModel:
    """Opens the model of an exported folder.

    Args:
        folder: The folder.
        export: The content of its `export.json`.
        trust_code: Open files that can run code, too.

    Raises:
        ModelError: The runtime is unknown or not installed, the file can run code, or it is damaged; the returned
            function raises it, too, if the file is not the model that `export` describes.
    """
    name = export["runtime"]
    if name not in RUNTIMES:
        raise ModelError(folder, f"its runtime is {name!r}, which is unknown", did_you_mean(name, RUNTIMES))
    runtime = RUNTIMES[name]
    if runtime.runs_code and not trust_code:
        problem = f"its model is a file of {name!r}, which can run any code when it is opened"
        raise ModelError(folder, problem, "if you trust its source, open it", {"trust_code": True})
    try:
        run: RunModel = importlib.import_module(runtime.module).open_model(folder, export)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'modeling-detr[{runtime.extra}]'"
        raise ModelError(folder, f"needs {runtime.package}, which is not installed", remedy) from error
    except Exception as error:  # the runtimes raise whatever a damaged file leads to
        raise ModelError(folder / export["file"], f"cannot be opened ({_reason(error)})", _EXPORT_AGAIN) from error

    def run_checked(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            outputs = run(inputs)
        except Exception as error:  # so does another model than the one that was exported
            problem = f"fails on images of shape {inputs['pixel_values'].shape} ({_reason(error)})"
            raise ModelError(folder / export["file"], problem, _EXPORT_AGAIN) from error
        if missing := [name for name in export.get("outputs", ()) if name not in outputs]:
            raise ModelError(folder / export["file"], f"has no output {missing[0]!r}", _EXPORT_AGAIN)
        return outputs

    return run_checked


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200]
