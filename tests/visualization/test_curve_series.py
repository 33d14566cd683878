import pytest

from modeling_detr.errors_detr import CurveError
from modeling_detr.visualization.curve_series import (
    chosen_axis,
    other_losses,
    panels,
    read_curves,
    smoothed,
)


def step(number, **values):
    return {"kind": "step", "epoch": 1 + (number - 1) // 4, "step": number, "loss": 10.0 - number, **values}


def epoch(number, **values):
    return {"kind": "epoch", "epoch": number, "step": 4 * number, "loss": 5.0, "ap": 0.1 * number, **values}


def test_a_value_comes_from_the_steps_if_they_have_it_and_else_from_the_epochs():
    run = read_curves([step(2, grad_norm=3.0), step(4, grad_norm=None), epoch(1, grad_norm=9.0, seconds=60.0)])
    assert run.training.y == {"loss": [8.0, 6.0], "grad_norm": [3.0, None]}
    assert run.epochs.y == {"ap": [0.1]}
    assert read_curves([epoch(1)]).epochs.y == {"loss": [5.0], "ap": [0.1]}


def test_rows_have_places_on_each_axis():
    entries = [step(2, images=8, seconds=90.0), step(4, images=16, seconds=120.0), epoch(1, images=16, seconds=240.0)]
    run = read_curves([*entries, step(6, images=24, seconds=300.0)])
    assert run.training.x == {
        "steps": [2, 4, 6],
        "images": [8, 16, 24],
        "minutes": [1.5, 2.0, 5.0],
        "epochs": [0.5, 1.0, 1.5],
    }
    assert run.epochs.x == {"steps": [4], "images": [16], "minutes": [4.0], "epochs": [1]}
    assert run.axes == ["steps", "images", "minutes", "epochs"]


def test_logs_of_older_versions_have_minutes_between_their_epochs_but_no_images():
    run = read_curves([step(2), step(4), epoch(1, seconds=120.0), step(6)])
    assert run.training.x["minutes"] == [1.0, 2.0, 3.0]
    assert run.axes == ["steps", "minutes", "epochs"]
    with pytest.raises(CurveError, match=r"^old: its log does not count images; choose another axis \(axis='steps'\)"):
        chosen_axis({"old": run}, "images")


def test_the_last_entry_of_a_step_that_was_logged_twice_counts():
    first = [step(2), step(4), epoch(1), step(6), step(8), epoch(2)]
    run = read_curves([*first, step(6, loss=0.5), step(8), {"kind": "warning", "epoch": 2, "step": 8, "text": "x"}])
    assert run.training.x["steps"] == [2, 4, 6, 8]
    assert run.training.y["loss"] == [8.0, 6.0, 0.5, 2.0]
    assert run.epochs.x["steps"] == [4]  # the second epoch has not ended again


def test_what_is_no_finite_number_is_left_out():
    broken = {"kind": "step", "epoch": 1, "step": "six", "loss": 1.0}
    run = read_curves(
        [broken, {"kind": "step"}, step(2, loss="high", loss_ce=True, grad_norm=float("inf"), ap={}), {}]
    )
    assert run.training.y == {}
    assert run.axes == []
    with pytest.raises(CurveError, match=r"^young: its log does not count steps; leave it out"):
        chosen_axis({"young": run}, "steps")


def test_runs_are_drawn_over_epochs_if_a_log_has_no_steps():
    original = read_curves([{"kind": "epoch", "epoch": number, "loss": 1.0} for number in (1, 2)])
    ours = read_curves([step(2), step(4), epoch(1)])
    assert chosen_axis({"ours": ours}) == "steps"
    assert chosen_axis({"ours": ours, "original": original}) == "epochs"
    with pytest.raises(CurveError, match=r"^young: no finished epoch yet"):
        chosen_axis({"young": read_curves([step(2)]), "original": original})


def test_long_logs_are_reduced_to_means():
    run = read_curves([step(number, grad_norm=None if number % 2 else 1.0) for number in range(1, 11)], max_points=4)
    assert run.training.x["steps"] == [3, 6, 9, 10]
    assert run.training.y["loss"] == [8.0, 5.0, 2.0, 0.0]
    assert run.training.y["grad_norm"] == [1.0] * 4


def test_the_share_of_waiting_is_drawn_in_percent():
    run = read_curves([step(2, loader_wait=0.25)])
    assert run.training.y["loader_wait"] == [25.0]
    assert list(panels([run])) == ["loss (dashed: evaluation)", "waiting for data, % of the time"]


def test_other_loss_terms_are_listed():
    run = read_curves([step(2, loss_ce=1.0, loss_ce_0=1.0, loss_giou_denoising=1.0, cardinality_error=1.0)])
    assert other_losses([run]) == ["loss_ce_0", "loss_giou_denoising"]


def test_smoothing_has_no_bias_to_zero_and_skips_gaps():
    assert smoothed([4.0, 4.0, None, 4.0], 0.9) == pytest.approx([4.0, 4.0, None, 4.0])
    assert smoothed([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])
    assert smoothed([3.0, 1.0], 0.0) == [3.0, 1.0]
