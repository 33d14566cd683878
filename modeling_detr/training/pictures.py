"""Pictures of what a model finds, beside the truth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_detr.data import read_image
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.prediction import predict_objects, predict_segments
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.structures_detr import DetectionIndex, DetectionResult, PanopticResult, Task
from modeling_detr.visualization import draw_comparison


@torch.inference_mode()
def draw_predictions(
    detector: Detector,
    processor: DetrTorchvisionImageProcessor,
    index: DetectionIndex,
    task: Task,
    num_images: int,
) -> dict[str, NDArray[np.uint8]]:
    """The first images of a dataset with what is predicted and the truth side by side: name → (H, W, 3).

    Args:
        detector: It is left in evaluation mode.
        processor: The detector's.
        index: The dataset.
        task: What is drawn: boxes, masks too, or panoptic segments.
        num_images: How many images at most.
    """
    detector.eval()
    pictures = {}
    for position in range(min(num_images, len(index))):
        record = index.images[position]
        image = read_image(record)
        predicted: DetectionResult | PanopticResult
        truth: Mapping[str, object]
        if task == "panoptic" and isinstance(detector, DetrForSegmentation):
            predicted = predict_segments(detector, processor, image)
            truth = index.read_panoptic(position)
        else:
            predicted = predict_objects(detector, processor, image)
            truth = _true_objects(index, position, with_masks="masks" in predicted)
        drawn = draw_comparison(image, predicted, truth, index.id2label, shortest_side=320)
        pictures[f"{position:03d}_{Path(record.path).stem}"] = np.asarray(drawn)
    return pictures


def _true_objects(index: DetectionIndex, position: int, with_masks: bool) -> dict[str, Tensor]:
    """The annotated objects of an image, as `draw_comparison` expects them."""
    truth = index.annotations.take(index.annotation_rows(position))
    objects = {"boxes": torch.from_numpy(truth.boxes_xyxy), "labels": torch.from_numpy(truth.label)}
    if with_masks:
        objects["masks"] = torch.from_numpy(index.read_masks(position))
    return objects
