"""Runs a program compiled by AOTInductor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_model(folder: Path, export: dict[str, Any]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Loads the model of an exported folder; see `modeling_detr.runtimes.torch.open_model`."""
    import torch

    module = torch._inductor.aoti_load_package(str(folder / export["file"]))

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(values) for name, values in inputs.items()})
        return {name: values.numpy() for name, values in outputs.items()}

    return run
