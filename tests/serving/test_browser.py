"""The page in a browser: an image is dropped, and its boxes are seen."""

import base64
import io
import re

import pytest
import torch
from browser import CHROMIUM, browser
from PIL import Image
from served import TOKEN, held_detector, jpeg, served


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

HOSTILE = "<img src=x onerror=document.title='owned'>"
STATUS = "document.querySelector('.status').textContent"
ROWS = "[...document.querySelectorAll('tbody tr')].map((row) => row.firstElementChild.textContent)"
SHOWN = "document.querySelectorAll('tbody tr').length"
DROP = """{{
    const bytes = Uint8Array.from(atob("{content}"), (one) => one.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], "photo.jpg", {{ type: "image/jpeg" }}));
    document.querySelector(".drop").dispatchEvent(new DragEvent("drop", {{ dataTransfer: files, bubbles: true }}));
}}"""
CANVAS = "document.querySelector('canvas')"
SIZE = f"[{CANVAS}.width, {CANVAS}.height]"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def detector(tiny_detector):
    """Finds seven objects, with scores around .77; they are all of a class with a hostile name."""
    model = tiny_detector(num_labels=2, id2label={0: "disc", 1: HOSTILE})
    with torch.no_grad():
        model.class_labels_classifier.bias[1] = 2.5
    return held_detector(model, "<b>runs</b>/mine")


def drop(chromium, content):
    chromium.evaluate(DROP.format(content=base64.b64encode(content).decode()))


def slide(chromium, value):
    slider = "document.querySelector('input[type=range]')"
    chromium.evaluate(f"{slider}.value = {value}; {slider}.dispatchEvent(new Event('input'))")


