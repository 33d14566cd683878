"""Boxes as corners, and how far corresponding boxes are apart: the two box losses and their gradient.

Boxes are (…, 4), their halves (…, 2): x and y of a corner or centre, or width and height.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


_SMALLEST_AREA = 1e-12  # of a box with sides of a millionth of the image's: only empty boxes are smaller


def boxes_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(…, 4) boxes as (centre x, centre y, width, height) → corners (x0, y0, x1, y1), in the same unit."""
    return torch.cat(_corners(*boxes_cxcywh.chunk(2, dim=-1)), dim=-1)


def _corners(centre: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """(…, 2) each → (x0, y0) and (x1, y1), (…, 2) each."""
    return torch.sub(centre, size, alpha=0.5), torch.add(centre, size, alpha=0.5)


def generalized_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes, in [-1, 1]; see `box_distances`.

    Args:
        boxes_xyxy: (…, 4) corners.
        others_xyxy: (…, 4) corners, broadcast against `boxes_xyxy`.
    """
    return 1 - box_distances(_xyxy_to_cxcywh(boxes_xyxy), _xyxy_to_cxcywh(others_xyxy))[1]


def _xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    low, high = boxes_xyxy.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_distances(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """The two box losses of corresponding boxes: L1 distance over the four values, and 1 - GIoU.

    Args:
        boxes_cxcywh: (…, 4).
        targets_cxcywh: (…, 4), broadcast against `boxes_cxcywh`.

    Returns:
        (…) each, one value per pair. Two boxes without area have an IoU of 0, not NaN.

    Paper: app. A.2. Original: models/detr.py, `loss_boxes`; util/box_ops.py. Differs from the original: pairs instead
    of all against all, and no assertions on the boxes, because the training loop stops when a model diverges, and
    explains why.
    """
    if torch.is_grad_enabled() and boxes_cxcywh.requires_grad and not targets_cxcywh.requires_grad:
        boxes_cxcywh, targets_cxcywh = torch.broadcast_tensors(boxes_cxcywh, targets_cxcywh)
        l1, giou_loss = _BoxDistances.apply(boxes_cxcywh, targets_cxcywh)
        return l1, giou_loss
    comparison = BoxComparison.of(boxes_cxcywh, targets_cxcywh)
    return comparison.l1, comparison.giou_loss


class _BoxDistances(torch.autograd.Function):
    """`box_distances` with a gradient with respect to the boxes only."""

    @staticmethod
    def forward(ctx: Any, boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
        comparison = BoxComparison.of(boxes_cxcywh, targets_cxcywh)
        ctx.save_for_backward(*comparison)
        return comparison.l1, comparison.giou_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_l1: Tensor, by_giou_loss: Tensor) -> tuple[Tensor, None]:
        return BoxComparison(*ctx.saved_tensors).gradient(by_l1, by_giou_loss), None


class BoxComparison(NamedTuple):
    """`box_distances`, and what their gradient needs.

    boxes and targets are (…, 4), the losses and areas (…), and all others (…, 2). `overlap` is 0 where there is a gap.
    `empty_share` is the part of the hull that neither box covers.
    """

    l1: Tensor
    giou_loss: Tensor
    boxes: Tensor
    targets: Tensor
    low: Tensor
    high: Tensor
    target_low: Tensor
    target_high: Tensor
    overlap: Tensor
    hull_size: Tensor
    union: Tensor
    hull: Tensor
    iou: Tensor
    empty_share: Tensor

    @classmethod
    def of(cls, boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> "BoxComparison":
        """Compares (…, 4) boxes with (…, 4) targets."""
        centre, size = boxes_cxcywh.chunk(2, dim=-1)
        target_centre, target_size = targets_cxcywh.chunk(2, dim=-1)
        low, high = _corners(centre, size)
        target_low, target_high = _corners(target_centre, target_size)
        overlap = torch.minimum(high, target_high) - torch.maximum(low, target_low)
        hull_size = size + target_size - overlap
        overlap = overlap.clamp(min=0)
        intersection, hull = _area(overlap), _area(hull_size)
        union = _area(size) + _area(target_size) - intersection
        empty = hull - union
        union, hull = union.clamp(min=_SMALLEST_AREA), hull.clamp(min=_SMALLEST_AREA)
        iou, empty_share = intersection / union, empty / hull
        corners = low, high, target_low, target_high
        return cls(
            (boxes_cxcywh - targets_cxcywh).abs().sum(-1),
            1 - (iou - empty_share),
            boxes_cxcywh,
            targets_cxcywh,
            *corners,
            overlap,
            hull_size,
            union,
            hull,
            iou,
            empty_share,
        )

    def gradient(self, by_l1: Tensor, by_giou_loss: Tensor) -> Tensor:
        """The gradient with respect to the boxes (…, 4), given those with respect to `l1` and `giou_loss`.

        It takes a third of the operations that autograd records. As with `torch.minimum`, an edge of a box in exactly
        the place of the target's gets half the gradient.
        """
        # `by_x` is the gradient with respect to x, `less_x` its negative. The loss is 2 - intersection / union -
        # union / hull; the union is both areas less the intersection, a side of the hull both sides less the overlap.
        per_union, per_hull = by_giou_loss / self.union, by_giou_loss / self.hull
        less_area = torch.addcmul(per_hull, per_union, self.iou, value=-1)
        by_hull = torch.addcmul(per_hull, per_hull, self.empty_share, value=-1)
        by_hull_size = by_hull[..., None] * self.hull_size.flip(-1)
        less_overlap = (per_union - less_area)[..., None] * self.overlap.flip(-1)
        less_overlap = torch.addcmul(by_hull_size, less_overlap, self.overlap.sign())
        # 1 where the edge of the box bounds the overlap, -1 where that of the target does, 0 where both do
        low_bounds, high_bounds = (self.low - self.target_low).sign_(), (self.target_high - self.high).sign_()

        by_boxes = (self.boxes - self.targets).sign_() * by_l1[..., None]
        by_centre, by_size = by_boxes.chunk(2, dim=-1)
        by_centre.add_(less_overlap * (low_bounds - high_bounds), alpha=0.5)
        by_size.add_(torch.addcmul(by_hull_size, less_area[..., None], self.boxes[..., 2:].flip(-1), value=-1))
        by_size.sub_(torch.addcmul(less_overlap, less_overlap, low_bounds + high_bounds, value=0.5), alpha=0.5)
        return by_boxes


def _area(size: Tensor) -> Tensor:
    """(…, 2) → (…). Not `prod`, whose gradient synchronises with the device to look for zeros."""
    width, height = size.unbind(-1)
    return width * height


def plane_distances(planes: Tensor, target_planes: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance and GIoU of corresponding boxes, given as (4, …) cxcywh; the first are overwritten.

    Equal to `box_distances` up to rounding, without a gradient, and with fewer passes over memory, which are what
    costs of many pairs take.

    Along an axis, |low - low'| + |high - high'| is the greater of 2·|centre - centre'| and |size - size'|, because
    |a + b| + |a - b| = 2·max(|a|, |b|). Twice the hull is that much longer than both sizes, twice the overlap shorter.
    """
    sizes, target_sizes = planes[2:], target_planes[2:]
    areas = torch.addcmul(4 * _area_of_planes(target_sizes), *sizes, value=4)  # of both boxes, four times as all areas
    sizes = sizes + target_sizes
    centre_difference, size_difference = planes.sub_(target_planes).abs_().chunk(2)
    l1_x, l1_y = centre_difference + size_difference
    gaps = torch.maximum(centre_difference.mul_(2), size_difference)
    overlap = (sizes - gaps).clamp_(min=0)
    hull = sizes.add_(gaps)
    intersection_area, hull_area = _area_of_planes(overlap), _area_of_planes(hull)
    union_area = areas.sub_(intersection_area)
    iou = intersection_area.div_(union_area.clamp(min=_SMALLEST_AREA))
    giou = iou.add_(union_area.sub_(hull_area).div_(hull_area.clamp_(min=_SMALLEST_AREA)))
    return l1_x.add_(l1_y), giou


def _area_of_planes(sizes: Tensor) -> Tensor:
    """(2, …) → (…)."""
    return sizes[0] * sizes[1]
