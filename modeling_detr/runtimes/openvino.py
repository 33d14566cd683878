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

    # All models share one core, which is kept until the process ends. If two cores compile models, the one that is
    # deleted last leaves the thread an alternate signal stack in memory that is already freed, and the next signal,
    # such as Ctrl-C or the end of a loader process, kills the process. The scripts of exported folders share it too.
    if not hasattr(openvino, "core_of_modeling_detr"):
        openvino.core_of_modeling_detr = openvino.Core()
    core = openvino.core_of_modeling_detr

    path = folder / export["file"]
    try:
        model = core.compile_model(path, "CPU", dict(export["runtime_options"]))
    except RuntimeError as error:
        raise ValueError(f"{path}: OpenVINO cannot open it ({error}).") from error
    return lambda inputs: dict(zip(export["outputs"], model(inputs).values(), strict=True))
