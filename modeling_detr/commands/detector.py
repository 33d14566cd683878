"""What a model sees in one image."""

from torch import Tensor

from modeling_detr.evaluation.engine import find_objects, find_segments
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.structures_detr import DetectionResult, PanopticResult, Task


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
    inputs = processor(pixels, device=model.device)
    result = find_objects(model, processor, inputs, (pixels.shape[-2], pixels.shape[-1]), threshold)
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
    inputs = processor(pixels, device=model.device)
    result = find_segments(model, processor, inputs, (pixels.shape[-2], pixels.shape[-1]), threshold)
    return {"segmentation": result["segmentation"].cpu(), "segments_info": result["segments_info"]}
