"""Pages in a browser: nothing is loaded, tables sort, pictures enlarge, all of it by keyboard."""

import math

import pytest
from browser import CHROMIUM, browser
from PIL import Image

from modeling_detr.pages import Code, Figure, Figures, Page, Section, Table, Text


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

ROWS = [("cat 10", 0.5, 2), ("dog", math.nan, 30), ("cat 9", 0.75, 1_000), ("bird", 0.125, 4)]
FIRST_COLUMN = "[...document.querySelectorAll('table.sortable tbody td:first-child')].map((cell) => cell.textContent)"
ACTIVE = "document.activeElement.getAttribute('aria-label')"
DIALOG = "document.querySelector('dialog').open"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def page(tmp_path):
    figures = [Figure.of(Image.new("RGB", (90, 60), colour), colour) for colour in ("red", "green", "blue")]
    wide = Table([f"column {number}" for number in range(30)], [["x" * 99] * 30])
    blocks = [Table(("class", "AP", "boxes"), ROWS), wide, Figures(figures), Text("x" * 3_000)]
    facts = [("command", Code(f"detr evaluate {'x' * 3_000} --num_workers 0"))]
    folded = Section("x" * 300, [Table(("where",), [("x" * 3_000,)], wraps=True)], folded=True)
    file = tmp_path / "page.html"
    content = Page("x" * 300, [Section("Classes", blocks), folded], [("0.5", "AP")] * 20, facts)
    file.write_text(content.to_html(), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_its_window_in_both_schemes_and_loads_nothing(chromium, page, width, scheme):
    chromium.open(page, width, scheme)
    chromium.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert chromium.evaluate("innerWidth") == width
    assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert chromium.evaluate("document.querySelectorAll('.scroll')[1].scrollWidth") > width  # in a box of its own
    colours = chromium.evaluate(
        "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    text, ground = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert (text < 200 and ground > 700) if scheme == "light" else (text > 600 and ground < 100)
    assert chromium.problems == []


def test_the_heading_of_a_column_sorts_by_it(chromium, page):
    chromium.open(page)
    written, heading = [row[0] for row in ROWS], "document.querySelectorAll('table.sortable th')"
    expected = {
        0: (["bird", "cat 9", "cat 10", "dog"], ["dog", "cat 10", "cat 9", "bird"]),
        1: (["cat 9", "cat 10", "bird", "dog"], ["bird", "cat 10", "cat 9", "dog"]),  # without a value: last
        2: (["cat 9", "dog", "bird", "cat 10"], ["cat 10", "bird", "dog", "cat 9"]),
    }
    for column, (first, second) in expected.items():
        directions = ("ascending", "descending") if column == 0 else ("descending", "ascending")
        chromium.evaluate(f"{heading}[{column}].querySelector('button').focus()")
        for order, direction in ((first, directions[0]), (second, directions[1]), (written, None)):
            chromium.press("Enter")
            assert chromium.wait_for(FIRST_COLUMN, order) == order
            assert chromium.evaluate(f"{heading}[{column}].getAttribute('aria-sort')") == direction
    assert chromium.problems == []


def test_pictures_enlarge_by_keyboard(chromium, page):
    chromium.open(page)
    assert chromium.evaluate(DIALOG) is False
    chromium.evaluate("document.querySelectorAll('figure button')[1].focus()")
    assert chromium.evaluate(ACTIVE) == "Enlarge: green"
    chromium.press("Enter")
    assert chromium.wait_for(DIALOG, True) is True
    assert chromium.evaluate("document.querySelector('dialog p').textContent") == "Classes: green"
    width = "document.querySelector('dialog img').getBoundingClientRect().width > 1000"
    assert chromium.wait_for(width, True) is True
    for key, shown in (("ArrowRight", "blue"), ("ArrowRight", "red"), ("ArrowLeft", "blue")):
        chromium.press(key)
        assert chromium.wait_for("document.querySelector('dialog img').alt", shown) == shown
    chromium.press("Escape")
    assert chromium.wait_for(DIALOG, False) is False
    assert chromium.wait_for(ACTIVE, "Enlarge: blue") == "Enlarge: blue"  # where the reader has got to
    assert chromium.problems == []


def test_no_name_runs_a_script_in_a_browser(chromium, tmp_path):
    run = "document.title='owned'"
    names = [f"<script>{run}</script>", f'"><img src=x onerror={run}>', f"</title></style></script><svg onload={run}>"]
    figures = [Figure.of(Image.new("RGB", (9, 9)), name) for name in names]
    text = Page(names[2], [Section(names[0], [Figures(figures)])], facts=[(names[1], names[1])]).to_html()
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    chromium.open(file)
    assert chromium.evaluate("document.querySelector('figcaption').textContent") == names[0]
    assert chromium.evaluate("document.title") == names[2]
    assert chromium.problems == []
    # the page's policy stops even a script that got in
    file.write_text(text.replace("<main>", f"<script>{run}</script><img src=x onerror={run}><main>"))
    chromium.open(file)
    assert chromium.evaluate("document.title") == names[2]
    assert "Content Security Policy" in "".join(chromium.problems)
