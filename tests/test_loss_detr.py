import logging
import subprocess
import sys

import pytest
import torch
from torchvision.ops import generalized_box_iou

from modeling_detr.boxes_detr import boxes_cxcywh_to_xyxy
from modeling_detr.loss_detr import HungarianMatcher, MaskCriterion, SetCriterion
from modeling_detr.structures_detr import Assignment


def random_boxes(*shape):
    """Random cxcywh boxes inside the image."""
    size = torch.rand(*shape, 2) * 0.4 + 0.05
    return torch.cat([size / 2 + torch.rand(*shape, 2) * (1 - size), size], dim=-1)


def batch(counts, num_layers=3, num_queries=9, num_classes=5, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(num_layers, len(counts), num_queries, num_classes + 1, dtype=torch.float64)
    boxes = random_boxes(num_layers, len(counts), num_queries).double()
    labels = [
        {"class_labels": torch.randint(0, num_classes, (count,)), "boxes": random_boxes(count).double()}
        for count in counts
    ]
    return logits.requires_grad_(), boxes.requires_grad_(), labels


def test_matching_all_layers_at_once_equals_matching_each():
    logits, boxes, labels = batch([3, 0, 5])
    matcher = HungarianMatcher()
    for layer, matches in enumerate(matcher.match_layers(logits.log_softmax(-1), boxes, labels)):
        for together, alone in zip(matches, matcher(logits[layer], boxes[layer], labels), strict=True):
            assert together.queries.tolist() == alone.queries.tolist()
            assert together.targets.tolist() == alone.targets.tolist()


def test_costs_do_not_depend_on_the_other_images_of_the_batch():
    """Bit for bit: a step that is split over processes has the same assignment."""
    logits, boxes, labels = batch([3, 0, 60, 1], num_queries=100)
    logits, boxes = logits.detach().float(), boxes.detach().float()
    labels = [{**label, "boxes": label["boxes"].float()} for label in labels]
    matcher = HungarianMatcher()
    together = matcher.costs(logits, boxes, labels)
    alone = [matcher.costs(logits[:, i : i + 1], boxes[:, i : i + 1], labels[i : i + 1]) for i in range(4)]
    assert torch.equal(torch.cat(alone, dim=1), together)


def test_no_object_counts_only_if_it_is_likelier_than_every_class():
    logits = torch.zeros(1, 1, 3, 3)
    logits[..., 0, 2] = 1.0  # no object; of the other two queries, one is a tie
    logits[..., 2, 0] = 1.0
    output = SetCriterion(HungarianMatcher())(logits, random_boxes(1, 1, 3), batch([0])[2])
    assert output.loss_dict["cardinality_error"] == 2


def test_costs_are_those_of_the_paper_up_to_a_constant():
    logits, boxes, labels = batch([3, 0, 5])
    matcher = HungarianMatcher(class_cost=1.5, bbox_cost=4.0, giou_cost=3.0)
    costs = matcher.costs(logits.detach().log_softmax(-1), boxes.detach(), labels).split([3, 0, 5], dim=1)
    for image, label in enumerate(labels):
        probability = logits[:, image].softmax(-1)[..., label["class_labels"]]  # (L, Q, N)
        l1 = torch.cdist(boxes[:, image], label["boxes"], p=1)
        corners = boxes_cxcywh_to_xyxy(boxes[:, image]), boxes_cxcywh_to_xyxy(label["boxes"])
        giou = torch.stack([generalized_box_iou(layer, corners[1]) for layer in corners[0]])
        expected = -1.5 * probability + 4 * l1 - 3 * giou
        torch.testing.assert_close(costs[image], expected.transpose(1, 2).detach())


def test_loss_and_gradients_are_those_of_the_plain_formulas():
    logits, boxes, labels = batch([3, 0, 5])
    criterion = SetCriterion(HungarianMatcher(), 0.3, 4.0, 3.0)
    output = criterion(logits, boxes, labels)
    expected = 0
    for layer, assignments in enumerate(output.assignments):
        classes = torch.full((3, 9), 5)
        for image, (match, label) in enumerate(zip(assignments, labels, strict=True)):
            classes[image, match.queries] = label["class_labels"][match.targets]
            matched, targets = boxes[layer, image, match.queries], label["boxes"][match.targets]
            corners = boxes_cxcywh_to_xyxy(matched), boxes_cxcywh_to_xyxy(targets)
            giou_losses = 1 - generalized_box_iou(*corners).diag()
            expected = expected + (4 * (matched - targets).abs().sum() + 3 * giou_losses.sum()) / 8
        weight = torch.tensor([1.0] * 5 + [0.3]).double()
        expected = expected + torch.nn.functional.cross_entropy(logits[layer].flatten(0, 1), classes.flatten(), weight)
    torch.testing.assert_close(output.loss, expected)
    for gradient, plain in zip(
        *(torch.autograd.grad(x, [logits, boxes]) for x in (output.loss, expected)), strict=True
    ):
        torch.testing.assert_close(gradient, plain)


def test_perfect_predictions_match_themselves():
    _, _, labels = batch([4])
    boxes = labels[0]["boxes"].flip(0)[None].float()
    logits = torch.nn.functional.one_hot(labels[0]["class_labels"].flip(0), 6)[None] * 20.0
    (match,) = HungarianMatcher()(logits, boxes, labels)
    assert match.queries.tolist() == [0, 1, 2, 3]
    assert match.targets.tolist() == [3, 2, 1, 0]


def test_with_more_boxes_than_queries_the_best_are_matched_and_the_rest_are_reported(caplog):
    logits, boxes, labels = batch([14, 2], num_queries=9)
    criterion = SetCriterion(HungarianMatcher())
    with caplog.at_level(logging.WARNING):
        output = criterion(logits, boxes, labels)
    assert "The loss ignores 5 objects of this batch" in caplog.text
    caplog.clear()
    criterion(logits, boxes, labels)
    assert not caplog.text  # reported once, not in every batch
    first, second = output.assignments[-1]
    assert sorted(first.queries.tolist()) == list(range(9))
    assert len(set(first.targets.tolist())) == 9
    assert len(second.targets) == 2
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_predictions_do_not_crash_the_matcher(value):
    logits, boxes, labels = batch([3, 2])
    logits = logits.detach().clone()
    logits[:, 0, 4] = value
    output = SetCriterion(HungarianMatcher())(logits, boxes.detach(), labels)
    assert not torch.isfinite(output.loss)


def test_images_without_boxes_have_a_class_loss_and_gradients():
    logits, boxes, labels = batch([0, 0])
    output = SetCriterion(HungarianMatcher())(logits, boxes, labels)
    output.loss.backward()
    assert output.loss_dict["loss_bbox"] == 0
    assert output.loss_dict["class_error"] == 100
    assert logits.grad.abs().sum() > 0
    assert torch.isfinite(boxes.grad).all()


def test_with_the_steps_normalisers_micro_batches_add_up_to_the_whole_batch():
    criterion = SetCriterion(HungarianMatcher())
    counts = [3, 0, 6, 1]
    logits, boxes, labels = batch(counts)
    whole = criterion(logits, boxes, labels).loss
    whole_gradient = torch.autograd.grad(whole, [logits, boxes])
    normalisers = {"num_boxes": sum(counts), "class_weight_sum": criterion.class_weight_sum(counts, 9)}
    parts = sum(
        criterion(logits[:, part], boxes[:, part], labels[part], **normalisers).loss
        for part in (slice(0, 2), slice(2, 4))
    )
    torch.testing.assert_close(parts, whole)
    for part, total in zip(torch.autograd.grad(parts, [logits, boxes]), whole_gradient, strict=True):
        torch.testing.assert_close(part, total)
    tensors = {name: torch.tensor(value) for name, value in normalisers.items()}  # as on a GPU
    torch.testing.assert_close(criterion(logits, boxes, labels, **tensors).loss, whole)


def test_class_loss_is_the_weighted_mean():
    logits, boxes, labels = batch([2], num_layers=1)
    criterion = SetCriterion(HungarianMatcher(), eos_coefficient=0.3)
    output = criterion(logits, boxes, labels)
    match = output.assignments[-1][0]
    classes = torch.full((9,), 5)
    classes[match.queries] = labels[0]["class_labels"][match.targets]
    weight = torch.tensor([1.0] * 5 + [0.3]).double()
    expected = torch.nn.functional.cross_entropy(logits[0, 0], classes, weight)
    torch.testing.assert_close(output.loss_dict["loss_ce"], expected.detach())


def test_masks_that_are_computed_in_parts_have_the_same_loss_and_gradient():
    torch.manual_seed(0)
    counts, size = [3, 0, 5], (24, 40)
    labels = [{"class_labels": torch.zeros(n), "masks": torch.rand(n, 19 + n, 40 - n) < 0.5} for n in counts]
    assignments = [Assignment(torch.arange(n), torch.randperm(n)) for n in counts]
    logits = torch.randn(sum(counts), 6, 10, dtype=torch.float64, requires_grad=True)
    results = []
    for max_pixels in (2**20, 1):
        loss, terms = MaskCriterion(max_pixels=max_pixels)(logits, labels, assignments, size)
        results.append((loss, *terms.values(), *torch.autograd.grad(loss, logits)))
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=1e-12, atol=0)


def test_thousands_of_objects_do_not_fill_the_memory():
    """In a process of its own, whose peak is only that of the matcher: of all costs at once it would be 1.5 GB."""
    code = """
import resource, torch
from modeling_detr.loss_detr import HungarianMatcher
logits, boxes = torch.randn(6, 4, 100, 11), torch.rand(6, 4, 100, 4)
labels = [{"class_labels": torch.zeros(5000, dtype=torch.int64), "boxes": torch.rand(5000, 4)} for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matches = HungarianMatcher().match_layers(logits.log_softmax(-1), boxes, labels)
assert len(matches) == 6 and len(matches[0][3].queries) == 100
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    megabytes = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert megabytes < 400
