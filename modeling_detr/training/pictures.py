"""Pictures of what a model finds, beside the truth."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.data import read_image
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.prediction import predict_objects, predict_segments
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.structures_detr import DetectionIndex, DetectionResult, Task
from modeling_detr.visualization import draw_comparison, draw_panoptic_comparison


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
        if task == "panoptic" and isinstance(detector, DetrForSegmentation):
            segments = predict_segments(detector, processor, image)
            truth = index.read_panoptic(position)
            drawn = draw_panoptic_comparison(image, segments, truth, index.id2label, shortest_side=320)
        else:
            found = predict_objects(detector, processor, image)
            drawn = _beside_truth(image, found, index, position)
        pictures[f"{position:03d}_{Path(record.path).stem}"] = np.asarray(drawn)
    return pictures


def _beside_truth(
    image: NDArray[np.uint8], found: DetectionResult, index: DetectionIndex, position: int
) -> Image.Image:
    """Objects found, and true ones: their boxes, and their masks if the task has them."""
    truth = index.annotations.take(index.annotation_rows(position))
    return draw_comparison(
        image,
        found,
        torch.from_numpy(truth.boxes_xyxy),
        torch.from_numpy(truth.label),
        index.id2label,
        true_masks=torch.from_numpy(index.read_masks(position)) if "masks" in found else None,
        shortest_side=320,
    )
