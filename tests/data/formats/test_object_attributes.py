"""Marks and scores of objects, as each tool writes them."""

import json

import numpy as np
import pytest
from export_samples import SAMPLES, open_images, via, write
from PIL import Image

from modeling_detr.commands.data import main
from modeling_detr.data import open_dataset
from modeling_detr.data.check import check_dataset
from modeling_detr.errors_detr import DatasetError


OCCLUDED = {  # format → a text in one of its files, and the same with marks and another attribute
    "labelme": ('"shape_type": "rectangle", "flags": {}', '"flags": {"occluded": true, "blurred": true, "x": false}'),
    "cvat": ('occluded="0"', 'occluded="1"'),
    "kitti": ("cat 0.00 0", "cat 0.50 2"),
    "open_images": ("0.8333333333333334,0,0,0,0,0", "0.8333333333333334,1,1,0,1,-1"),
    "datumaro": ('"occluded": false', '"occluded": true, "blurred": true'),
    "via": ('{"label": "cat"}', '{"label": "cat", "occluded": "yes", "blurred": "1"}'),
    "supervisely": ('"classTitle": "cat"', '"classTitle": "cat", "tags": [{"name": "Occluded"}, {"name": "blurred"}]'),
}


@pytest.mark.parametrize("name", OCCLUDED)
def test_marks_are_kept_and_other_attributes_are_named(name, tmp_path, capsys):
    SAMPLES[name](tmp_path / "data")
    old, new = OCCLUDED[name]
    changed = 0
    for file in (tmp_path / "data").rglob("*.*"):
        if file.suffix in (".json", ".xml", ".txt", ".csv") and old in file.read_text() and not changed:
            file.write_text(file.read_text().replace(old, new, 1))
            changed = 1
    assert changed
    report = check_dataset(tmp_path / "data", pixels="none")
    assert not report.errors
    assert np.nansum(report.index.annotations.attributes["occluded"]) == 1
    assert ("truncated" in report.index.annotations.attributes) == (name in ("kitti", "open_images"))
    if "blurred" in new or name == "open_images":
        other = "IsDepiction (1)" if name == "open_images" else "blurred (1)"
        assert f"attributes of objects that are not used: {other}" in report.facts
    assert main(["check", str(tmp_path / "data"), "--no_html"]) == 0
    assert "1 object marked as occluded" in " ".join(capsys.readouterr().out.split())


def test_what_anylabeling_adds_to_a_shape_is_kept(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[1, 1], [9, 9]], "difficult": True, "score": 0.75}
    write(tmp_path / "a.json", {"shapes": [shape], "imagePath": "a.png", "imageHeight": 30, "imageWidth": 40})
    attributes = open_dataset(tmp_path).annotations.attributes
    assert {name: values.tolist() for name, values in attributes.items()} == {"difficult": [1], "score": [0.75]}


def test_other_keys_of_coco_annotations_are_named(coco_folder):
    file = coco_folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0] |= {
        "keypoints": [1, 2, 2],
        "ignore": 1,
        "attributes": {"occluded": True, "pose": "left"},
    }
    file.write_text(json.dumps(content))
    report = check_dataset(coco_folder, pixels="none")
    (fact,) = report.facts
    assert fact == "instances_train.json: keys of annotations that are not used: keypoints (1), pose (1)"
    attributes = report.index.annotations.attributes
    assert (np.nansum(attributes["difficult"]), np.nansum(attributes["occluded"])) == (1, 1)


def test_videos_of_kitti_are_read_frame_by_frame(tmp_path):
    folder = tmp_path / "video"
    for frame in range(3):
        (folder / "image_02" / "0000").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(folder / "image_02" / "0000" / f"{frame:06d}.png")
    line = "{} {} Car 0 1 -1.57 {} 10 30 40 1 1 1 1 1 1 0.1\n"
    write(folder / "label_02" / "0000.txt", line.format(0, 7, 5) + line.format(2, 7, 6) + line.format(2, 8, 9))
    index = open_dataset(folder)
    assert index.id2label == {0: "Car"}
    found = [
        (index.images[i].path[-5:], box[0])
        for i, box in zip(index.annotations.image_index, index.annotations.boxes_xyxy, strict=True)
    ]
    assert found == [("0.png", 5), ("2.png", 6), ("2.png", 9)]
    assert len(index) == 3  # one frame without objects


def test_masks_of_open_images_without_boxes_are_an_error_and_beside_them_a_note(tmp_path):
    open_images(tmp_path)
    header = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks\n"
    write(tmp_path / "train-annotations-object-segmentation.csv", header)
    assert any("1 file of masks not read" in note for note in open_dataset(tmp_path).notes)
    (tmp_path / "oidv6-train-annotations-bbox.csv").unlink()
    with pytest.raises(DatasetError, match="lists masks, of which the boxes are not there"):
        open_dataset(tmp_path)


def test_a_circle_past_the_edge_gets_the_box_of_what_is_visible(tmp_path):
    via(tmp_path)
    file = tmp_path / "via_project.json"
    content = json.loads(file.read_text())
    (entry, *_) = content["_via_img_metadata"].values()
    circle = {"name": "circle", "cx": -3, "cy": 30, "r": 5}
    entry["regions"] = [{"shape_attributes": circle, "region_attributes": {"label": "cat"}}]
    file.write_text(json.dumps(content))
    index = open_dataset(tmp_path)
    box = index.annotations.boxes_xyxy[index.annotations.label == list(index.id2label.values()).index("cat")][0]
    assert box == pytest.approx([0, 26, 2, 34], abs=0.05)
    assert any("boxes are those around the visible parts" in note for note in index.notes)


def test_fields_of_a_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    objects = {
        "bbox": [[1, 1, 5, 5], [2, 2, 8, 8]],
        "category": [0, 0],
        "score": [0.5, None],
        "id": [1, 2],
        "note": ["a", "b"],
    }
    rows = {"image": [Image.new("RGB", (40, 30))], "objects": [objects]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "hf"))
    report = check_dataset(tmp_path / "hf", pixels="none")
    assert report.index.annotations.attributes["score"].tolist() == [0.5, pytest.approx(np.nan, nan_ok=True)]
    assert report.facts[0] == "fields of objects that are not used: note"
