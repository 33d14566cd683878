import pytest

from modeling_detr.analysis.suspected_labels import suspected_labels


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
MOVED = (35.0, 10.0, 75.0, 50.0)  # IoU .23 with BOX


@pytest.mark.parametrize(
    ("objects", "detections", "suspicion", "annotation"),
    [
        ([(0, 0, BOX)], [(0, 0, BOX, 0.9), (0, 1, FAR, 0.8)], "not annotated", -1),
        ([(0, 0, BOX), (0, 0, FAR)], [(0, 0, BOX, 0.9), (0, 1, FAR, 0.8)], "wrong class", 1),
        ([(0, 0, MOVED)], [(0, 0, BOX, 0.9)], "badly placed", 0),
        ([(0, 0, BOX), (0, 0, FAR)], [(0, 0, BOX, 0.9)], "no such object", 1),
    ],
)
def test_a_wrong_label_is_suspected(hand_made, objects, detections, suspicion, annotation):
    (found,) = suspected_labels(hand_made(objects, detections))
    assert (found.suspicion, found.annotation) == (suspicion, annotation)
    assert 0 < found.certainty <= 1


@pytest.mark.parametrize(
    "detections",
    [
        [(0, 0, BOX, 0.9)],
        [(0, 0, BOX, 0.9), (0, 1, FAR, 0.1)],  # too unsure
        [(0, 0, BOX, 0.9), (0, 0, (12.0, 10.0, 52.0, 50.0), 0.8)],  # found twice
        [(0, 0, BOX, 0.4)],
    ],
)
def test_labels_that_the_model_confirms_are_not_suspected(hand_made, detections):
    assert suspected_labels(hand_made([(0, 0, BOX)], detections)) == []


def test_a_missing_label_is_suspected_once(hand_made):
    detections = [(0, 0, BOX, 0.9), (0, 0, (12.0, 10.0, 52.0, 50.0), 0.8), (0, 1, BOX, 0.7)]
    (found,) = suspected_labels(hand_made([], detections))
    assert (found.suspicion, found.label, found.certainty) == ("not annotated", 0, pytest.approx(0.9))


def test_crowd_regions_are_not_suspected(hand_made):
    assert suspected_labels(hand_made([(0, 0, FAR, "crowd")], [(0, 0, FAR, 0.9)])) == []


def test_the_surest_come_first(random_evidence):
    certainties = [one.certainty for one in suspected_labels(random_evidence(0))]
    assert certainties == sorted(certainties, reverse=True)
