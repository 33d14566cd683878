import torch
from torchvision.ops import generalized_box_iou

from modeling_detr.boxes_detr import box_distances, boxes_cxcywh_to_xyxy, generalized_iou, plane_distances


def random_boxes(*shape):
    """Random cxcywh boxes inside the image."""
    size = torch.rand(*shape, 2) * 0.4 + 0.05
    return torch.cat([size / 2 + torch.rand(*shape, 2) * (1 - size), size], dim=-1)


def test_pairwise_giou_is_the_diagonal_of_torchvisions():
    first, second = boxes_cxcywh_to_xyxy(random_boxes(50)), boxes_cxcywh_to_xyxy(random_boxes(50))
    torch.testing.assert_close(generalized_iou(first, second), generalized_box_iou(first, second).diag())


def test_giou_and_its_gradient_are_those_of_corners_in_any_arrangement():
    """Boxes beside each other, that overlap, and one inside the other: in x, in y and in both."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.2]], dtype=torch.float64).repeat(9, 1).requires_grad_()
    offsets = torch.cartesian_prod(torch.tensor([0.01, 0.15, 0.45]), torch.tensor([0.02, 0.12, 0.3])).double()
    targets = boxes.detach() * torch.tensor([1, 1, 0.6, 1.3]) + torch.cat([offsets, torch.zeros(9, 2)], dim=1)
    _, giou_loss = box_distances(boxes, targets)
    expected = 1 - generalized_box_iou(boxes_cxcywh_to_xyxy(boxes), boxes_cxcywh_to_xyxy(targets)).diag()
    torch.testing.assert_close(giou_loss, expected)
    gradients = [torch.autograd.grad(loss.sum(), boxes)[0] for loss in (giou_loss, expected)]
    torch.testing.assert_close(*gradients)


def plain_box_distances(boxes, targets):
    """From corners, with the gradient that autograd records."""
    edges = [torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], dim=-1) for b in (boxes, targets)]
    overlap = torch.minimum(edges[0], edges[1])[..., 2:] - torch.maximum(edges[0], edges[1])[..., :2]
    hull = (boxes[..., 2:] + targets[..., 2:] - overlap).prod(-1)
    intersection = overlap.clamp(min=0).prod(-1)
    union = boxes[..., 2:].prod(-1) + targets[..., 2:].prod(-1) - intersection
    return (boxes - targets).abs().sum(-1), 1 - intersection / union + (hull - union) / hull


def test_edges_in_the_same_place_get_half_the_gradient():
    """As in the original; these are all targets that share edges with a box or are equal to it."""
    targets = torch.tensor([[0.5, 0.5, 0.5, 0.25]]).repeat(9, 1).double()
    sides = torch.tensor([-0.125, 0.0, 0.25]).double()  # are exact, so that edges coincide
    change = torch.cartesian_prod(sides, sides)
    boxes = (targets + torch.cat([change / 2, change], dim=1)).requires_grad_()
    gradients = [
        torch.autograd.grad(
            [loss.sum() for loss in losses], boxes, [torch.tensor(2.0).double(), torch.tensor(3.0).double()]
        )
        for losses in (box_distances(boxes, targets), plain_box_distances(boxes, targets))
    ]
    torch.testing.assert_close(*gradients)


def test_targets_are_broadcast_and_may_need_a_gradient():
    boxes, targets = random_boxes(3, 5).double().requires_grad_(), random_boxes(5).double().requires_grad_()
    for needing, others in (([boxes], targets.detach()), ([boxes, targets], targets)):
        losses = [sum(loss.square().sum() for loss in f(boxes, others)) for f in (box_distances, plain_box_distances)]
        for gradients in zip(*(torch.autograd.grad(loss, needing) for loss in losses), strict=True):
            torch.testing.assert_close(*gradients)


def test_distances_of_planes_are_those_of_boxes():
    boxes, targets = random_boxes(2, 50), random_boxes(50)
    targets[:3] = boxes[0, :3]
    targets[3:5, 2:] = boxes[1, 4, 2:] = 0  # without an area
    l1, giou_loss = box_distances(boxes, targets)
    planes_l1, giou = plane_distances(boxes.movedim(-1, 0).clone(), targets.T[:, None])
    torch.testing.assert_close(planes_l1, l1)
    torch.testing.assert_close(1 - giou, giou_loss, rtol=1e-5, atol=1e-5)


def test_boxes_of_zero_area_have_a_finite_loss_and_gradient():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    giou = generalized_iou(point, point.detach())
    giou.sum().backward()
    assert torch.isfinite(giou).all()
    assert torch.isfinite(point.grad).all()