def grey(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (120, 120, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_that_is_dropped_is_shown_with_its_boxes(chromium, detector):
    expected = detector(jpeg(640, 480), threshold=0.05)
    with served(detector) as running:
        chromium.open(running.url)
        assert chromium.wait_for("document.title", "<b>runs</b>/mine") == "<b>runs</b>/mine"
        drop(chromium, jpeg(640, 480))
        assert chromium.wait_for(SHOWN, 7) == 7
        assert chromium.evaluate(ROWS) == expected.names == [HOSTILE] * 7
        assert re.fullmatch(r"640 \u00d7 480 pixels, \d+\.\d\d s\.", chromium.evaluate(STATUS))
        assert chromium.evaluate(SIZE) == [640, 480]
        scores = sorted(expected.scores.tolist())
        slide(chromium, 1)
        assert chromium.evaluate(SHOWN) == 0
        assert "Nothing with this score." in chromium.evaluate("document.querySelector('main').textContent")
        plain = chromium.evaluate(f"{CANVAS}.toDataURL()")
        slide(chromium, 0.05)
        assert chromium.evaluate(SHOWN) == len(scores)
        assert chromium.evaluate(f"{CANVAS}.toDataURL()") != plain  # boxes are drawn
        drop(chromium, b"no image")
        assert "is not an image (8 bytes)" in chromium.wait_for(f"{STATUS}.includes('is not') && {STATUS}", None)
        assert chromium.evaluate(SHOWN) == 0
        assert chromium.evaluate("document.title") == "<b>runs</b>/mine"
        requests = [problem for problem in chromium.problems if problem.startswith("http")]
        assert [url for url in requests if not url.startswith(running.url)] == []
        reported = [
            problem for problem in chromium.problems if '"level": "error"' in problem or "exceptionDetails" in problem
        ]
        assert all("422" in problem for problem in reported), reported


def test_segments_and_masks_are_drawn_where_they_are(chromium, tiny_segmenter, monkeypatch):
    """The upper half of a grey image is one segment, its lower right quarter another, and the rest is none."""
    detector = held_detector(tiny_segmenter(1, num_labels=2, id2label={0: "disc", 1: "star"}, stuff_labels=[1]))
    segmentation = torch.zeros(480, 640, dtype=torch.int64)
    segmentation[:240], segmentation[240:, 320:] = 1, 4
    infos = [{"id": 1, "label_id": 1, "score": 0.9}, {"id": 4, "label_id": 0, "score": 0.9}]
    result = {"segmentation": segmentation, "segments_info": infos}
    monkeypatch.setattr(detector, "predict_batch", lambda inputs, sizes, rules: [result for _ in sizes])
    pixel = "[...document.querySelector('canvas').getContext('2d').getImageData({}, {}, 1, 1).data].slice(0, 3)"
    with served(detector) as running:
        chromium.open(running.url)
        drop(chromium, grey(640, 480))
        assert chromium.wait_for(ROWS, ["star", "disc"]) == ["star", "disc"]
        corners = ((5, 5), (630, 230), (330, 250), (630, 470), (310, 250), (5, 470))
        first, second, third, fourth, *others = (chromium.evaluate(pixel.format(*corner)) for corner in corners)
        assert others == [[120] * 3] * 2
        assert first == second != [120] * 3
        assert third == fourth not in ([120] * 3, first)
        chromium.evaluate("document.querySelector('tbody tr').dispatchEvent(new MouseEvent('mouseenter'))")
        assert chromium.evaluate(pixel.format(5, 5)) != first


def test_the_masks_of_objects_are_drawn(chromium, tiny_segmenter):
    detector = held_detector(tiny_segmenter(1, num_labels=2, id2label={0: "disc", 1: "star"}))
    mask = detector(grey(640, 480), threshold=0.05).masks.any(0).numpy()
    grid = mask[10::20, 10::20].ravel().tolist()
    assert 0.05 < sum(grid) / len(grid) < 0.95
    drawn = """{
        const pen = document.querySelector("canvas").getContext("2d");
        const drawn = [];
        for (let y = 10; y < 480; y += 20)
            for (let x = 10; x < 640; x += 20) drawn.push(pen.getImageData(x, y, 1, 1).data[0] !== 120);
        drawn;
    }"""
    with served(detector) as running:
        chromium.open(running.url)
        drop(chromium, grey(640, 480))
        assert chromium.wait_for(SHOWN, 7) == 7
        found = chromium.evaluate(drawn)
    same = sum(one == other for one, other in zip(grid, found, strict=True))
    assert same > 0.97 * len(grid)  # others are under a label or the line of a box


def test_the_page_asks_for_the_token(chromium, detector):
    with served(detector, TOKEN) as running:
        chromium.open(running.url)
        hidden = "document.querySelector('input[type=password]').closest('form').hidden"
        assert chromium.wait_for(hidden, False) is False
        assert chromium.wait_for(f"{STATUS}.includes('has no valid token')", True) is True
        field = "document.querySelector('input[type=password]')"
        chromium.evaluate(f"{field}.value = '{TOKEN}'; {field}.dispatchEvent(new Event('change'))")
        assert chromium.wait_for(hidden, True) is True
        drop(chromium, grey(64, 64))
        assert chromium.wait_for(SHOWN, 7) == 7


def test_a_small_image_is_enlarged(chromium, detector):
    with served(detector) as running:
        chromium.open(running.url)
        drop(chromium, jpeg(128, 96))
        assert chromium.wait_for(SHOWN, 7) == 7
        assert chromium.evaluate(SIZE) == [640, 480]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_its_window(chromium, detector, width, scheme, tmp_path):
    with served(detector) as running:
        chromium.open(running.url, width, scheme)
        drop(chromium, jpeg(2000, 300))
        assert chromium.wait_for(SHOWN, 7) == 7
        assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        picture = chromium("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        (tmp_path / "page.png").write_bytes(base64.b64decode(picture))


def test_the_description_is_shown_without_the_network(chromium, detector):
    with served(detector) as running:
        chromium.open(f"{running.url}/docs")
        loaded = "document.querySelectorAll('.opblock').length"
        assert chromium.wait_for(loaded, 4) == 4
        assert [p for p in chromium.problems if p.startswith("http") and not p.startswith(running.url)] == []
