import json
import math

import pytest

from modeling_detr.analysis.error_kinds import error_kinds
from modeling_detr.pages import Page


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
NEAR = (12.0, 10.0, 52.0, 50.0)  # IoU .9 with BOX


def test_a_duplicate_costs_what_ap50_would_gain_without_it(hand_made):
    evidence = hand_made([(0, 0, BOX), (0, 0, FAR)], [(0, 0, BOX, 0.9), (0, 0, NEAR, 0.8), (0, 0, FAR, 0.7)])
    found = error_kinds(evidence)
    # precision 1 up to recall .5 (51 of 101 points), then 2/3
    assert found.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found.points["duplicate"] == pytest.approx(100 * 50 / 3 / 101)
    assert found.counts == {"class": 0, "location": 0, "both": 0, "duplicate": 1, "background": 0, "missed": 0}
    assert [*found.advice] == ["duplicate"]


@pytest.mark.parametrize("seed", range(3))
def test_ap50_is_that_of_the_evaluation(random_evidence, seed):
    evidence = random_evidence(seed)
    assert error_kinds(evidence).ap50 == pytest.approx(evidence.evaluator.compute().ap50, abs=1e-12)


def test_advice_names_what_the_errors_have_in_common(hand_made):
    objects = [(number, 0, BOX) for number in range(4)]
    found = error_kinds(hand_made(objects, [(number, 1, BOX, 0.9) for number in range(4)], num_images=4))
    assert "'cat' is taken for 'dog'" in found.advice["class"]
    small = [(number, 0, (10.0, 10.0, 20.0, 20.0)) for number in range(4)]
    found = error_kinds(hand_made(small, [], num_images=4))
    assert found.advice["missed"].startswith("100% of the missed objects are smaller than 32 x 32 pixels")


def test_nothing_to_find(hand_made):
    found = error_kinds(hand_made([], [(0, 0, BOX, 0.9)]))
    assert math.isnan(found.ap50)
    assert (found.tables(), found.sections()) == ((), [])
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["ap50"] is None


def test_names_of_classes_are_escaped_in_the_page(hand_made):
    names = ("<script>alert(1)</script>", "dog")
    evidence = hand_made([(0, 0, BOX)], [(0, 1, BOX, 0.9)], names=names)
    page = Page("errors", error_kinds(evidence).sections()).to_html()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


LARGE = (10.0, 10.0, 60.0, 60.0)


def test_a_class_is_advice_only_if_more_of_it_is_missed_than_of_others(hand_made):
    cats, dogs = [(number, 0, LARGE) for number in range(6)], [(number, 1, LARGE) for number in range(6, 11)]
    found = error_kinds(hand_made([*cats, *dogs], [(*one, 0.9) for one in [cats[0], *dogs]], num_images=11))
    assert found.advice["missed"] == "100% of the missed objects are of the class 'cat': add images of it."
    missed = error_kinds(hand_made([*cats, dogs[0]], [], num_images=11)).advice["missed"]
    assert missed.startswith("Add images that resemble")


def test_a_class_that_is_never_found_is_named_as_it_costs_no_points(hand_made):
    found = error_kinds(hand_made([(0, 0, LARGE), (1, 1, LARGE)], [(0, 0, LARGE, 0.9)], num_images=2))
    assert (found.points["missed"], found.never_found) == (0, ["dog"])
    assert "leave out: &#39;dog&#39;." in Page("errors", found.sections()).to_html()
