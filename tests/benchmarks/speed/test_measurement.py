import pytest

from modeling_detr.benchmarks.speed.measurement import RATE, TIME, Measurement


def test_the_ratio_is_the_median_of_the_ratios_of_rounds():
    # the machine was three times slower in the last round, which changes the medians but no ratio
    measurement = Measurement("work", TIME, {"modeling_detr": [1.0, 1.0, 3.0], "original": [2.0, 2.0, 6.0]})
    assert measurement.ratio("original") == 2.0
    assert (measurement.median("original"), measurement.minimum("original")) == (2.0, 2.0)
    assert measurement.spread("original") == 2.0


def test_a_higher_rate_is_better():
    measurement = Measurement("work", RATE, {"modeling_detr": [200.0], "original": [50.0]})
    assert measurement.ratio("original") == 4.0


def test_nothing_is_compared_without_this_package():
    assert Measurement("work", TIME, {"original": [1.0]}).ratio("original") is None


def test_json_has_every_round_in_the_unit():
    values = Measurement("work", TIME, {"modeling_detr": [0.5, 0.25], "original": [1.0, 1.0]}, {"original": 1e-6})
    contenders = values.as_dict()["contenders"]
    assert contenders["modeling_detr"]["rounds"] == [500.0, 250.0]
    assert contenders["modeling_detr"]["ratio"] is None
    assert contenders["original"]["ratio"] == pytest.approx(3.0)
    assert contenders["original"]["difference"] == 1e-6
