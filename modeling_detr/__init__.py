"""DETR, the transformer detector, with the original's numbers, for people who work with Hugging Face."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

_IS_DETR_COMMAND = Path(getattr(sys, "argv", [""])[0]).stem == "detr"

# Importing the classes takes seconds. `detr --help` needs none of them; a command that does imports them itself.
if TYPE_CHECKING or not _IS_DETR_COMMAND:
    from .auto_classes import (
        DetrConfig,
        DetrForObjectDetection,
        DetrForSegmentation,
        DetrModel,
        DetrTorchvisionImageProcessor,
    )

__all__ = [
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrModel",
    "DetrTorchvisionImageProcessor",
]


def __getattr__(name: str) -> Any:
    """Imports a public class at its first use in the command `detr`, for example by a plug-in."""
    if name in __all__:
        return getattr(importlib.import_module("modeling_detr.auto_classes"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
