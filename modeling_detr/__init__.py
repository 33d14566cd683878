"""DETR, the transformer detector, with the original's numbers, for people who work with Hugging Face."""

from .configuration_detr import DetrConfig
from .modeling_detr import DetrForObjectDetection, DetrModel


__version__ = "0.1.0"
