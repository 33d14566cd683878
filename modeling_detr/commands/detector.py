"""The model that a command is given, by folder or name on the Hub, and what it sees in one image."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.modeling_detr import DetrForObjectDetection, DetrForSegmentation
from modeling_detr.structures_detr import DetectionResult, PanopticResult, Task
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


def task_of(model: Detector) -> Task:
    """What the model can do: panoptic segmentation if it knows stuff, instances if it has masks, or detection."""
    if not isinstance(model, DetrForSegmentation):
        return "detection"
    return "panoptic" if model.config.stuff_labels else "instance"


def detect(
    model: Detector, processor: DetrTorchvisionImageProcessor, pixels: Tensor, threshold: float
) -> DetectionResult:
    """The detections in one image (3, H, W) uint8, scores of `threshold` or more, the surest first, on the CPU; with
    masks if the model has them."""
    outputs, predict_masks = _outputs(model, processor, pixels)
    sizes = [(pixels.shape[-2], pixels.shape[-1])]
    result: DetectionResult
    if predict_masks is None:
        (result,) = processor.post_process_object_detection(outputs, threshold, sizes)
    else:
        (result,) = processor.post_process_instance_segmentation(
            outputs, threshold, target_sizes=sizes, predict_masks=predict_masks
        )
    order = result["scores"].argsort(descending=True)
    found: DetectionResult = {
        "scores": result["scores"][order].cpu(),
        "labels": result["labels"][order].cpu(),
        "boxes": result["boxes"][order].cpu(),
    }
    if "masks" in result:
        found["masks"] = result["masks"][order].cpu()
    return found


def segment(
    model: DetrForSegmentation, processor: DetrTorchvisionImageProcessor, pixels: Tensor, threshold: float
) -> PanopticResult:
    """The panoptic segments of one image (3, H, W) uint8, of queries with a score above `threshold`, on the CPU."""
    outputs, predict_masks = _outputs(model, processor, pixels)
    sizes = [(pixels.shape[-2], pixels.shape[-1])]
    (result,) = processor.post_process_panoptic_segmentation(
        outputs, threshold, target_sizes=sizes, predict_masks=predict_masks
    )
    return {"segmentation": result["segmentation"].cpu(), "segments_info": result["segments_info"]}


def _outputs(model: Detector, processor: DetrTorchvisionImageProcessor, pixels: Tensor) -> tuple[Any, Any]:
    """What the model says of an image, and what computes the masks of chosen queries; None for a detector."""
    inputs = processor(pixels, device=model.device)
    with torch.inference_mode():
        if not isinstance(model, DetrForSegmentation):
            return model(**inputs), None
        outputs: Any = model(**inputs, output_masks=False)
    return outputs, torch.inference_mode()(partial(model.predict_masks, outputs))
