"""What a conversion carries besides boxes: masks, crowd regions, marks and scores; and what it says it cannot."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from modeling_detr.commands.data import main
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.mask_outlines import joined, pixel_outlines
from modeling_detr.data.open import open_dataset


RING = np.zeros((60, 80), np.uint8)
RING[10:40, 20:60] = 1
RING[20:30, 30:50] = 0


def runs(mask: np.ndarray, compressed: bool) -> dict:
    if compressed:
        written = coco_mask.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": written["counts"].decode()}
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()}


def annotated(folder: Path, *annotations: dict) -> Path:
    """The fixture's dataset with other annotations of its image `a.jpg` (60x80), all of the class cat."""
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    entries = [{"id": number, "image_id": 1, "category_id": 1} | entry for number, entry in enumerate(annotations, 1)]
    file.write_text(json.dumps(content | {"annotations": entries}))
    return folder


@pytest.fixture
def rich(coco_folder):
    """Polygons of two parts, two kinds of RLE with a hole, a box without a mask, a crowd region, marks and scores."""
    parts = [[1, 1, 20, 1, 20, 8, 1, 8], [5.5, 40, 15, 40, 10, 55]]
    return annotated(
        coco_folder,
        {"bbox": [1, 1, 19, 54], "segmentation": parts, "difficult": 1, "score": 0.5},
        {"bbox": [20, 10, 40, 30], "segmentation": runs(RING, True), "area": 1000, "score": 0.25},
        {"bbox": [20, 10, 40, 30], "segmentation": runs(RING, False), "occluded": True, "score": 1},
        {"bbox": [60, 40, 10, 12], "truncated": 1, "attributes": {"occluded": True, "difficult": False}, "score": 0},
        {"bbox": [0, 0, 80, 60], "segmentation": runs(1 - RING, False), "iscrowd": 1},
    )


def masks_of(index, image=0):
    return index.read_masks(image)


def test_coco_keeps_everything(rich, tmp_path):
    before = open_dataset(rich, task="conversion")
    written = convert_dataset(before, tmp_path / "new", "coco")
    after = open_dataset(tmp_path / "new", task="conversion")
    assert written.notes == ()
    assert written.contents | {"areas": 0} == {
        "masks": 4, "crowds": 1, "difficult": 1, "truncated": 1, "occluded": 2, "score": 4, "areas": 0, "image_ids": 4
    }  # fmt: skip
    assert written.smallest_overlap == 1
    np.testing.assert_array_equal(masks_of(after), masks_of(before))
    assert after.annotations.masks.is_present.tolist() == [True, True, True, False, True, False]
    assert after.annotations.area[1] == 1000
    for name, values in before.annotations.attributes.items():
        np.testing.assert_array_equal(after.annotations.attributes[name], values)
    truth = COCO(tmp_path / "new" / "annotations" / "instances_train.json")  # as another tool reads it
    for entry, mask in zip(truth.loadAnns(truth.getAnnIds(imgIds=1)), masks_of(before), strict=True):
        if "segmentation" in entry:
            np.testing.assert_array_equal(truth.annToMask(entry), mask)
    first = truth.loadAnns(1)[0]
    assert first["segmentation"] == [[1, 1, 20, 1, 20, 8, 1, 8], [5.5, 40, 15, 40, 10, 55]]
    assert (first["difficult"], first["ignore"], first["iscrowd"]) == (1, 1, 0)


