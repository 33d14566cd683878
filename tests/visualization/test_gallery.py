import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from modeling_detr.visualization import gallery_html, tile


PICTURES = [Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 30), "green"), Image.new("RGB", (5, 5), "blue")]


def test_pictures_of_one_size_are_tiled_in_rows() -> None:
    pictures = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    sheet = tile(pictures, columns=2)
    assert sheet.size == (48, 28)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((28, 0)) == (0, 128, 0)
    assert sheet.getpixel((19, 27)) == (0, 0, 255)
    assert sheet.getpixel((40, 27)) == (255, 255, 255)  # the last row is not enlarged
    assert tile(pictures[:1], columns=5).size == (20, 10)
    with pytest.raises(ValueError, match="pictures: got 0 with 0 titles, expected at least one"):
        tile([], columns=2)
    with pytest.raises(ValueError, match="pictures: got 3 with 1 titles"):
        tile(PICTURES, columns=2, titles=["one"])


def test_pictures_of_any_shape_fill_the_sheet_without_gaps() -> None:
    wide, tall = Image.new("RGB", (640, 480), "red"), Image.new("RGB", (300, 900), "green")
    sheet = np.asarray(tile([wide, tall, tall, wide, wide, wide], columns=2, width=500))
    assert sheet.shape[1] == 500
    assert (sheet == 255).all(-1).mean() < 0.05  # only the lines between the pictures
    assert not (sheet == 0).all(-1).any()


def test_a_gallery_page_embeds_its_pictures_and_escapes_its_titles() -> None:
    page = gallery_html("cats & dogs", PICTURES, ["a<b", "two", "three"], columns=2)
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<h1>cats &amp; dogs</h1>" in page
    assert "<figcaption>a&lt;b</figcaption>" in page
    assert "repeat(2,1fr)" in page


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_no_name_runs_a_script_in_a_browser(tmp_path) -> None:
    run = "document.title='owned'"
    titles = [f"<script>{run}</script>", f'"><img src=x onerror={run}>', f"</title></style><svg onload={run}>"]
    page = tmp_path / "gallery.html"
    page.write_text(gallery_html(titles[2], PICTURES, titles, columns=2), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    result = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<figcaption>&lt;script&gt;" in result.stdout
    assert "<title>owned" not in result.stdout
    # the page's policy stops even a script that got in
    page.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<script>{run}</script><main>"))
    result = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert f"<script>{run}</script>" in result.stdout
    assert "<title>owned" not in result.stdout
