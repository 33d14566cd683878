import json
import statistics

import pytest

from modeling_detr.benchmarks.convergence import (
    CurvePoint,
    RunResult,
    mean_curve,
    results_json,
    results_markdown,
    spread,
)
from modeling_detr.benchmarks.convergence_plot import plot_convergence, plot_learning_curves
from modeling_detr.benchmarks.study import Study


def result(variant, seed, ap50s, minutes_each=1.0, train_images=None):
    curve = tuple(
        CurvePoint(10 * (number + 1), 80 * (number + 1), minutes_each * (number + 1), ap50 / 2, ap50)
        for number, ap50 in enumerate(ap50s)
    )
    last = curve[-1]
    best = max(ap50s)
    return RunResult(
        variant,
        seed,
        train_images,
        train_images or 80,
        last.step,
        60 * last.minutes,
        last.ap,
        last.ap50,
        best,
        {},
        2.0,
        curve,
    )


STUDY = Study("mine", "shapes", {"plain": {}, "aided": {}}, seeds=(0, 1), thresholds=(0.5,))
RESULTS = [
    result("plain", 0, [0.1, 0.3, 0.5, 0.4]),
    result("plain", 1, [0.1, 0.2, 0.3, 0.3]),
    result("aided", 0, [0.5, 0.6, 0.7, 0.8]),
    result("aided", 1, [0.2, 0.6, 0.7, 0.9]),
]


def cells(text, variant):
    row = next(line for line in text.splitlines() if line.startswith(f"| {variant} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_has_means_and_deviations_times_and_shares():
    text = results_markdown(STUDY, RESULTS, [], "")
    header = cells(text, "variant")
    plain, aided = (dict(zip(header, cells(text, name), strict=True)) for name in ("plain", "aided"))
    assert plain["AP50"] == f"0.350 ± {statistics.stdev([0.4, 0.3]):.3f}"
    assert aided["AP"] == f"0.425 ± {statistics.stdev([0.4, 0.45]):.3f}"
    assert plain["minutes"] == "4.0 ± 0.0"
    assert (plain["to AP50 .5"], aided["to AP50 .5"]) == ("1 of 2", "1.5 ± 0.7")
    # the best of plain: .5 after 3 minutes and .3 after 3 minutes; aided had them after 1 and 2
    assert plain["to the best of plain"] == "3.0 ± 0.0 (1.00 x)"
    assert aided["to the best of plain"] == "1.5 ± 0.7 (0.50 x)"
    assert aided["duplicates"] == "2.0 ± 0.0"


def test_a_single_seed_has_no_deviation():
    text = results_markdown(STUDY, RESULTS[::2], [], "")
    assert not [line for line in text.splitlines() if line.startswith("|") and "±" in line]
    assert spread([0.5], 3) == "0.500"


def test_failures_are_listed_and_what_is_missing_is_not_invented():
    text = results_markdown(STUDY, RESULTS[2:], ["plain, seed 0: detr train ended"], "")
    assert "- plain, seed 0: detr train ended" in text
    assert cells(text, "aided")[-2] == "-"  # nothing to compare with
    assert "| plain " not in text


def test_nothing_is_compared_with_a_reference_that_has_learned_nothing():
    text = results_markdown(STUDY, [result("plain", 0, [0.0, 0.0]), result("aided", 0, [0.1, 0.2])], [], "")
    assert cells(text, "aided")[-2] == "-"


def test_bands_are_drawn_where_all_seeds_have_values():
    runs = [result("aided", 0, [0.0, 0.4, 0.8], 1.0), result("aided", 1, [0.2, 0.4], 2.0)]
    grid, mean, lowest, highest = mean_curve(runs, lambda point: point.minutes)
    assert grid == [2.0, 3.0]
    assert lowest == pytest.approx([0.2, 0.3])
    assert highest == pytest.approx([0.4, 0.8])
    assert mean == pytest.approx([0.3, 0.55])


def test_everything_is_in_the_json_and_the_picture(tmp_path):
    study = Study("mine", "shapes", {"plain": {}, "aided": {}}, seeds=(0,), train_images=(20, None))
    few = [result(name, 0, [0.1, 0.2], train_images=20) for name in study.variants]
    values = json.loads(json.dumps(results_json(study, [*few, *RESULTS], ["a failure"], "detr benchmark")))
    assert len(values["runs"]) == 6
    assert values["runs"][0]["curve"][1] == {"step": 20, "images": 160, "minutes": 2.0, "ap": 0.1, "ap50": 0.2}
    assert {"machine", "versions", "command"} <= {*values["facts"]}
    assert plot_convergence(study, [*few, *RESULTS], tmp_path / "curves.png").stat().st_size > 10_000
    assert plot_learning_curves(study, [*few, *RESULTS], tmp_path / "learning.png").stat().st_size > 10_000
    assert plot_learning_curves(study, RESULTS, tmp_path / "one.png") is None
    text = results_markdown(study, [*few, *RESULTS], [], "")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## 20 training images",
        "## 80 training images",
    ]
