"""Which predicted objects are hits and which false ones, and which true objects are found and which missed.

Shapes: K predicted and N true objects of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from modeling_detr.structures_detr import DetectionResult, PanopticResult


MATCH_IOU = 0.5
"""A hit has the class of a true object and at least this intersection over union with it."""


@dataclass(frozen=True)
class Matches:
    """The outcome of a comparison.

    Attributes:
        predicted: (K,) bool, whether a predicted object is a hit.
        truth: (N,) bool, whether a true object was found.
        mark: How false and missed objects are drawn.
    """

    predicted: Tensor
    truth: Tensor
    mark: Literal["dashed", "striped"]

    @property
    def titles(self) -> tuple[str, str]:
        """The numbers of each kind, for the predicted and the true objects."""
        hits, num_false, missed = int(self.truth.sum()), int((~self.predicted).sum()), int((~self.truth).sum())
        return (
            f"predicted: {hits} {'hit' if hits == 1 else 'hits'}, {num_false} false ({self.mark})",
            f"truth: {hits} found, {missed} missed ({self.mark})",
        )


def match(predicted: Mapping[str, object], truth: Mapping[str, object]) -> Matches | None:
    """Matches boxes, or else panoptic segments; None if one side has neither, or other parts than the other side."""
    if "boxes" in predicted and "boxes" in truth:
        return _match_boxes(cast(DetectionResult, predicted), cast(DetectionResult, truth))
    if "segmentation" in predicted and "segmentation" in truth:
        return _match_segments(cast(PanopticResult, predicted), cast(PanopticResult, truth))
    return None


def _match_boxes(predicted: DetectionResult, truth: DetectionResult) -> Matches:
    """Each predicted object, the highest score first, takes the free true object of its class with the largest IoU."""
    ious = box_iou(predicted["boxes"].reshape(-1, 4).double(), truth["boxes"].reshape(-1, 4).double())
    ious[predicted["labels"][:, None] != truth["labels"][None]] = 0
    order: Sequence[int] = range(len(ious))
    if predicted.get("scores") is not None:
        order = predicted["scores"].argsort(descending=True, stable=True).tolist()
    return Matches(*_assign(ious.cpu().numpy(), order), "dashed")


def _match_segments(predicted: PanopticResult, truth: PanopticResult) -> Matches:
    """As in panoptic quality: pixels that are void in the truth count neither as shared nor as separate."""
    ids = [np.array([info["id"] for info in one["segments_info"]], np.int64) for one in (predicted, truth)]
    labels = [np.array([info["label_id"] for info in one["segments_info"]], np.int64) for one in (predicted, truth)]
    maps = [one["segmentation"].cpu().numpy() for one in (predicted, truth)]
    if maps[0].shape != maps[1].shape:
        raise ValueError(f"segmentation: got shape {maps[0].shape}, expected {maps[1].shape}, the shape of the truth.")
    known = np.isin(maps[1], ids[1])
    ious = np.zeros((len(ids[0]), len(ids[1])))
    areas = [int((maps[1] == true_id).sum()) for true_id in ids[1]]
    for row, predicted_id in enumerate(ids[0]):
        inside = maps[0] == predicted_id
        values, counts = np.unique(maps[1][inside], return_counts=True)
        shared = dict(zip(values.tolist(), counts.tolist(), strict=True))
        area = int((inside & known).sum())
        for column, true_id in enumerate(ids[1].tolist()):
            if labels[0][row] == labels[1][column] and shared.get(true_id):
                ious[row, column] = shared[true_id] / (area + areas[column] - shared[true_id])
    return Matches(*_assign(ious, range(len(ious))), "striped")


def _assign(ious: NDArray[np.float64], order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gives each predicted object, in `order`, the free true object of the largest IoU (K, N).

    Returns:
        (K,) bool, whether the predicted object has one, and (N,) bool, whether the true object was given away.
    """
    hits, found = torch.zeros(ious.shape[0], dtype=torch.bool), torch.zeros(ious.shape[1], dtype=torch.bool)
    for row in order if ious.shape[1] else ():
        column = int(ious[row].argmax())
        if ious[row, column] >= MATCH_IOU:
            hits[row] = found[column] = True
            ious[:, column] = 0  # no longer free
    return hits, found
