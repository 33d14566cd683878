import math
from types import SimpleNamespace

import pytest

from modeling_detr.analysis.intervals import default_samples, difference, intervals


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def test_the_value_is_the_metric_and_lies_in_its_interval(random_evidence):
    evidence = random_evidence(0)
    found, metrics = intervals(evidence, samples=50), evidence.evaluator.compute()
    for interval, value in ((found.ap, metrics.ap), (found.ap50, metrics.ap50), (found.ap75, metrics.ap75)):
        assert interval.value == pytest.approx(value, abs=1e-12)
        assert interval.low < interval.value < interval.high


def test_images_that_are_all_alike_leave_no_doubt(hand_made):
    objects = [(number, 0, BOX) for number in range(5)]
    found = intervals(hand_made(objects, [(number, 0, BOX, 0.9) for number in range(5)], num_images=5), samples=20)
    assert (found.ap.low, found.ap.value, found.ap.high) == (1, 1, 1)


def test_the_same_seed_draws_the_same_images(random_evidence):
    evidence = random_evidence(1)
    assert intervals(evidence, 20, seed=3) == intervals(evidence, 20, seed=3) != intervals(evidence, 20, seed=40)


def test_a_model_does_not_differ_from_itself(random_evidence):
    evaluation = random_evidence(2).evaluation
    found = difference(evaluation, evaluation, samples=20)["ap"]
    assert (found.low, found.value, found.high) == (0, 0, 0)


def test_nothing_to_find_has_no_interval(hand_made):
    found = intervals(hand_made([], [(0, 0, BOX, 0.9)]))
    assert math.isnan(found.ap.value)
    assert found.tables() == ()


@pytest.mark.parametrize(("detections", "draws"), [(0, 200), (250_000, 200), (400_000, 125), (10**6, 100)])
def test_many_detections_are_drawn_less_often(detections, draws):
    evidence = SimpleNamespace(scoring=SimpleNamespace(detections=SimpleNamespace(labels=range(detections))))
    assert default_samples(evidence) == draws
