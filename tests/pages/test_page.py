"""The structure of pages, judged by a parser."""

import base64
import hashlib
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_markup import HARMLESS, HOSTILE

from modeling_detr.pages import (
    Chart,
    Code,
    Figure,
    Figures,
    Heat,
    HeatObject,
    Line,
    Page,
    Section,
    Table,
    Text,
)


class Reader(HTMLParser):
    """The elements of a page: (tag, attributes, text directly in it)."""

    EMPTY = ("meta", "link", "img", "input")

    def __init__(self, page):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in self.EMPTY:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open:
            self._open[-1][2] += data

    def all(self, tag):
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]

    def texts(self, tag):
        return [text for _, text in self.all(tag)]


PICTURE = Image.new("RGB", (60, 40), "red")


def page_of(name):
    """A page with a text in every place of it."""
    table = Table((name, "AP"), [(name, 0.5), ("b", math.nan), ("c", 0.25)])
    blocks = [Text(name), table, Figures([Figure.of(PICTURE, name)]), Section(name, [Text(name)], True, name)]
    return Page(name, [Section(name, blocks)], [(name, name)], [(name, name), ("command", Code(name))], name)


def heat_of(name):
    """A page with maps of an object, and a text in every place of it."""
    chart = Chart(name, name, [Line(name, [0.0, 1.0]), Line("random", [0.5, 0.5], quiet=True)])
    found = HeatObject(name, (0.0, 0.0, 0.5, 0.5), [chart])
    maps = np.zeros((1, 2, 3, 4), np.uint8)
    heat = Heat(Figure.of(PICTURE, name), (40, 60), maps, [name, "other"], (3.0, 4.0), [found])
    return Page(name, [Section(name, [heat])])


@pytest.mark.parametrize("name", [*HARMLESS, *HOSTILE, "\u202egnp.exe", "\udcff.jpg", "</script>", "</title><script>"])
def test_a_name_is_text_only_in_every_place(name):
    html = page_of(name).to_html()
    html.encode("utf-8")
    page, plain = Reader(html), Reader(page_of("plain").to_html())
    words = {"span"}  # of the command, one element a word
    assert [tag for tag, *_ in page.elements if tag not in words] == [
        tag for tag, *_ in plain.elements if tag not in words
    ]
    shown = name.replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\udcff", "\\udcff")
    for tag in ("title", "h1", "h2", "h3", "p", "th", "td", "dt", "dd", "figcaption", "strong", "small"):
        assert shown in page.texts(tag), tag
    assert [attributes["alt"] for attributes, _ in page.all("img")] == [shown]


@pytest.mark.parametrize("name", [*HARMLESS, *HOSTILE, "\u202egnp.exe", "</script>", '"><script>'])
def test_a_name_is_text_only_in_maps_and_charts(name):
    page, plain = Reader(heat_of(name).to_html()), Reader(heat_of("plain").to_html())
    assert [tag for tag, *_ in page.elements] == [tag for tag, *_ in plain.elements]
    shown = name.replace("\n", "\\n").replace("\u202e", "\\u202e")
    for tag in ("label", "legend", "h3", "text", "li", "strong"):
        assert any(text.endswith(shown) for text in page.texts(tag)), tag
    assert len(page.texts("script")) == 2
    assert len(Reader(page_of(name).to_html()).texts("script")) == 1  # the second is for maps only


def test_the_lines_of_a_chart_run_from_left_to_right():
    page = Reader(heat_of("map").to_html())
    lines = [attributes for attributes, _ in page.all("polyline")]
    assert [(line["class"], line["points"]) for line in lines if line.get("data-name")] == [
        ("line-0", "34.0,158.0 310.0,8.0"),
        ("quiet", "34.0,83.0 310.0,83.0"),
    ]


def test_a_page_runs_only_its_own_script_and_loads_nothing():
    page = Reader(page_of("<script>alert(1)</script>").to_html())
    (script,), (style,) = page.texts("script"), page.texts("style")
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    ]
    (policy,) = [attributes["content"] for attributes, _ in page.all("meta") if "http-equiv" in attributes]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": hashes[0],
        "style-src": hashes[1],
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    for _, attributes, _ in page.elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")


def test_a_page_reads_well_on_a_phone_in_the_dark_and_without_its_script():
    page = Reader(page_of("cat").to_html())
    metas = {attributes.get("name"): attributes.get("content") for attributes, _ in page.all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    assert "prefers-color-scheme: dark" in page.texts("style")[0]
    assert page.all("html")[0][0] == {"lang": "en"}
    assert page.texts("button") == []  # the script makes them
    assert [attributes.get("scope") for attributes, _ in page.all("th")] == ["col", "col"]
    (image,) = page.all("img")
    assert (image[0]["width"], image[0]["height"]) == ("60", "40")


def test_columns_of_numbers_are_sorted_as_numbers():
    rows = [("nan", 0.12345, 1_234, "85.0%"), ("inf", math.nan, 5, "+7.4%"), ("7", 1.0, 0, "-3.25%")]
    page = Reader(Page("x", [Section("x", [Table(("class", "AP", "boxes", "share"), rows)])]).to_html())
    cells = [(text, attributes.get("data-value")) for attributes, text in page.all("td")]
    assert cells == [
        *[("nan", None), ("0.123", "0.12345"), ("1,234", "1234.0"), ("85.0%", "85.0")],
        *[("inf", None), ("-", ""), ("5", "5.0"), ("+7.4%", "7.4")],
        *[("7", None), ("1.000", "1.0"), ("0", "0.0"), ("-3.25%", "-3.25")],
    ]
    assert [attributes.get("class") for attributes, _ in page.all("th")] == [None, "number", "number", "number"]


def test_a_very_long_name_is_shortened_unless_texts_wrap():
    for wraps, length in ((False, 100), (True, 10_000)):
        page = Reader(Page("x", [Section("x", [Table(("class",), [("x" * 10_000,)], wraps)])]).to_html())
        assert len(page.texts("td")[0]) == length


def test_large_pictures_are_reduced():
    figure = Figure.of(Image.effect_noise((2000, 1000), 40), "noise")
    assert (figure.width, figure.height) == (640, 320)
    assert len(figure.source) < 150_000
    assert figure.source.startswith("data:image/webp;base64,")
    assert Figure.of(Image.new("1", (1, 5000)), "line").height == 640
