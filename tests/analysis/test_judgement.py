from collections import Counter

import numpy as np
import pytest

from modeling_detr.analysis.judgement import KINDS, judge


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
NEAR = (12.0, 10.0, 52.0, 50.0)  # IoU .9 with BOX
LOOSE = (10.0, 10.0, 50.0, 26.0)  # IoU .4


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        ((0, 0, NEAR, 0.5), "hit"),
        ((0, 1, NEAR, 0.5), "class"),
        ((0, 0, LOOSE, 0.5), "location"),
        ((0, 1, LOOSE, 0.5), "both"),
        ((0, 0, FAR, 0.5), "background"),
    ],
)
def test_a_detection_is_a_hit_or_an_error_of_one_kind(hand_made, detection, kind):
    judgement = judge(hand_made([(0, 0, BOX)], [detection]))
    assert judgement.detections.tolist() == [kind]
    expected = {"hit": "found", "class": "class", "location": "location"}.get(kind, "missed")
    assert judgement.objects.tolist() == [expected]


def test_a_second_detection_of_an_object_is_a_duplicate(hand_made):
    judgement = judge(hand_made([(0, 0, BOX)], [(0, 0, BOX, 0.6), (0, 0, NEAR, 0.8)]))
    assert judgement.detections.tolist() == ["duplicate", "hit"]  # the better score finds the object
    assert judgement.explained_by.tolist() == [0, 0]


def test_detections_with_a_low_score_do_not_count(hand_made):
    judgement = judge(hand_made([(0, 0, BOX)], [(0, 0, BOX, 0.4), (0, 0, FAR, 0.6)]), min_score=0.5)
    assert judgement.detections.tolist() == ["", "background"]
    assert judgement.objects.tolist() == ["missed"]


def test_crowd_regions_are_neither_missed_nor_wrong(hand_made):
    judgement = judge(hand_made([(0, 0, FAR, "crowd")], [(0, 0, FAR, 0.9)]))
    assert judgement.detections.tolist() == [""]
    assert judgement.objects.tolist() == [""]


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_of_each_kind_are_those_of_hotcoco(random_evidence, seed):
    evidence = random_evidence(seed)
    judgement = judge(evidence)
    counts = Counter(judgement.detections.tolist()) | {"missed": int(np.sum(judgement.objects == "missed"))}
    expected = evidence.evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)["counts"]
    assert {kind: counts[kind] for kind in KINDS} == {kind: expected[entry.hotcoco] for kind, entry in KINDS.items()}
