"""Boxes of photos that EXIF turns: on the upright image, or on the image as stored."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_detr.data import open_dataset, read_image
from modeling_detr.data.check import check_dataset
from modeling_detr.structures_detr import DetectionIndex


STORED = (90, 120)  # height, width
FITS_BOTH = (8, 26, 31, 56)
FITS_UPRIGHT = (20, 70, 60, 115)
FITS_STORED = (70, 20, 115, 60)


def _photo(path: Path, box: tuple[int, int, int, int], drawn_on: str, orientation: int = 6) -> None:
    """Write a black photo with a white box, which EXIF turns by 90 degrees."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = orientation in (6, 8)
    height, width = STORED[::-1] if turned and drawn_on == "upright" else STORED
    pixels = np.zeros((height, width), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    if drawn_on == "upright":
        pixels = np.rot90(pixels, {6: 1, 8: -1, 3: 2}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert("RGB").save(path, quality=95, exif=exif)


def _coco(root: Path, box: tuple[int, int, int, int], drawn_on: str, orientation: int = 6) -> Path:
    _photo(root / "a.jpg", box, drawn_on, orientation)
    bbox = [*box[:2], box[2] - box[0], box[3] - box[1]]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": STORED[0], "width": STORED[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    return root


def _voc(root: Path, box: tuple[int, int, int, int], drawn_on: str, orientation: int = 6) -> Path:
    _photo(root / "a.jpg", box, drawn_on, orientation)
    x0, y0, x1, y1 = box
    (root / "a.xml").write_text(
        f"<annotation><size><height>{STORED[0]}</height><width>{STORED[1]}</width></size>"
        f"<object><name>cat</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object></annotation>"
    )
    return root


def _hf(root: Path, box: tuple[int, int, int, int], drawn_on: str, orientation: int = 6) -> Path:
    datasets = pytest.importorskip("datasets")
    _photo(root / "files" / "a.jpg", box, drawn_on, orientation)
    rows = {
        "image": [str(root / "files" / "a.jpg")],
        "height": [STORED[0]],
        "width": [STORED[1]],
        "objects": [{"bbox": [[*box[:2], box[2] - box[0], box[3] - box[1]]], "category": [0]}],
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(root / "train.parquet"))
    return root


def _is_on_its_object(index: DetectionIndex) -> bool:
    """Whether the box of the only image is white inside, and the rest black."""
    x0, y0, x1, y1 = index.annotations.boxes_xyxy[0].round().astype(int).tolist()
    pixels = read_image(index.images[0]).float().mean(0)
    inside = pixels[y0:y1, x0:x1]
    return bool(inside.mean() > 250 and pixels.sum() - inside.sum() < 0.1 * inside.sum())


@pytest.mark.parametrize("write", [_coco, _voc, _hf])
@pytest.mark.parametrize(("box", "drawn_on"), [(FITS_UPRIGHT, "upright"), (FITS_STORED, "stored")])
def test_boxes_that_fit_only_one_image_prove_where_they_were_drawn(tmp_path, write, box, drawn_on):
    index = open_dataset(write(tmp_path, box, drawn_on))
    assert _is_on_its_object(index)
    assert any(f"drawn on the {drawn_on} image (1 box fits only" in note for note in index.notes)


@pytest.mark.parametrize("write", [_coco, _voc, _hf])
@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
@pytest.mark.parametrize("orientation", [6, 8, 3])
def test_the_option_settles_what_the_boxes_leave_open(tmp_path, write, drawn_on, orientation):
    folder = write(tmp_path, FITS_BOTH, drawn_on, orientation)
    assert _is_on_its_object(open_dataset(folder, boxes=drawn_on))


def _label_studio(root: Path, box: tuple[int, int, int, int], drawn_on: str, orientation: int) -> Path:
    _photo(root / "a.jpg", box, drawn_on, orientation)
    height, width = STORED[::-1] if drawn_on == "upright" and orientation in (6, 8) else STORED
    x0, y0, x1, y1 = (100 * value / side for value, side in zip(box, (width, height) * 2, strict=True))
    value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rectanglelabels": ["cat"]}
    result = {"type": "rectanglelabels", "value": value, "original_width": STORED[1], "original_height": STORED[0]}
    tasks = [{"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": [result]}]}]
    (root / "tasks.json").write_text(json.dumps(tasks))
    return root


def _yolo(root: Path, box: tuple[int, int, int, int], drawn_on: str, orientation: int) -> Path:
    _photo(root / "a.jpg", box, drawn_on, orientation)
    height, width = STORED[::-1] if drawn_on == "upright" and orientation in (6, 8) else STORED
    x0, y0, x1, y1 = (value / side for value, side in zip(box, (width, height) * 2, strict=True))
    (root / "a.txt").write_text(f"0 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}")
    (root / "classes.txt").write_text("cat")
    return root


@pytest.mark.parametrize(
    ("write", "orientation"), [(_label_studio, 6), (_label_studio, 3), (_yolo, 6), (_yolo, 3), (_coco, 3)]
)
@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
def test_without_a_size_that_tells_the_upright_image_is_taken_and_reported(tmp_path, write, orientation, drawn_on):
    folder = write(tmp_path, FITS_BOTH, drawn_on, orientation)
    report = check_dataset(folder)
    assert _is_on_its_object(report.index) == (drawn_on == "upright")
    (finding,) = [finding for finding in report.findings if finding.kind == "EXIF orientation"]
    assert finding.settings == {"boxes": "stored"}
    assert _is_on_its_object(open_dataset(folder, boxes=drawn_on))


def test_an_image_whose_boxes_fit_both_is_a_finding_with_the_option(tmp_path):
    report = check_dataset(_coco(tmp_path, FITS_BOTH, "upright"))
    (finding,) = [finding for finding in report.findings if finding.kind == "EXIF orientation"]
    assert finding.where.endswith("a.jpg")
    assert finding.settings == {"boxes": "upright"}
    settled = check_dataset(tmp_path, reading={"boxes": "upright"})
    assert not settled.findings


def test_turned_images_of_a_large_dataset_are_found_by_their_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_detr.data.orientation._MAX_EXAMINED", 1)
    _coco(tmp_path, FITS_UPRIGHT, "upright")
    content = json.loads((tmp_path / "a.json").read_text())
    for number in (2, 3, 0):  # before and after
        Image.new("RGB", STORED[::-1]).save(tmp_path / f"{number}.jpg")
        image = {"id": number, "file_name": f"{number}.jpg", "height": STORED[0], "width": STORED[1]}
        content["images"].insert(number and len(content["images"]), image)
    (tmp_path / "a.json").write_text(json.dumps(content))
    sizes = [(record.height, record.width) for record in open_dataset(tmp_path).images]
    assert sizes == [STORED, STORED[::-1], STORED, STORED]
    (tmp_path / "a.json").write_text(json.dumps({**content, "images": content["images"][2:], "annotations": []}))
    assert "EXIF turns none of the 1 of 2 images that were examined" in open_dataset(tmp_path).notes[-1]
