"""DETR, the transformer detector, with the original's numbers, for people who work with Hugging Face."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .auto_classes import register_when_imported


if TYPE_CHECKING:
    from .configuration_detr import DetrConfig
    from .image_processing_detr import DetrTorchvisionImageProcessor
    from .modeling_detr import DetrForObjectDetection, DetrModel
    from .predicting import Detector
    from .segmentation_detr import DetrForSegmentation


__version__ = "0.1.0"

__all__ = [
    "Detector",
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrModel",
    "DetrTorchvisionImageProcessor",
]

# Importing a class takes seconds, most of them for PyTorch and Transformers, so it waits for its first use
_HOMES = {
    "DetrConfig": "configuration_detr",
    "DetrForObjectDetection": "modeling_detr",
    "DetrForSegmentation": "segmentation_detr",
    "DetrModel": "modeling_detr",
    "DetrTorchvisionImageProcessor": "image_processing_detr",
    "Detector": "predicting",
}

register_when_imported()


def __getattr__(name: str) -> Any:
    """Imports a public class or a submodule at its first use."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
