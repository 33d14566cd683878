import pytest

from modeling_detr.analysis.operating_points import operating_points
from modeling_detr.pages import Page


BOX, FAR, THIRD = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (60.0, 5.0, 95.0, 40.0)
OBJECTS = [(0, 0, BOX), (0, 0, FAR)]
DETECTIONS = [(0, 0, BOX, 0.9), (0, 0, THIRD, 0.8), (0, 0, FAR, 0.6), (0, 1, THIRD, 0.7)]


def test_the_threshold_with_the_best_f1(hand_made):
    (name, found), *others = operating_points(hand_made(OBJECTS, DETECTIONS)).thresholds.items()
    assert (name, others) == ("cat", [])  # there is no dog
    assert (found.threshold, found.num_objects) == (pytest.approx(0.6), 2)
    assert (found.precision, found.recall, found.f1) == pytest.approx((2 / 3, 1, 0.8))


def test_the_threshold_with_a_precision(hand_made):
    points = operating_points(hand_made(OBJECTS, DETECTIONS), at_precision=0.9)
    assert points.thresholds["cat"].threshold == pytest.approx(0.9)
    assert points.criterion == "precision 0.9"


def test_a_precision_that_is_never_reached_has_no_threshold(hand_made):
    points = operating_points(hand_made([(0, 0, BOX)], [(0, 0, FAR, 0.9), (0, 0, BOX, 0.8)]), at_precision=0.9)
    assert points.thresholds == {}
    assert points.tables() == ()


@pytest.mark.parametrize("num_classes", [1, 4, 14])
def test_the_page_has_a_curve_for_each_class_up_to_a_number(hand_made, num_classes):
    names = [f"class {number}" for number in range(num_classes)]
    objects = [(number, number, BOX) for number in range(num_classes)]
    detections = [(number, number, BOX, 0.9) for number in range(num_classes)]
    evidence = hand_made(objects, detections, num_images=num_classes, names=names)
    html = Page("points", operating_points(evidence).sections()).to_html()
    assert html.count('class="chart"') == 1 + min(num_classes, 12)
