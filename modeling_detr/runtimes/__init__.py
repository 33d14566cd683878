"""What runs an exported model: its detector in NumPy and Pillow, and one file for each runtime.

A runtime's file has one function, `open_model(folder, export)`, whose text is copied into the `detect.py` of an
exported folder. So it imports what it needs itself.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_model(folder: Path, export: dict[str, Any]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Opens the model of an exported folder.

    Args:
        folder: The folder.
        export: The contents of its `export.json`, which names the runtime.

    Returns:
        A function from the model's inputs to its outputs, both by name.

    Raises:
        ModuleNotFoundError: The runtime is not installed.
        ValueError: The file is not a model of this runtime.
    """
    runtime = importlib.import_module(f"{__name__}.{export['runtime']}")
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = runtime.open_model(folder, export)
    return run
