"""Pages in a browser: nothing is loaded, tables sort, pictures enlarge, all of it by keyboard."""

import math

import numpy as np
import pytest
from browser import CHROMIUM, browser
from PIL import Image

from modeling_detr.pages import Chart, Code, Figure, Figures, Heat, HeatObject, Line, Page, Section, Table, Text


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

ROWS = [("cat 10", 0.5, 2), ("dog", math.nan, 30), ("cat 9", 0.75, 1_000), ("bird", 0.125, 4)]
FIRST_COLUMN = "[...document.querySelectorAll('table.sortable tbody td:first-child')].map((cell) => cell.textContent)"
ACTIVE = "document.activeElement.getAttribute('aria-label')"
DIALOG = "document.querySelector('dialog').open"
CANVAS = "document.querySelectorAll('canvas')[{}]"
# The mean place of the yellow pixels of a canvas, in tenths of its width and height.
LIT = """((canvas) => {
  const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const lit = [...Array(width * height).keys()].filter((pixel) => data[4 * pixel] > 200 && data[4 * pixel + 2] < 190);
  const mean = (place) => Math.round(10 * lit.reduce((sum, pixel) => sum + place(pixel), 0) / lit.length);
  return `${mean((pixel) => (pixel % width) / width)} ${mean((pixel) => Math.floor(pixel / width) / height)}`;
})"""


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


def test_a_long_name_at_the_head_of_a_column_or_a_chart_takes_several_lines(chromium, tmp_path):
    table, chart = (
        Table(("truth", "x" * 300), [("cat", 1), ("dog", 2)]),
        Chart("y" * 300, "recall", [Line("hits", [0, 1])]),
    )
    file = tmp_path / "page.html"
    file.write_text(Page("names", [Section("Classes", [table, chart])]).to_html(), encoding="utf-8")
    for width in (390, 1280):
        chromium.open(file, width)
        assert chromium.evaluate("document.querySelector('th.long').getBoundingClientRect().width") < 300
        assert chromium.evaluate("document.querySelector('.chart strong').getBoundingClientRect().height") < 60


def test_the_table_of_metrics_fits_a_phone_and_the_focus_is_seen(chromium, tmp_path):
    header = ("metric", "value", "IoU", "objects", "detections")
    rows = [(f"AP {size}", 0.5, ".50:.95", "area < 32²", 100) for size in ("small", "medium", "large")]
    file = tmp_path / "page.html"
    file.write_text(Page("Evaluation", [Section("COCO", [Table(header, rows)])]).to_html(), encoding="utf-8")
    chromium.open(file, 390, "light")
    chromium.press("Tab")
    hidden = "(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(document.querySelector('.scroll'))"
    assert chromium.evaluate(hidden) == 0
    colour = "getComputedStyle(document.activeElement).outlineColor"
    assert chromium.wait_for(colour, "rgb(31, 95, 196)") == "rgb(31, 95, 196)"  # not white on white


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


@pytest.fixture
def maps(tmp_path):
    """A page with maps of two objects, and of the 2 x 3 cells of a picture: each cell attends to itself in the first
    layer, to the one opposite in the second."""
    figure = Figure.of(Image.new("RGB", (300, 200), (60, 60, 60)), "picture")
    of_cells = np.zeros((6, 2, 2, 3), np.uint8)
    for cell in range(6):
        of_cells[cell, 0].flat[cell] = of_cells[cell, 1].flat[5 - cell] = 255
    objects = [
        HeatObject("large", (0, 0, 1, 1), [Text("about the large one")]),
        HeatObject("small <b>", (0.6, 0.5, 1, 1), [Text("about the small one")]),
    ]
    boxes = Heat(figure, (400, 600), of_cells[[0, 5]], ["first", "second"], (2.0, 3.0), objects)
    points = Heat(figure, (400, 600), of_cells, ["first", "second"], (2.0, 3.0), start_point=(0.5, 0.5), start_layer=1)
    file = tmp_path / "maps.html"
    file.write_text(Page("Maps", [Section("Boxes", [boxes]), Section("Points", [points])]).to_html(), encoding="utf-8")
    return file


