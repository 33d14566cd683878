"""Lines of YOLO label files: what they are is decided for the dataset as a whole, and said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_detr.data import open_dataset
from modeling_detr.data.check import check_dataset


WIDTH, HEIGHT = 200, 100
BOXES = [(0.3, 0.4, 0.2, 0.3), (0.7, 0.6, 0.4, 0.5), (0.45, 0.55, 0.1, 0.6), (0.8, 0.2, 0.3, 0.2)]  # cx, cy, w, h
TURNED = [(x + dx, y + dy) for x, y, *_ in BOXES[:1] for dx, dy in ((0, -0.2), (0.1, 0), (0, 0.2), (-0.1, 0))]


def _dataset(root: Path, lines: list[str], description: str = "names: [cat]\n") -> Path:
    (root / "images").mkdir()
    (root / "labels").mkdir()
    (root / "data.yaml").write_text(description)
    for number, line in enumerate(lines):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / f"{number}.png")
        (root / "labels" / f"{number}.txt").write_text(line + "\n")
    return root


def _line(box: tuple[float, ...], *more: float) -> str:
    return " ".join(f"{number:g}" for number in (0, *box, *more))


def _corners(boxes: list[tuple[float, ...]]) -> np.ndarray:
    x, y, width, height = np.array(boxes).T
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    return corners * [WIDTH, HEIGHT, WIDTH, HEIGHT]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ([(), (), (), ()], "boxes"),
        ([(0.9,), (0.8,), (0.75,), (1,)], "boxes + confidence"),
        ([(1,), (2,), (3,), (1,)], "boxes + track id"),
        ([(1,), (), (3,), ()], "boxes + track id"),
        ([(0.9, 1), (0.8, 2), (0.7, 3), (0.9, 4)], "boxes + confidence + track id"),
        ([(0.9, 1), (0.8, 1), (0.7, 1), (0.9, 1)], "boxes + confidence + track id"),
        ([(0.9, 1), (0.8,), (0.7, 3), (0.9,)], "boxes + confidence + track id"),
        ([(0.3, 0.4, 2), (0.7, 0.6, 1), (0, 0, 0), (0.8, 0.2, 2)], "boxes + keypoints"),
        ([(0.3, 0.4, 2, 0.3, 0.5, 2)] * 4, "boxes + keypoints"),
    ],
)
def test_what_follows_a_box_is_recognised_and_not_used(tmp_path, more, text):
    lines = [_line(box, *numbers) for box, numbers in zip(BOXES, more, strict=True)]
    report = check_dataset(_dataset(tmp_path, lines), pixels="none")
    np.testing.assert_allclose(report.index.annotations.boxes_xyxy, _corners(BOXES), atol=1e-3)
    assert not report.errors
    assert f"  lines: {text}\n" in report.to_text()


@pytest.mark.parametrize("extra", [(), (7,), (0.83,), (0.9, 7)])
def test_rotated_boxes_become_their_enclosing_boxes_whatever_follows(tmp_path, extra):
    corners = [number for point in TURNED for number in point]
    report = check_dataset(_dataset(tmp_path, [_line(tuple(corners), *extra)]), pixels="none")
    np.testing.assert_allclose(report.index.annotations.boxes_xyxy, [[40, 20, 80, 60]], atol=1e-3)
    assert report.facts[0].startswith("lines: corners of rotated boxes")


@pytest.mark.parametrize(("extra", "text"), [((), "polygons"), ((0.9,), "polygons + confidence")])
def test_polygons_become_their_enclosing_boxes(tmp_path, extra, text):
    shapes = [(0.1, 0.1, 0.3, 0.2, 0.2, 0.6), (0.5, 0.5, 0.9, 0.5, 0.9, 0.8, 0.6, 0.9)]
    report = check_dataset(_dataset(tmp_path, [_line(shape, *extra) for shape in shapes]), pixels="none")
    expected = [[20, 10, 60, 60], [100, 50, 180, 90]]
    np.testing.assert_allclose(report.index.annotations.boxes_xyxy, expected, atol=1e-3)
    assert report.facts == (f"lines: {text}",)


def test_polygons_in_pixels_have_no_track_id_at_their_end(tmp_path):
    shape = [20, 10, 60, 20, 40, 60, 30, 50]
    index = open_dataset(_dataset(tmp_path, [_line(tuple(shape))]), box_format="cxcywh")
    assert index.annotations.boxes_xyxy.round(3).tolist() == [[20, 10, 60, 60]]
    assert not any("track id" in note for note in index.notes)


@pytest.mark.parametrize(
    ("more", "doubt"), [((0.1, 0.1, 0.9, 0.9), "keypoints, or polygons"), ((-0.7,), "an angle, a confidence")]
)
def test_lines_that_may_be_two_things_are_an_error_that_the_option_settles(tmp_path, more, doubt):
    _dataset(tmp_path, [_line(box, *more) for box in BOXES])
    with pytest.raises(ValueError, match=f"{doubt}.*lines='boxes'"):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, lines="boxes")
    np.testing.assert_allclose(index.annotations.boxes_xyxy, _corners(BOXES), atol=1e-3)


def test_the_option_reads_polygons(tmp_path):
    _dataset(tmp_path, [_line(box, 0.1, 0.1, 0.9, 0.9) for box in BOXES])
    boxes = open_dataset(tmp_path, lines="polygons").annotations.boxes_xyxy
    np.testing.assert_allclose(boxes, [[20, 10, 180, 90]] * 4, atol=1e-3)


@pytest.mark.parametrize("box_format", ["cxcywh", "xyxy", "xywh", "xyxy_normalized"])
def test_pixels_and_corners_are_an_error_with_the_option_that_reads_them(tmp_path, box_format):
    kind, _, relative = box_format.partition("_")
    corners = _corners(BOXES)
    start, end = corners[:, :2], corners[:, 2:]
    pairs = {"cxcywh": ((start + end) / 2, end - start), "xyxy": (start, end), "xywh": (start, end - start)}
    written = np.concatenate(pairs[kind], -1) / ([WIDTH, HEIGHT, WIDTH, HEIGHT] if relative else 1)
    _dataset(tmp_path, [_line(tuple(box)) for box in written.tolist()])
    with pytest.raises(ValueError, match=f"box_format='{box_format}'"):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, box_format=box_format)
    np.testing.assert_allclose(index.annotations.boxes_xyxy, corners, atol=1e-3)
    report = check_dataset(tmp_path, pixels="none")
    assert report.errors == 1
    np.testing.assert_allclose(report.index.annotations.boxes_xyxy, corners, atol=1e-3)


def test_boxes_relative_to_the_image_without_its_exif_orientation(tmp_path):
    _dataset(tmp_path, [_line(BOXES[0])])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "0.png", exif=exif)
    record = open_dataset(tmp_path).images[0]
    assert (record.height, record.width) == (WIDTH, HEIGHT)
    record = open_dataset(tmp_path, boxes="stored").images[0]
    assert (record.height, record.width, record.ignores_exif) == (HEIGHT, WIDTH, True)
