"""ONNX Runtime on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_model(folder: Path, export: dict[str, Any]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Opens the ONNX file of an exported folder.

    `runtime_options` of `export.json` are entries of ONNX Runtime's session configuration.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for key, value in export["runtime_options"].items():
        options.add_session_config_entry(key, str(value))
    path = folder / export["file"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise ValueError(f"{path}: ONNX Runtime cannot open it ({error}).") from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))
