"""The public classes, registered with Transformers' Auto classes when this module is imported."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
)

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.modeling_detr import DetrForObjectDetection, DetrModel
from modeling_detr.segmentation_detr import DetrForSegmentation


__all__ = [
    "DetrConfig",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrModel",
    "DetrTorchvisionImageProcessor",
]

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
