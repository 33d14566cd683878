"""The model that a command is given, by folder or name on the Hub, and what it sees in one image."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.modeling_detr import DetrForObjectDetection, DetrForSegmentation
from modeling_detr.structures_detr import DetectionResult
from modeling_detr.training.checkpointing import find_model, telling_missing_models


Detector = DetrForObjectDetection | DetrForSegmentation


def load_detector(source: str) -> tuple[Detector, DetrTorchvisionImageProcessor]:
    """The model, in evaluation mode, and its image processor; with masks if it was saved as one that segments.

    Args:
        source: A folder that `save_pretrained` or training wrote (a run's folder will do), or a Hub id.

    Raises:
        ValueError: `source` is a checkpoint of the original, or another file, or a folder without a model.
        OSError: There is nothing of that name, or it is not complete.
    """
    with telling_missing_models(source):
        found = find_model(source)
        said, _ = PreTrainedConfig.get_config_dict(found)
        segments = DetrForSegmentation.__name__ in (said.get("architectures") or ())
        model = (DetrForSegmentation if segments else DetrForObjectDetection).from_pretrained(found)
        return model.eval(), DetrTorchvisionImageProcessor.from_pretrained(found)


def detect(
    model: Detector, processor: DetrTorchvisionImageProcessor, pixels: Tensor, threshold: float
) -> DetectionResult:
    """The detections in one image (3, H, W) uint8, scores of `threshold` or more, the surest first, on the CPU."""
    inputs = processor(pixels, device=model.device)
    with torch.inference_mode():
        outputs: Any = model(**inputs)
    (result,) = processor.post_process_object_detection(outputs, threshold, [(pixels.shape[-2], pixels.shape[-1])])
    order = result["scores"].argsort(descending=True)
    return {
        "scores": result["scores"][order].cpu(),
        "labels": result["labels"][order].cpu(),
        "boxes": result["boxes"][order].cpu(),
    }
