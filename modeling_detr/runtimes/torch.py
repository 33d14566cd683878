"""Runs a program of `torch.export`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_model(folder: Path, export: dict[str, Any]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Loads the model of an exported folder.

    Args:
        folder: The folder.
        export: The content of its `export.json`.

    Returns:
        A function from the inputs to the outputs, NumPy arrays by name.
    """
    import torch

    module = torch.export.load(folder / export["file"]).module()

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(values) for name, values in inputs.items()})
        return {name: values.numpy() for name, values in outputs.items()}

    return run
