import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from modeling_detr.visualization import plot_curves
from modeling_detr.visualization.text import drawable


def entries(epochs: int) -> list[dict[str, Any]]:
    step = {"kind": "step", "epoch": 1, "step": 1, "loss": 9.0}
    rows = [
        {"kind": "epoch", "epoch": index + 1, "loss": 5.0 - index, "loss_ce": 1.0, "class_error": 50.0, "ap": None}
        for index in range(epochs)
    ]
    return [step, *rows, {"kind": "epoch", "epoch": epochs + 1, "loss": 1.0, "ap": 0.5, "ap50": 0.8}]


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_the_curves_of_several_runs_are_plotted_in_one_file(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves({"first": entries(3), "second": entries(60)}, tmp_path / "new" / name)
    assert (tmp_path / "new" / name).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["$x_{$", "_hidden", "<b>", "斑马", "a\nb\x1b", "x" * 1000])
def test_any_name_of_a_run_is_shown_as_it_is(tmp_path: Path, name: str) -> None:
    import matplotlib as mpl

    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "none"}):
        warnings.simplefilter("error")
        plot_curves({name: entries(2)}, tmp_path / "curves.svg")
    texts = ElementTree.parse(tmp_path / "curves.svg").iter("{http://www.w3.org/2000/svg}text")
    assert drawable(name) in [text.text for text in texts]


def test_no_figure_stays_open(tmp_path: Path) -> None:
    from matplotlib import pyplot

    plot_curves({"run": entries(2)}, tmp_path / "curves.png")
    assert pyplot.get_fignums() == []


def test_a_run_without_an_entry_cannot_be_plotted(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="nothing to plot: no steps or epochs in young; expected at least one log entry per run"
    ):
        plot_curves({"old": entries(2), "young": []}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="nothing to plot: no runs"):
        plot_curves({}, tmp_path / "curves.png")


def test_smoothed_lines_are_drawn_over_the_values(tmp_path: Path) -> None:
    steps = [{"kind": "step", "epoch": 1, "step": step, "loss": float(step % 2)} for step in range(1, 50)]
    for smoothing, lines in ((0.0, 1), (0.9, 2)):
        plot_curves({"run": steps}, tmp_path / "curves.svg", smoothing=smoothing)
        paths = ElementTree.parse(tmp_path / "curves.svg").iter("{http://www.w3.org/2000/svg}path")
        assert len([path for path in paths if path.get("d", "").count("L") >= 48]) == lines