def test_yolo_gets_one_polygon_for_each_object_and_says_what_it_does_not_hold(rich, tmp_path, capsys):
    assert main(["convert", str(rich), str(tmp_path / "new"), "--to", "yolo"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 crowd region, 1 object marked as difficult, 1 object marked as truncated, 2 objects marked as" in text
    assert "are not written: yolo holds a class and a box or a polygon" in text
    assert "3 masks of several parts or with holes" in text
    assert "2 objects without a mask written as the corners of the box" in text
    before = masks_of(open_dataset(rich, task="conversion"))
    index = open_dataset(tmp_path / "new", task="instance")
    after = {Path(record.path).name: image for image, record in enumerate(index.images)}["a.jpg"]
    for mask, other in zip(before[:3], masks_of(index, after), strict=False):
        assert np.count_nonzero(mask & other) / np.count_nonzero(mask | other) > 0.9
    np.testing.assert_array_equal(masks_of(index, after)[1], RING)
    lines = (tmp_path / "new" / "labels" / "train" / "a.txt").read_text().splitlines()
    assert [len(line.split()) % 2 for line in lines] == [1] * 4  # without scores: one object of the dataset has none


def test_scores_become_the_last_column_of_yolo_and_return(coco_folder, tmp_path):
    for split in ("train", "val"):
        file = coco_folder / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["score"] = 0.125 * (1 + entry["id"])
        file.write_text(json.dumps(content))
    convert_dataset(open_dataset(coco_folder, task="conversion"), tmp_path / "yolo", "yolo")
    assert (tmp_path / "yolo" / "labels" / "train" / "b.txt").read_text().split()[5:] == ["0.375"]
    convert_dataset(open_dataset(tmp_path / "yolo", task="conversion"), tmp_path / "back", "coco")
    scores = open_dataset(tmp_path / "back").annotations.attributes["score"]
    assert sorted(scores.tolist()) == [0.125, 0.125, 0.25, 0.375]


def test_voc_and_coco_exchange_marks_and_the_rest_is_reported_once(rich, tmp_path, capsys):
    assert main(["convert", str(rich), str(tmp_path / "voc"), "--to", "voc"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("4 masks, 1 crowd region, 4 scores") == 1
    assert "are not written: voc holds a class, a box and the marks difficult, truncated and occluded." in text
    assert "4 images, 5 boxes, 1 object marked as difficult, 1 object marked as truncated, 2 objects" in text
    convert_dataset(open_dataset(tmp_path / "voc", task="conversion"), tmp_path / "back", "coco")
    content = json.loads((tmp_path / "back" / "annotations" / "instances_train.json").read_text())
    marks = [[entry.get(name) for name in ("difficult", "truncated", "occluded")] for entry in content["annotations"]]
    assert marks == [[1, None, None], [0, None, None], [0, None, 1], [0, 1, 1]]


def test_what_is_not_wanted_is_left_out_and_boxes_stay_as_they_are(rich, tmp_path, capsys):
    arguments = ["convert", str(rich), str(tmp_path / "new"), "--to", "yolo", "--without", "masks", "areas"]
    assert main(arguments) == 0
    assert "4 masks and" in (text := " ".join(capsys.readouterr().out.split()))
    assert "are not written, as requested by without." in text
    index = open_dataset(tmp_path / "new")
    assert index.annotations.boxes_xyxy[1] == pytest.approx([20, 10, 60, 40])


def test_a_mask_that_cannot_be_read_costs_the_mask_only(coco_folder, tmp_path):
    broken = {"bbox": [1, 1, 5, 5], "segmentation": [[1, 1, float("1e300"), 1, 5, 5]]}
    annotated(coco_folder, broken, {"bbox": [3, 3, 5, 5], "segmentation": [[3, 3, 8, 3, 8, 8, 3, 8]]})
    index = open_dataset(coco_folder, task="conversion")
    assert any("1 mask left out, but not the box" in note for note in index.notes)
    written = convert_dataset(index, tmp_path / "new", "coco")
    assert (written.boxes, written.contents["masks"]) == (3, 1)


def test_an_image_of_two_splits_is_written_once_with_its_masks(rich, tmp_path):
    (rich / "annotations" / "instances_trainval.json").write_text(
        (rich / "annotations" / "instances_train.json").read_text()
    )
    written = convert_dataset(open_dataset(rich, task="conversion"), tmp_path / "new", "coco")
    assert written.images == 4
    assert len([*(tmp_path / "new").rglob("a*.jpg")]) == 1
    assert len(open_dataset(tmp_path / "new", "trainval").annotations) == 5


def test_panoptic_segments_become_instance_masks(tmp_path):
    index = open_dataset("shapes?size=48&train=3&val=0&panoptic=true", task="conversion")
    written = convert_dataset(index, tmp_path / "new", "coco")
    after = open_dataset(tmp_path / "new", task="instance")
    for image in range(3):
        np.testing.assert_array_equal(masks_of(after, image), masks_of(index, image))
    assert written.contents["masks"] == len(after.annotations)


def test_outlines_give_back_any_mask_to_the_pixel():
    generator = np.random.default_rng(0)
    for _ in range(50):
        height, width = generator.integers(1, 24, 2).tolist()
        mask = generator.random((height, width)) < generator.random()
        outlines = pixel_outlines(mask)
        if not mask.any():
            assert not outlines
            continue
        polygon = [joined(outlines).ravel().tolist()]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, height, width)))
        np.testing.assert_array_equal(drawn, mask)


def test_a_clean_copy_keeps_masks_and_marks(rich, tmp_path):
    assert main(["check", str(rich), "--fix", str(tmp_path / "clean"), "--no_html"]) == 0
    table = open_dataset(tmp_path / "clean", task="conversion").annotations
    assert int(table.masks.is_present.sum()) == 3  # without the duplicate
    assert np.nansum(table.attributes["difficult"]) == 1


def test_splits_whose_names_are_not_read_back_keep_their_images_apart(rich, tmp_path):
    (rich / "val" / "d.jpg").rename(rich / "val" / "a.jpg")
    file = rich / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("d.jpg", "a.jpg"))
    index = open_dataset(rich, task="conversion")
    index = dataclasses.replace(index, splits={"my coco": index.splits["train"], "my-val": index.splits["val"]})
    assert convert_dataset(index, tmp_path / "new", "coco").images == 4


@pytest.mark.parametrize(("to", "overlap"), [("cvat", 1), ("label_studio", 0.9)])
def test_annotation_tools_get_shapes_to_correct(rich, tmp_path, to, overlap):
    before = open_dataset(rich, task="conversion")
    written = convert_dataset(before, tmp_path / "new", to)
    after = open_dataset(tmp_path / "new", task="conversion")
    assert (written.boxes, written.contents["masks"]) == (5, 3)
    image = {Path(record.path).name: image for image, record in enumerate(after.images)}["a.jpg"]
    for mask, other in zip(masks_of(before)[:4], masks_of(after, image), strict=True):
        assert np.count_nonzero(mask & other) >= overlap * np.count_nonzero(mask | other)
    assert set(after.splits) == {"train", "val"}
    assert after.annotations.masks.is_present.tolist().count(True) == 3
    if to == "cvat":
        assert np.nansum(after.annotations.attributes["occluded"]) == 2
