"""Hits, misses and false positives per image and class, and the thresholds that follow from them."""

import numpy as np
import pytest
import torch

from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.matches import PrecisionRecall
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


BOXES = {"left": [0.0, 0, 10, 10], "right": [20.0, 0, 30, 10], "below": [0.0, 20, 10, 30]}


def index_of(objects):
    """Objects as (image, label, place, is_crowd); three images, classes cat, dog and hen."""
    images, labels, places, crowds = zip(*objects, strict=True)
    boxes = np.array([BOXES[place] for place in places])
    return DetectionIndex(
        name="pets",
        images=tuple(ImageRecord(f"id {number}", f"{number}.jpg", 40, 40) for number in range(3)),
        categories=(Category(1, "cat"), Category(2, "dog"), Category(3, "hen")),
        annotations=AnnotationTable(
            np.array(images), np.array(labels), boxes, np.full(len(boxes), 100.0), np.array(crowds, dtype=bool)
        ),
    )


def result(*predictions):
    """Predictions as (label, place, score)."""
    labels, places, scores = zip(*predictions, strict=True) if predictions else ((), (), ())
    boxes = torch.tensor([BOXES[place] for place in places]).reshape(-1, 4)
    return {"scores": torch.tensor(scores), "labels": torch.tensor(labels, dtype=torch.int64), "boxes": boxes}


@pytest.fixture
def matches():
    evaluator = CocoEvaluator(
        index_of([(0, 0, "left", 0), (0, 1, "right", 0), (1, 0, "left", 0), (1, 0, "below", 1), (1, 1, "right", 0)])
    )
    evaluator.update(
        [0, 1, 2],
        [
            result((0, "left", 0.9), (1, "right", 0.8), (0, "below", 0.2)),
            result((0, "below", 0.95), (0, "right", 0.7), (0, "left", 0.6)),  # the first lies in a crowd region
            result((1, "left", 0.4)),
        ],
    )
    return evaluator.matches()


def test_every_prediction_has_the_row_of_its_object(matches):
    rows = zip(matches.image_index, matches.label, np.round(matches.score, 2), matches.annotation, strict=True)
    assert sorted(rows) == [
        (0, 0, 0.2, -1),
        (0, 0, 0.9, 0),
        (0, 1, 0.8, 1),
        (1, 0, 0.6, 2),
        (1, 0, 0.7, -1),
        (2, 1, 0.4, -1),
    ]
    assert matches.object_label.tolist() == [0, 1, 0, 1]  # without the crowd region


def test_a_threshold_has_the_best_f1_or_a_precision(matches):
    curves = matches.curves()
    best = curves["cat"].best_f1()
    assert (best.threshold, best.precision, best.recall) == pytest.approx((0.6, 2 / 3, 1))
    assert best.f1 == pytest.approx(0.8)
    precise = curves["cat"].at_precision(0.9)
    assert (precise.threshold, precise.precision, precise.recall) == pytest.approx((0.9, 1, 0.5))
    assert curves["dog"].best_f1().threshold == pytest.approx(0.8)
    assert curves["hen"].best_f1() is curves["hen"].at_precision(0.5) is None


def test_predictions_with_the_same_score_share_a_threshold():
    evaluator = CocoEvaluator(index_of([(0, 0, "left", 0)]))
    evaluator.update([0], [result((0, "left", 0.5), (0, "right", 0.5))])
    curve = evaluator.matches().curves()["cat"]
    assert (curve.thresholds.tolist(), curve.precision.tolist(), curve.recall.tolist()) == ([0.5], [0.5], [1.0])


def test_the_worst_images_come_first(matches):
    worst = matches.worst_images(2)  # with the thresholds .6 and .8
    assert worst[0] == (1, 1, 1, 1)  # image, hits, misses, false positives
    assert [image.f1 for image in worst] == [0.5, 1]
    assert matches.worst_images(1, {"dog": 0.3})[0] == (2, 0, 0, 1)
    assert [image.image_index for image in matches.per_image()] == [0, 1, 2]


def test_without_predictions_or_objects_there_are_no_errors_but_the_missed_objects():
    index = index_of([(0, 0, "left", 0)])
    assert CocoEvaluator(index).matches().per_image() == [(0, 0, 1, 0), (1, 0, 0, 0), (2, 0, 0, 0)]
    nothing = DetectionIndex("empty", index.images, index.categories, index.annotations.take(np.zeros(1, dtype=bool)))
    evaluator = CocoEvaluator(nothing)
    evaluator.update([0], [result((0, "left", 0.9))])
    assert np.isnan(evaluator.matches().curves()["cat"].recall).all()
    assert evaluator.matches().curves()["cat"].best_f1() is None
    assert isinstance(evaluator.matches().curves()["dog"], PrecisionRecall)
