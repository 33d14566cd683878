import math

import pytest

from modeling_detr.benchmarks.speed.growth import by_work, growth_curves
from modeling_detr.benchmarks.speed.growth_plot import plot_growth
from modeling_detr.benchmarks.speed.measurement import MEMORY, TIME, Growth, Measurement, SectionResult
from modeling_detr.benchmarks.speed.report import growth_tables, summary_table


def series(quantity, costs, expected=1, work="loss"):
    """Measurements of 10, 100, … objects, with two rounds each."""
    return [
        Measurement(
            f"{work}, {10**place}",
            quantity,
            {"modeling_detr": [cost, 1.5 * cost]},
            growth=Growth(work, "objects", 10**place, expected, "pairs"),
        )
        for place, cost in enumerate(costs, start=1)
    ]


def curves_of(*measurements):
    return growth_curves([SectionResult("growth", [point for points in measurements for point in points])])


def test_the_exponent_is_the_slope_between_the_largest_sizes():
    (curve,) = curves_of(series(TIME, [5.0, 6.0, 600.0], expected=2))
    assert curve.sizes == [10, 100, 1000]
    assert curve.exponent == pytest.approx(2)
    assert not curve.exceeds


def test_growth_beyond_what_is_expected_is_marked():
    (curve,) = curves_of(series(TIME, [1.0, 100.0]))
    assert curve.exceeds
    (curve,) = curves_of(series(TIME, [1.0, 20.0]))
    assert not curve.exceeds


def test_memory_below_the_resolution_has_no_exponent():
    (curve,) = curves_of(series(MEMORY, [0.0, 0.0]))
    assert math.isnan(curve.exponent)
    assert not curve.exceeds
    assert curve.as_dict()["exponent"] is None


def test_a_single_size_is_no_curve():
    assert curves_of(series(TIME, [1.0])) == []


def test_the_table_has_time_and_memory_in_a_row():
    curves = curves_of(series(TIME, [0.001, 0.1]), series(MEMORY, [1e6, 1e7]))
    assert [len(group) for group in by_work(curves)] == [2]
    table, reasons = growth_tables(curves)
    assert table.splitlines()[2] == (
        "| loss | objects | 10 · 100 | 1.25 to 125 ms | 2.00 (more than expected) | 1.25 to 12.5 MB | 1.00 | "
        "time 1, memory 1 |"
    )
    assert reasons == "- loss, objects: pairs"


def test_measurements_of_a_series_are_not_in_the_summary():
    assert len(summary_table([SectionResult("growth", series(TIME, [1.0, 2.0]))]).splitlines()) == 2


def test_each_piece_of_work_has_a_panel(tmp_path):
    curves = curves_of(series(TIME, [1.0, 20.0]), series(MEMORY, [0.0, 0.0]), series(TIME, [1.0, 2.0], work="plan"))
    assert plot_growth(curves, tmp_path / "growth.png").stat().st_size > 5_000
    assert plot_growth([], tmp_path / "none.png") is None
