"""Anchored matching: a query is responsible for the objects near the point at which it starts.

Shapes: L decoder layers · T targets of a batch · Q queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_detr.loss_detr import HungarianMatcher
from modeling_detr.structures_detr import DetectionLabels
from modeling_detr.training.aids.local_start import query_points
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid


class AnchoredMatcher(HungarianMatcher):
    """Adds the distance of a query's point from the centre of the target to the costs.

    Args:
        matcher: Its costs are kept.
        points: (Q, 2) as (x, y) in [0, 1].
        distance_cost: Cost of a distance |dx| + |dy| of 1, where 1 is a side of the image.
    """

    def __init__(self, matcher: HungarianMatcher, points: Tensor, distance_cost: float) -> None:
        super().__init__(matcher.class_cost, matcher.bbox_cost, matcher.giou_cost)
        self.points = points
        self.distance_cost = distance_cost

    def costs(self, log_probabilities: Tensor, pred_boxes: Tensor, labels: Sequence[DetectionLabels]) -> Tensor:
        """Return the (L, T, Q) costs of every target and each query of its image."""
        costs = super().costs(log_probabilities, pred_boxes, labels)
        centres = torch.cat([label["boxes"] for label in labels]).to(costs)[:, :2]  # (T, 2)
        points = self.points.to(costs.device, costs.dtype, non_blocking=True)
        return costs + self.distance_cost * torch.cdist(centres, points, p=1)  # (T, Q)


class AnchoredMatching(TrainingAid):
    """Prefers queries near an object when the learned queries are matched; for models with a `local_start`.

    The costs of DETR hardly tell apart queries that predict the same object, so which of them is matched changes from
    step to step, and none learns to be silent: what remains are duplicates. The distance from a query's starting point
    does not change, and the query knows both. The matching stays one to one.

    That an unstable matching slows DETR down: DN-DETR, sec. 3.1. That queries can stand for points: Anchor DETR
    (arXiv 2109.07107). There the points are inputs of the decoder; here only the matching knows them.

    Args:
        num_queries: Q.
        distance_cost: See `AnchoredMatcher`.
    """

    suffix = "anchored"

    def __init__(self, num_queries: int, distance_cost: float) -> None:
        super().__init__()
        self.points = query_points(num_queries)
        self.distance_cost = distance_cost

    def matcher(self, matcher: HungarianMatcher) -> HungarianMatcher:
        """Return a matcher that adds the distances to the costs of `matcher`."""
        return AnchoredMatcher(matcher, self.points, self.distance_cost)

    def losses(self, batch: AidedBatch) -> dict[str, Tensor]:  # noqa: ARG002
        """Return no terms: this aid changes which queries the set loss trains."""
        return {}

    def loss_weights(self, set_loss_weights: object) -> dict[str, float]:  # noqa: ARG002
        """Return no weights; see `losses`."""
        return {}
