"""OpenVINO on the CPU."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_model(folder: Path, export: dict[str, Any]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Opens the OpenVINO model of an exported folder.

    `runtime_options` of `export.json` are properties of the compiled model, such as `INFERENCE_PRECISION_HINT`.
    """
    path = folder / export["file"]
    try:
        model = _core().compile_model(path, "CPU", dict(export["runtime_options"]))
    except RuntimeError as error:
        raise ValueError(f"{path}: OpenVINO cannot open it ({error}).") from error
    return lambda inputs: dict(zip(export["outputs"], model(inputs).values(), strict=True))


@functools.cache
def _core() -> Any:
    """The process's only OpenVINO core, which is kept until the process ends.

    If two of them compile models, the one that is deleted last leaves the thread an alternate signal stack in memory
    that is already freed. The next signal, such as Ctrl-C or the end of a loader process, then kills the process.
    """
    import openvino

    return openvino.Core()
