"""Training curves in a browser: values at the pointer, runs that are switched off, axes, smoothing."""

import pytest
from browser import CHROMIUM, browser

from modeling_detr.pages import CurvePanel, Curves, CurveTable, Page, Section


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

HOSTILE = "</script><img src=x onerror=document.title='owned'>"
TIP = "[...document.querySelectorAll('.tip:not([hidden])')].map((tip) => tip.textContent).join('|')"
LINES = "document.querySelectorAll('.panel')[0].querySelectorAll('polyline{}').length"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def tables(factor: float) -> list[CurveTable]:
    steps = [float(step) for step in range(1, 101)]
    training = CurveTable(
        {"steps": steps, "minutes": [step / 10 for step in steps]},
        {"loss": [factor * (step % 2 + 1) for step in steps], "loss_ce_0": steps},
        ["loss"],
    )
    evaluated = CurveTable(
        {"steps": [50.0, 100.0], "minutes": [5.0, 10.0]}, {"ap": [0.25, None], "ap50": [0.5, 0.625]}
    )
    return [training, evaluated]


@pytest.fixture
def page(tmp_path):
    panels = [CurvePanel("loss", ("loss",)), CurvePanel("AP", ("ap", "ap50")), CurvePanel("ce", ("loss_ce_0",), True)]
    curves = Curves(panels, {"first": tables(1.0), HOSTILE: tables(10.0)}, ["steps", "minutes"], "steps", 0.5)
    file = tmp_path / "curves.html"
    file.write_text(Page("Curves", [Section("Curves", [curves])]).to_html(), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [390, 1280])
def test_curves_fit_their_window_and_load_nothing(chromium, page, width):
    chromium.open(page, width)
    assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert chromium.evaluate("document.querySelectorAll('.panel').length") == 3
    assert chromium.evaluate(LINES.format(".raw")) == 2
    assert chromium.evaluate(LINES.format(":not(.raw)")) == 2
    assert chromium.evaluate("document.title") == "Curves"
    labels = "[...document.querySelectorAll('fieldset')[0].querySelectorAll('label')].map((one) => one.textContent)"
    assert chromium.evaluate(labels) == ["first", HOSTILE]
    assert chromium.problems == []


def test_the_pointer_and_the_arrow_keys_show_values(chromium, page):
    chromium.open(page)
    chromium.click("document.querySelectorAll('.panel > svg')[1]", 0.55, 0.5)
    tip = chromium.evaluate(TIP)
    assert tip.startswith("step 50")
    assert "0.25 first ap" in tip
    assert f"0.5 {HOSTILE} ap50" in tip
    chromium.evaluate("document.querySelectorAll('.panel > svg')[0].focus()")
    chromium.press("ArrowRight")
    assert chromium.wait_for(f"{TIP}.startsWith('step 100')", True)
    chromium.press("ArrowLeft")
    assert chromium.wait_for(f"{TIP}.startsWith('step 99')", True)
    assert "(2) first" in chromium.evaluate(TIP)  # the value itself, beside the smoothed one
    assert chromium.problems == []


def test_runs_can_be_switched_off_and_axis_smoothing_and_scale_chosen(chromium, page):
    chromium.open(page)
    chromium.evaluate("document.querySelectorAll('input[name=run]')[1].click()")
    assert chromium.evaluate(LINES.format("")) == 2
    texts = "[...document.querySelectorAll('.panel')[0].querySelectorAll('text')].map((text) => text.textContent)"
    assert "1.5" in chromium.evaluate(texts)  # the range follows what is shown
    chromium.evaluate("document.querySelectorAll('input[name=axis]')[1].click()")
    assert {"minutes", "10"} <= {*chromium.evaluate(texts)}
    smoothing = "document.querySelector('input[type=range]')"
    chromium.evaluate(f"{smoothing}.value = 0; {smoothing}.dispatchEvent(new Event('input'))")
    assert chromium.evaluate(LINES.format("")) == 1
    chromium.evaluate("document.querySelector('input[name=log]').click()")
    assert {"1", "2"} <= {*chromium.evaluate(texts)}
    chromium.evaluate("document.querySelector('summary').click()")
    other = "document.querySelector('details .panel polyline') !== null"
    assert chromium.wait_for(other, True) is True
    assert chromium.problems == []


def test_new_data_leaves_what_the_reader_has_chosen(chromium, page):
    chromium.open(page)
    chromium.evaluate("document.querySelectorAll('input[name=run]')[0].click()")
    chromium.evaluate("document.querySelectorAll('input[name=axis]')[1].click()")
    block = "document.querySelector('.curves')"
    chromium.evaluate(f"{block}.curves.update(JSON.parse({block}.dataset.curves))")
    assert chromium.evaluate("[...document.querySelectorAll('input[name=run]')].map((input) => input.checked)") == [
        False,
        True,
    ]
    assert chromium.evaluate("document.querySelectorAll('input[name=axis]')[1].checked") is True
    assert chromium.evaluate(LINES.format("")) == 2
