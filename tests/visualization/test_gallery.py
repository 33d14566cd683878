import pytest
from PIL import Image

from modeling_detr.visualization import gallery_html, tile


PICTURES = [Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 30), "green"), Image.new("RGB", (5, 5), "blue")]


def test_pictures_are_tiled_in_rows() -> None:
    sheet = tile(PICTURES, columns=2)
    assert sheet.size == (48, 68)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((28, 29)) == (0, 128, 0)
    assert sheet.getpixel((0, 38)) == (0, 0, 255)
    assert tile(PICTURES[:1], columns=5).size == (20, 10)
    with pytest.raises(ValueError, match="pictures: got 0 with 0 titles, expected at least one"):
        tile([], columns=2)
    with pytest.raises(ValueError, match="pictures: got 3 with 1 titles"):
        tile(PICTURES, columns=2, titles=["one"])


def test_a_gallery_page_embeds_its_pictures_and_escapes_its_titles() -> None:
    page = gallery_html("cats & dogs", PICTURES, ["a<b", "two", "three"], columns=2)
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<h1>cats &amp; dogs</h1>" in page
    assert "<figcaption>a&lt;b</figcaption>" in page
    assert "repeat(2,1fr)" in page
