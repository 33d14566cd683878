from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_detr.evaluation.evaluators.queries import QueryEvaluator
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


BOXES_XYXY = [[0.0, 0, 100, 50], [100, 50, 200, 100], [0, 0, 200, 100]]  # one box a quarter, and a crowd over all
BOXES_CXCYWH = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])


def index(image_index):
    return DetectionIndex(
        name="data",
        images=tuple(ImageRecord(number, "", 100, 200) for number in range(2)),
        categories=(Category(1, "disc"), Category(5, "star")),
        annotations=AnnotationTable(
            image_index=np.array(image_index),
            label=np.array([0, 1, 0]),
            boxes_xyxy=np.array(BOXES_XYXY),
            area=np.full(3, 2000.0),
            is_crowd=np.array([False, False, True]),
        ),
    )


def logits(labels):
    """(B, Q, 3) logits of queries that predict these labels confidently; 2 is "no object"."""
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(labels), 3)


def metrics(data, image_indices, labels, boxes):
    evaluator = QueryEvaluator(data)
    for image_index, image_labels, image_boxes in zip(image_indices, labels, boxes, strict=True):
        outputs = SimpleNamespace(logits=logits([image_labels]), pred_boxes=image_boxes[None])
        evaluator.update([image_index], outputs)
    return evaluator.compute()


def test_queries_that_cover_the_objects_have_a_spread_of_one():
    found = metrics(index([0, 0, 0]), [0, 1], [[0, 1, 2, 2], [2, 2, 2, 2]], [BOXES_CXCYWH.repeat(2, 1)] * 2)
    assert found.objects == 1.0  # two on the first image, none on the second
    assert found.object_queries == 1.0
    assert found.spread == pytest.approx(1.0)


def test_queries_that_predict_the_same_box_have_no_spread():
    found = metrics(index([0, 0, 0]), [0], [[2, 2, 2]], [BOXES_CXCYWH[:1].repeat(3, 1)])
    assert (found.object_queries, found.spread) == (0.0, 0.0)


def test_images_with_one_object_do_not_count_for_the_spread():
    found = metrics(index([0, 1, 1]), [0, 1], [[0, 2], [1, 2]], [BOXES_CXCYWH[:1].repeat(2, 1)] * 2)
    assert found.spread is None
    assert found.object_queries == 1.0
