import math

import numpy as np
import pytest
import torch

from modeling_detr.analysis import duplicate_cost
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
NEAR = (12.0, 10.0, 52.0, 50.0)  # IoU .9 with BOX
LOOSE = (10.0, 10.0, 50.0, 26.0)  # IoU .4


def cost(objects, detections, num_images=1, masks=False):
    """Objects are (image, label, box[, crowd]), detections (image, label, box, score)."""
    boxes = np.array([entry[2] for entry in objects], np.float64).reshape(-1, 4)
    index = DetectionIndex(
        name="hand-made",
        images=tuple(ImageRecord(number, f"{number}.png", 100, 100) for number in range(num_images)),
        categories=(Category(0, "cat"), Category(1, "dog")),
        annotations=AnnotationTable(
            image_index=np.array([entry[0] for entry in objects], np.int64),
            label=np.array([entry[1] for entry in objects], np.int64),
            boxes_xyxy=boxes,
            area=(boxes[:, 2:] - boxes[:, :2]).prod(-1),
            is_crowd=np.array([len(entry) > 3 for entry in objects], np.bool_),
        ),
    )
    evaluator = CocoEvaluator(index)
    for image in range(num_images):
        rows = [entry for entry in detections if entry[0] == image]
        result = {
            "scores": torch.tensor([row[3] for row in rows]),
            "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
            "boxes": torch.tensor([row[2] for row in rows]).reshape(-1, 4),
        }
        evaluator.update([image], [result])
    found = duplicate_cost(evaluator.coco_eval())
    assert found.ap50 == pytest.approx(evaluator.compute().ap50, nan_ok=True)
    return found


def test_a_second_detection_of_an_object_is_a_duplicate():
    found = cost([(0, 0, BOX), (0, 0, FAR)], [(0, 0, BOX, 0.9), (0, 0, NEAR, 0.8), (0, 0, FAR, 0.7)])
    assert (found.detections, found.duplicates) == (3, 1)
    # precision 1 up to recall .5 (51 of 101 points), then 2/3
    assert found.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found.ap50_without == pytest.approx(1)
    assert found.points == pytest.approx(100 * 50 / 3 / 101)


def test_the_better_scored_detection_keeps_the_object():
    found = cost([(0, 0, BOX)], [(0, 0, BOX, 0.6), (0, 0, NEAR, 0.8)])  # the exact box comes second
    assert (found.duplicates, found.points) == (1, 0)


@pytest.mark.parametrize(
    "other",
    [
        (0, 1, NEAR, 0.95),  # another class
        (0, 0, LOOSE, 0.95),  # badly placed
        (0, 0, FAR, 0.95),  # nothing there
        (1, 0, BOX, 0.95),  # in another image
    ],
)
def test_other_false_positives_are_no_duplicates(other):
    found = cost([(0, 0, BOX), (0, 1, FAR)], [(0, 0, BOX, 0.9), other], num_images=2)
    assert (found.duplicates, found.points) == (0, 0)


def test_two_objects_close_together_have_a_detection_each():
    found = cost([(0, 0, BOX), (0, 0, NEAR)], [(0, 0, BOX, 0.9), (0, 0, NEAR, 0.8)])
    assert (found.duplicates, found.ap50) == (0, pytest.approx(1))


def test_many_duplicates_of_one_object_each_count():
    found = cost([(0, 0, BOX)], [(0, 0, NEAR, score) for score in (0.9, 0.8, 0.7, 0.6)])
    assert (found.detections, found.duplicates) == (4, 3)


def test_detections_in_a_crowd_region_are_no_duplicates():
    found = cost([(0, 0, BOX), (0, 0, FAR, "crowd")], [(0, 0, BOX, 0.9), (0, 0, FAR, 0.8), (0, 0, FAR, 0.7)])
    assert (found.duplicates, found.ap50) == (0, pytest.approx(1))


def test_nothing_to_find_or_nothing_found():
    assert cost([(0, 0, BOX)], []).as_dict() == {
        "detections": 0,
        "duplicates": 0,
        "ap50": 0.0,
        "ap50_without": 0.0,
        "points": 0.0,
    }
    empty = cost([], [(0, 0, BOX, 0.9)])
    assert math.isnan(empty.points)
    assert empty.as_dict()["points"] is None


def test_classes_count_alike_in_the_mean():
    objects = [(0, 0, BOX), (0, 0, FAR), (0, 1, BOX)]
    detections = [(0, 0, BOX, 0.9), (0, 0, NEAR, 0.8), (0, 0, FAR, 0.7), (0, 1, BOX, 0.9)]
    assert cost(objects, detections).points == pytest.approx(100 * 50 / 3 / 101 / 2)
