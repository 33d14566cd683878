"""OpenVINO on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_model(folder: Path, export: dict[str, Any]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Opens the OpenVINO model of an exported folder.

    `runtime_options` of `export.json` are properties of the compiled model, such as `INFERENCE_PRECISION_HINT`.
    """
    import openvino

    path = folder / export["file"]
    try:
        model = openvino.Core().compile_model(path, "CPU", dict(export["runtime_options"]))
    except RuntimeError as error:
        raise ValueError(f"{path}: OpenVINO cannot open it ({error}).") from error
    return lambda inputs: dict(zip(export["outputs"], model(inputs).values(), strict=True))
