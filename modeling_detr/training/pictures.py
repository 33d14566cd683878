"""Pictures of predictions next to the ground truth."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_detr.atomic_output import output_stem
from modeling_detr.data import read_image
from modeling_detr.data.image_copies import file_name_of
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.precision import ComputeDtype
from modeling_detr.prediction import predict_objects, predict_segments
from modeling_detr.segmentation_detr import Detector, has_masks
from modeling_detr.structures_detr import DetectionIndex, DetectionResult, PanopticResult, Task
from modeling_detr.visualization import draw_comparison


@torch.inference_mode()
def draw_predictions(
    detector: Detector,
    processor: DetrTorchvisionImageProcessor,
    index: DetectionIndex,
    task: Task,
    image_indices: Iterable[int],
    dtype: ComputeDtype = "float32",
) -> dict[str, NDArray[np.uint8]]:
    """Draw images of a dataset with predictions and ground truth side by side.

    Args:
        detector: The model; it is left in evaluation mode.
        processor: The image processor of the model.
        index: The dataset.
        task: Selects whether boxes, boxes and masks, or panoptic segments are drawn.
        image_indices: Indices of the images.
        dtype: The precision that the model computes in; see `compute_dtype`.

    Returns:
        Name → picture, (H, W, 3).
    """
    detector.eval()
    pictures = {}
    for image_index in image_indices:
        record = index.images[image_index]
        image = read_image(record)
        predicted: DetectionResult | PanopticResult
        truth: Mapping[str, object]
        if task == "panoptic" and has_masks(detector):
            predicted = predict_segments(detector, processor, image, dtype=dtype)
            truth = _true_segments(index, image_index)
        else:
            predicted = predict_objects(detector, processor, image, dtype=dtype)
            truth = _true_objects(index, image_index, with_masks="masks" in predicted)
        drawn = draw_comparison(image, predicted, truth, index.id2label, longest_side=640)
        pictures[f"{image_index:03d}_{file_name_of(output_stem(record.path))}"] = np.asarray(drawn)
    return pictures


def _true_objects(index: DetectionIndex, image_index: int, with_masks: bool) -> dict[str, Tensor]:
    """The annotated objects of an image, as `draw_comparison` expects them."""
    truth = index.annotations.take(index.annotation_rows(image_index))
    objects = {
        "boxes": torch.from_numpy(truth.boxes_xyxy),
        "labels": torch.from_numpy(truth.label),
        "is_crowd": torch.from_numpy(truth.is_crowd),
    }
    if with_masks:
        objects["masks"] = torch.from_numpy(index.read_masks(image_index))
    return objects


def _true_segments(index: DetectionIndex, image_index: int) -> dict[str, object]:
    """The annotated segments of an image, as `draw_comparison` expects them."""
    truth = index.read_panoptic(image_index)
    is_crowd = index.annotations.is_crowd[index.annotation_rows(image_index)].tolist()
    infos = [{**info, "is_crowd": crowd} for info, crowd in zip(truth["segments_info"], is_crowd, strict=True)]
    return {**truth, "segments_info": infos}
