"""COCO annotations with a segmentation and without a box."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from modeling_detr.data import open_dataset


def _polygon(box: list[float], size: list[int]) -> object:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _rle(box: list[float], size: list[int]) -> object:
    x, y, width, height = map(int, box)
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    encoded = coco_mask.encode(mask)
    return {"size": size, "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("segment", [_polygon, _rle])
@pytest.mark.parametrize("absent", ["missing", None, [], [0, 0, 0, 0]])
@pytest.mark.parametrize("task", ["detection", "instance"])
def test_the_box_around_the_mask_is_used(coco_folder, segment, absent, task):
    expected = open_dataset(coco_folder).annotations.boxes_xyxy
    for file in (coco_folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        size_of = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
        for entry in content["annotations"]:
            entry["segmentation"] = segment(entry["bbox"], size_of[entry["image_id"]])
            entry["bbox"] = absent
            if absent == "missing":
                del entry["bbox"]
        file.write_text(json.dumps(content))
    index = open_dataset(coco_folder, task=task)
    np.testing.assert_allclose(index.annotations.boxes_xyxy, expected, atol=1 if segment is _rle else 1e-9)
    assert any("the boxes are those around the masks" in note for note in index.notes)
