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
from torchvision.ops import box_area, box_iou

from modeling_detr.structures_detr import PanopticResult


MATCH_IOU = 0.5
"""A hit has the class of a true object and at least this intersection over union with it."""


@dataclass(frozen=True)
class Matches:
    """The outcome of a comparison.

    Attributes:
        predicted: (K,) bool, whether a predicted object is a hit, or in a crowd or void region, where none counts.
        truth: (N,) bool, whether a true object was found, or is a crowd region, which cannot be missed.
        num_hits: Number of hits.
        mark: How false and missed objects are drawn.
    """

    predicted: Tensor
    truth: Tensor
    num_hits: int
    mark: Literal["dashed", "striped"]

    @property
    def titles(self) -> tuple[str, str]:
        """The numbers of each kind, for the predicted and the true objects."""
        num_false, num_missed = int((~self.predicted).sum()), int((~self.truth).sum())
        return (
            f"predicted: {self.num_hits} {'hit' if self.num_hits == 1 else 'hits'}, {num_false} false ({self.mark})",
            f"truth: {self.num_hits} found, {num_missed} missed ({self.mark})",
        )


def match(predicted: Mapping[str, object], truth: Mapping[str, object]) -> Matches | None:
    """Matches boxes, or else panoptic segments; None if one side has neither, or other parts than the other side."""
    if "boxes" in predicted and "boxes" in truth:
        return _match_boxes(predicted, truth)
    if "segmentation" in predicted and "segmentation" in truth:
        return _match_segments(cast(PanopticResult, predicted), cast(PanopticResult, truth))
    return None


def _match_boxes(predicted: Mapping[str, object], truth: Mapping[str, object]) -> Matches:
    """Each predicted object, the highest score first, takes the free true object of its class with the largest IoU."""
    boxes, true_boxes = (cast(Tensor, one["boxes"]).reshape(-1, 4).double().cpu() for one in (predicted, truth))
    labels, true_labels = (cast(Tensor, one["labels"]).cpu() for one in (predicted, truth))
    is_crowd = cast(Tensor, truth.get("is_crowd", torch.zeros(len(true_boxes), dtype=torch.bool))).cpu()
    is_same_class = labels[:, None] == true_labels
    order: Sequence[int] = range(len(boxes))
    if predicted.get("scores") is not None:
        order = cast(Tensor, predicted["scores"]).argsort(descending=True, stable=True).tolist()
    hits, found = _assign((box_iou(boxes, true_boxes) * (is_same_class & ~is_crowd)).numpy(), order)

    corners = (
        torch.maximum(boxes[:, None, :2], true_boxes[:, :2]),
        torch.minimum(boxes[:, None, 2:], true_boxes[:, 2:]),
    )
    shared = (corners[1] - corners[0]).clip(0).prod(-1)
    in_crowd = (shared >= MATCH_IOU * box_area(boxes)[:, None]) & is_same_class & is_crowd
    return Matches(hits | in_crowd.any(1), found | is_crowd, int(found.sum()), "dashed")


def _match_segments(predicted: PanopticResult, truth: PanopticResult) -> Matches:
    """As in panoptic quality: pixels that are void in the truth count neither as shared nor as separate."""
    infos, true_infos = predicted["segments_info"], truth["segments_info"]
    segments, true_segments = (one["segmentation"].cpu().numpy() for one in (predicted, truth))
    if segments.shape != true_segments.shape:
        raise ValueError(f"segmentation: got shape {segments.shape}, expected {true_segments.shape}, as in the truth.")
    areas = dict(zip(*(values.tolist() for values in np.unique(true_segments, return_counts=True)), strict=True))
    ious, is_ignored = np.zeros((len(infos), len(true_infos))), torch.zeros(len(infos), dtype=torch.bool)
    is_crowd = torch.tensor([bool(info.get("is_crowd")) for info in true_infos], dtype=torch.bool)
    for row, info in enumerate(infos):
        inside = true_segments[segments == info["id"]]
        shared = dict(zip(*(values.tolist() for values in np.unique(inside, return_counts=True)), strict=True))
        known = sum(shared.get(true_info["id"], 0) for true_info in true_infos)
        ignored = len(inside) - known
        for column, true_info in enumerate(true_infos):
            overlap = shared.get(true_info["id"], 0)
            if overlap and info["label_id"] == true_info["label_id"]:
                if is_crowd[column]:
                    ignored += overlap
                else:
                    ious[row, column] = overlap / (known + areas[true_info["id"]] - overlap)
        is_ignored[row] = ignored > MATCH_IOU * len(inside)
    hits, found = _assign(ious, range(len(ious)))
    return Matches(hits | is_ignored, found | is_crowd, int(found.sum()), "striped")


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
