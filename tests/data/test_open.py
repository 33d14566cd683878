"""Every format gives the same index, and problems are reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_detr.data import open_dataset
from modeling_detr.structures_detr import DetectionIndex


def _boxes_by_file(index: DetectionIndex) -> dict[str, list]:
    found = {}
    for position, record in enumerate(index.images):
        rows = index.annotation_rows(position)
        names = [index.id2label[label] for label in index.annotations.label[rows].tolist()]
        found[Path(record.path).stem] = [
            (record.height, record.width),
            sorted(zip(names, np.round(index.annotations.boxes_xyxy[rows], 6).tolist(), strict=True)),
        ]
    return found


def test_the_same_images_in_three_formats_give_the_same_boxes(coco_folder, voc_folder, yolo_folder):
    coco, voc, yolo = (open_dataset(folder) for folder in (coco_folder, voc_folder, yolo_folder))
    assert _boxes_by_file(coco) == _boxes_by_file(voc) == _boxes_by_file(yolo)
    assert _boxes_by_file(coco)["a"] == [(60, 80), [("cat", [10, 20, 40, 50]), ("dog", [0, 0, 80, 60])]]
    for index in (coco, voc, yolo):
        assert {name: len(members) for name, members in index.splits.items()} == {"train": 2, "val": 2}
        assert index.id2label == {0: "cat", 1: "dog"}
        assert index.annotations.area.tolist() == pytest.approx([900, 4800, 344.375, 4])
        assert not index.annotations.is_crowd.any()


def test_labels_do_not_depend_on_the_split(yolo_folder):
    assert open_dataset(yolo_folder, "val").id2label == open_dataset(yolo_folder).id2label
    assert len(open_dataset(yolo_folder, "train+val")) == 4
    with pytest.raises(ValueError, match="has no split 'tset'; its splits are: train, val"):
        open_dataset(yolo_folder, "tset")


def test_real_datasets_are_read_completely(real_data):
    bccd = open_dataset(real_data / "bccd")
    assert (len(bccd), len(bccd.annotations)) == (364, 4886)
    assert {name: len(members) for name, members in bccd.splits.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
        "trainval": 292,
    }
    assert [note for note in bccd.notes if note.startswith("2 boxes have zero area")]

    dino = open_dataset(real_data / "dino_yolo")
    assert (len(dino), len(dino.annotations)) == (686, 1830)
    assert {name: len(members) for name, members in dino.splits.items()} == {"train": 582, "val": 59, "test": 45}
    assert dino.id2label == {0: "bird", 1: "cactus", 2: "dino"}

    coco = open_dataset(real_data / "coco_sample")
    content = [json.loads(file.read_text()) for file in sorted(real_data.glob("coco_sample/annotations/*.json"))]
    assert len(coco) == sum(len(part["images"]) for part in content) == 33
    assert len(coco.annotations) == sum(len(part["annotations"]) for part in content)
    assert [category.id for category in coco.categories] == sorted(entry["id"] for entry in content[0]["categories"])


def test_a_dataset_in_a_single_subfolder_is_found(tmp_path, yolo_folder):
    outer = tmp_path / "download" / "unpacked"
    outer.parent.mkdir()
    shutil.move(yolo_folder, outer)
    assert len(open_dataset(tmp_path / "download")) == 4


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"an empty folder; pass the folder of a dataset"):
        open_dataset(tmp_path)


def test_an_unrecognised_folder_is_an_error_that_names_the_formats(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"found only holiday\.jpg, no annotations; .*\*\.json \(coco\).*\*\.xml"):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="format: got 'yollo'; did you mean 'yolo'"):
        open_dataset(tmp_path, format="yollo")


def test_a_folder_in_two_formats_is_an_error_that_names_the_option(coco_folder, voc_folder):
    shutil.copytree(voc_folder / "Annotations", coco_folder / "xml")
    with pytest.raises(
        ValueError, match=r"could be read as coco or as voc; .* or choose the format \(format='coco'\)"
    ):
        open_dataset(coco_folder)
    assert len(open_dataset(coco_folder, format="coco")) == 4


def test_a_built_in_dataset_opened_with_another_format_names_the_right_one():
    with pytest.raises(FileNotFoundError, match=r"read as format 'coco'; choose another format \(format='shapes'\)"):
        open_dataset("shapes?size=64", format="coco")
