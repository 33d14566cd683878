import json
import math

import numpy as np
import pytest

from modeling_detr.analysis.reliability import calibration_error, fit_calibration, reliability
from modeling_detr.saved_thresholds import Calibration


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def test_scores_that_are_the_share_of_hits_have_no_error():
    scores = np.full(10, 0.7)
    assert calibration_error(scores, np.arange(10) < 7) == pytest.approx(0)
    assert calibration_error(scores, np.arange(10) < 2) == pytest.approx(0.5)


def test_the_error_is_that_of_hotcoco(random_evidence):
    evidence = random_evidence(0)
    scores, is_hit = evidence.matches.score, evidence.matches.annotation >= 0
    assert reliability(evidence).ece == pytest.approx(calibration_error(scores, is_hit), abs=1e-12)


def test_a_calibration_that_was_applied_is_found_again():
    generator = np.random.default_rng(0)
    shares = generator.uniform(0.02, 0.98, 20_000)
    is_hit = generator.random(len(shares)) < shares
    distorted = Calibration(temperature=0.5, shift=1.0)(shares)
    found = fit_calibration(distorted, is_hit)
    # log-odds z became 2 z + 1, so that z = (2 z + 1) / 2 - .5
    assert found.temperature == pytest.approx(2, abs=0.1)
    assert found.shift == pytest.approx(-0.5, abs=0.05)
    assert calibration_error(found(distorted), is_hit) < 0.02 < calibration_error(distorted, is_hit)


def test_calibration_keeps_the_order_of_scores():
    scores = np.linspace(0, 1, 101)
    assert (np.diff(Calibration(3.0, -2.0)(scores)) >= 0).all()


@pytest.mark.parametrize("detections", [[], [(0, 0, BOX, 0.9)], [(0, 0, FAR, 0.9)]])
def test_nothing_to_fit(hand_made, detections):
    found = reliability(hand_made([(0, 0, BOX)], detections))
    assert found.calibration == Calibration()
    assert math.isnan(found.ece) == (not detections)
    json.dumps(found.as_dict(), allow_nan=False)
