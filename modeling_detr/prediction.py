"""Predictions for images: objects, with masks if the model has them, or panoptic segments.

`predict_objects` and `predict_segments` take an image of any kind; `detect_batch` and `segment_batch` a batch that the
image processor has prepared.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, RawImage, to_rgb
from modeling_detr.precision import ComputeDtype, in_precision
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation, has_masks
from modeling_detr.structures_detr import DetectionResult, PanopticResult, Task


OBJECT_THRESHOLD = 0.5
SEGMENT_THRESHOLD = 0.85  # as in the original


def task_of(model: Detector) -> Task:
    """The richest task a model supports: `panoptic` with stuff classes, `instance` with masks, else `detection`."""
    if not has_masks(model):
        return "detection"
    return "panoptic" if model.config.stuff_labels else "instance"


def predict_objects(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    image: RawImage,
    threshold: float = OBJECT_THRESHOLD,
    dtype: ComputeDtype = "float32",
) -> DetectionResult:
    """Detects the objects in one image.

    Args:
        model: A model in evaluation mode.
        processor: The model's image processor.
        image: Any image, see `to_rgb`.
        threshold: Objects with a lower score are left out; their masks are not computed.
        dtype: The precision that the model computes in; see `compute_dtype`.

    Returns:
        The objects by descending score, on the CPU, with masks if the model has them.
    """
    pixels = to_rgb(image)
    (objects,) = detect_batch(
        model, processor, processor(pixels, device=model.device), [_size(pixels)], threshold, dtype
    )
    return objects


def predict_segments(
    model: DetrForSegmentation,
    processor: DetrTorchvisionImageProcessor,
    image: RawImage,
    threshold: float = SEGMENT_THRESHOLD,
    dtype: ComputeDtype = "float32",
) -> PanopticResult:
    """Splits one image into panoptic segments.

    Args:
        model: A model in evaluation mode.
        processor: The model's image processor.
        image: Any image, see `to_rgb`.
        threshold: Only queries with a higher score become segments.
        dtype: The precision that the model computes in; see `compute_dtype`.

    Returns:
        The segments, on the CPU.
    """
    pixels = to_rgb(image)
    (segments,) = segment_batch(
        model, processor, processor(pixels, device=model.device), [_size(pixels)], threshold, dtype
    )
    return segments


@torch.inference_mode()
def detect_batch(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    inputs: Mapping[str, Tensor],
    sizes: Sequence[tuple[int, int]],
    threshold: float = OBJECT_THRESHOLD,
    dtype: ComputeDtype = "float32",
) -> list[DetectionResult]:
    """Detects the objects in a batch. Padding in it changes the predictions, as in the original.

    Args:
        model: A model in evaluation mode.
        processor: The model's image processor.
        inputs: What the processor returns, on the model's device.
        sizes: (height, width) of each original image.
        threshold: Objects with a lower score are left out; their masks are not computed.
        dtype: The precision that the model computes in; see `compute_dtype`.

    Returns:
        The objects of each image by descending score, on the CPU, with masks if the model has them.
    """
    results: Sequence[DetectionResult]
    if has_masks(model):
        outputs = in_precision(model, dtype, model.device)(**inputs, output_masks=False)
        predict_masks = in_precision(partial(model.predict_masks, outputs), dtype, model.device)
        results = processor.post_process_instance_segmentation(
            outputs, threshold, target_sizes=sizes, predict_masks=predict_masks
        )
    else:
        outputs = in_precision(model, dtype, model.device)(**inputs)
        results = processor.post_process_object_detection(outputs, threshold, sizes)
    return [_sorted(result) for result in results]


@torch.inference_mode()
def segment_batch(
    model: DetrForSegmentation,
    processor: DetrTorchvisionImageProcessor,
    inputs: Mapping[str, Tensor],
    sizes: Sequence[tuple[int, int]],
    threshold: float = SEGMENT_THRESHOLD,
    dtype: ComputeDtype = "float32",
) -> list[PanopticResult]:
    """Splits the images of a batch into panoptic segments; arguments as those of `detect_batch`.

    Returns:
        The segments of each image, on the CPU.
    """
    outputs = in_precision(model, dtype, model.device)(**inputs, output_masks=False)
    predict_masks = in_precision(partial(model.predict_masks, outputs), dtype, model.device)
    results = processor.post_process_panoptic_segmentation(
        outputs, threshold, target_sizes=sizes, predict_masks=predict_masks
    )
    return [
        {"segmentation": result["segmentation"].cpu(), "segments_info": result["segments_info"]} for result in results
    ]


def _sorted(result: DetectionResult) -> DetectionResult:
    """The objects by descending score, on the CPU."""
    order = result["scores"].argsort(descending=True)
    objects: DetectionResult = {
        "scores": result["scores"][order].cpu(),
        "labels": result["labels"][order].cpu(),
        "boxes": result["boxes"][order].cpu(),
    }
    if "masks" in result:
        objects["masks"] = result["masks"][order].cpu()
    return objects


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]
