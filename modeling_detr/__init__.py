"""DETR, the transformer detector, with the original's numbers, for people who work with Hugging Face."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
)

from .configuration_detr import DetrConfig
from .image_processing_detr import DetrTorchvisionImageProcessor
from .modeling_detr import DetrForObjectDetection, DetrModel
from .segmentation_detr import DetrForSegmentation


__version__ = "0.1.0"

# exist_ok: Transformers has classes of the same names; the model_type "modeling_detr" distinguishes ours
AutoConfig.register(DetrConfig.model_type, DetrConfig, exist_ok=True)
AutoModel.register(DetrConfig, DetrModel, exist_ok=True)
AutoModelForObjectDetection.register(DetrConfig, DetrForObjectDetection, exist_ok=True)
for _auto in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation, AutoModelForInstanceSegmentation):
    _auto.register(DetrConfig, DetrForSegmentation, exist_ok=True)
AutoImageProcessor.register(DetrConfig, fast_image_processor_class=DetrTorchvisionImageProcessor, exist_ok=True)

# A saved model names the hub files that it needs, so trust_remote_code can load it without this package
DetrConfig.register_for_auto_class()
DetrModel.register_for_auto_class("AutoModel")
DetrForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
DetrForSegmentation.register_for_auto_class("AutoModelForUniversalSegmentation")
DetrTorchvisionImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = [
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrModel",
    "DetrTorchvisionImageProcessor",
]
