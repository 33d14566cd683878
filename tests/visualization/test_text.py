from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_detr.visualization import draw_prediction, text, tile
from modeling_detr.visualization.text import drawable, fitted, font_for, legible


def test_a_drawable_name_is_one_short_line():
    assert drawable("斑马") == "斑马"
    assert drawable("a\nb\x1b") == r"a\nb\u001b"
    assert drawable("x" * 10_000) == "x" * 59 + "…"
    assert drawable("x" * 60) == "x" * 60


def test_the_font_has_the_characters_of_the_name():
    for name in ("cat", "café", "قطة", "кошка", ""):
        assert font_for(name, 13).getname() == ("DejaVu Sans", "Book")
    assert font_for("cat", 13, bold=True).getname() == ("DejaVu Sans", "Bold")


@pytest.mark.parametrize("name", ["x" * 10_000, "one\ntwo\nthree", "قطة", "斑马 🐈", "", "\udcff"])
def test_any_class_name_is_drawn_on_one_line_within_the_picture(name):
    objects = {"boxes": torch.tensor([[20.0, 200.0, 300.0, 400.0]]), "labels": torch.tensor([0])}
    picture = draw_prediction(torch.zeros(3, 480, 640, dtype=torch.uint8), objects, {0: name})
    assert picture.size == (640, 480)
    assert not np.asarray(picture)[:170].any()  # nothing but one line above the box


def test_a_title_stays_within_its_cell():
    pictures = [Image.new("RGB", (100, 50)) for _ in range(2)]
    sheet = np.asarray(tile(pictures, 2, ["a very long name of a file, as annotated: 12 boxes" * 10, ""]))
    assert (sheet[:20, :108] < 255).any()
    assert (sheet[:20, 108:] == 255).all()


def test_names_without_a_font_are_spelled_out_or_become_a_number(monkeypatch):
    monkeypatch.setattr(text, "system_fonts", list)
    text.font_file.cache_clear()
    try:
        assert legible("Straße", "class 3") == "Straße"
        assert legible("斑马", "class 3") == "class 3"
        assert legible("🐈", "class 3") == "cat"
        assert legible("hot🌭dog", "class 3") == "hot hot dog dog"
    finally:
        text.font_file.cache_clear()


def test_a_font_of_the_system_is_used_if_it_has_more_of_the_name(monkeypatch):
    other = str(Path(mpl.get_data_path(), "fonts/ttf/STIXSizOneSymReg.ttf"))
    character = "\u23dc"  # only this font has it
    assert text.missing_characters(character, text.font_file("cat"))
    monkeypatch.setattr(text, "system_fonts", lambda: [other])
    text.font_file.cache_clear()
    try:
        assert text.font_file(character) == other
    finally:
        text.font_file.cache_clear()


def test_a_shortened_text_fits():
    font = font_for("cat", 20)
    assert fitted("cat", font, 100) == "cat"
    short = fitted("a very long name", font, 100)
    assert short.startswith("a very")
    assert short.endswith("…")
    assert font.getlength(short) <= 100