def test_a_click_or_the_arrow_keys_show_the_map_of_a_point(chromium, maps):
    chromium.open(maps)
    canvas = CANVAS.format(1)
    lit = f"{LIT}({canvas})"
    assert chromium.wait_for("document.querySelectorAll('canvas').length", 2) == 2
    assert chromium.evaluate(lit) == "9 8"  # the second layer
    chromium.evaluate("document.querySelectorAll('form')[1].querySelector('.layers input').click()")
    assert chromium.wait_for(lit, "1 2") == "1 2"
    chromium.click(canvas, 0.9, 0.9)
    assert chromium.wait_for(lit, "9 8") == "9 8"
    status = "document.querySelectorAll('.status')[1].textContent"
    assert chromium.evaluate(status).startswith("Point 5")
    chromium.evaluate(f"{canvas}.focus()")
    chromium.press("ArrowLeft")
    assert chromium.wait_for(lit, "5 8") == "5 8"
    chromium.press("ArrowUp")
    assert chromium.wait_for(lit, "5 2") == "5 2"
    for _ in range(4):  # no farther than the edge
        chromium.press("ArrowLeft")
    left = f"{status}.startsWith('Point 0, ')"
    assert chromium.wait_for(left, True) is True
    assert chromium.evaluate(lit) == "1 2"
    assert chromium.problems == []


def test_a_click_or_the_list_shows_the_map_of_an_object(chromium, maps):
    chromium.open(maps, 390)
    assert chromium.wait_for("document.querySelectorAll('canvas').length", 2) == 2
    assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    shown = "[...document.querySelectorAll('.detail:not([hidden])')].map((detail) => detail.textContent).join()"
    lit = f"{LIT}({CANVAS.format(0)})"
    assert chromium.evaluate(lit) == "1 2"
    assert "about the large one" in chromium.evaluate(shown)
    chromium.click(CANVAS.format(0), 0.8, 0.8)  # in both: the smaller one
    assert chromium.wait_for(lit, "9 8") == "9 8"
    assert chromium.evaluate(shown).split() == ["2", "·", "small", "<b>", "about", "the", "small", "one"]
    assert chromium.evaluate("document.querySelectorAll('[data-box]')[1].checked") is True
    chromium.evaluate("document.querySelectorAll('[data-box]')[1].focus()")
    chromium.press("ArrowLeft")  # as in any group of radio buttons
    assert chromium.wait_for(lit, "1 2") == "1 2"
    assert "about the large one" in chromium.evaluate(shown)
    chromium.press("Enter")  # sends no form
    assert chromium.problems == []


def test_pictures_are_chosen_by_their_tags(chromium, tmp_path):
    tags = [
        {"error": ["missed"], "class": ["<b>"]},
        {"error": ["class", "missed"], "class": ["dog"]},
        {"error": ["class"]},
    ]
    figures = [Figure.of(Image.new("RGB", (90, 60)), f"picture {n}", tags=tag) for n, tag in enumerate(tags)]
    file = tmp_path / "page.html"
    file.write_text(Page("tags", [Section("Pictures", [Figures(figures)])]).to_html(), encoding="utf-8")
    chromium.open(file)
    shown = (
        "[...document.querySelectorAll('figure')].filter((figure) => figure.checkVisibility())"
        ".map((figure) => figure.querySelector('figcaption').textContent)"
    )
    choose = (
        "(([list, value]) => {{ const select = document.querySelectorAll('select')[list]; select.value = value; "
        "select.dispatchEvent(new Event('input', {{ bubbles: true }})); }})([{}, {!r}])"
    )
    assert chromium.evaluate(shown) == ["picture 0", "picture 1", "picture 2"]
    chromium.evaluate(choose.format(0, "missed"))
    assert chromium.evaluate(shown) == ["picture 0", "picture 1"]
    assert chromium.evaluate("document.querySelector('output').textContent") == "2 of 3 pictures"
    chromium.evaluate(choose.format(1, "<b>"))
    assert chromium.evaluate(shown) == ["picture 0"]
    chromium.evaluate("document.querySelector('figure:not([hidden]) button').click()")
    chromium.evaluate("document.querySelector('dialog [aria-label=\"Next picture\"]').click()")
    assert chromium.evaluate("document.querySelector('dialog img').alt") == "picture 0"  # hidden ones are skipped
