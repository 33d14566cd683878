import dataclasses

import numpy as np
import pytest

from modeling_detr.commands.data import main
from modeling_detr.data import convert
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.open import open_dataset


def by_name(index):
    table = index.annotations
    return sorted(
        (index.images[image].path.rpartition("/")[2], index.categories[label].name, *np.round(box, 2).tolist())
        for image, label, box in zip(table.image_index, table.label, table.boxes_xyxy, strict=True)
    )


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("source", ["coco_folder", "yolo_folder", "voc_folder"])
def test_every_format_becomes_every_other_split_by_split(source, to, tmp_path, request):
    before = open_dataset(request.getfixturevalue(source))
    written = convert_dataset(before, tmp_path / "new", to)
    after = open_dataset(tmp_path / "new")
    assert (written.images, written.boxes) == (4, 4)
    assert by_name(after) == by_name(before)
    for split in ("train", "val"):
        assert by_name(after.split(split)) == by_name(before.split(split))


def test_overlapping_splits_and_equal_names_in_other_folders_are_kept(tmp_path, coco_folder):
    (coco_folder / "val" / "d.jpg").rename(coco_folder / "val" / "a.jpg")
    file = coco_folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("d.jpg", "a.jpg"))
    index = open_dataset(coco_folder)
    index = dataclasses.replace(index, splits={**index.splits, "trainval": np.arange(4)})
    for to in ("coco", "yolo", "voc"):
        convert_dataset(index, tmp_path / f"new_{to}", to)
    assert {name: len(members) for name, members in open_dataset(tmp_path / "new_voc").splits.items()} == {
        "train": 2,
        "trainval": 4,
        "val": 2,
    }
    assert len(open_dataset(tmp_path / "new_yolo")) == 4
    assert len(open_dataset(tmp_path / "new_coco").split("trainval").annotations) == 4


def test_an_existing_target_is_an_error_and_an_interruption_leaves_nothing_behind(coco_folder, tmp_path, monkeypatch):
    index = open_dataset(coco_folder)
    with pytest.raises(FileExistsError, match="exists"):
        convert_dataset(index, coco_folder, "voc")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "open_dataset", interrupted)
    (tmp_path / "place").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(index, tmp_path / "place" / "new", "voc")
    assert not [*(tmp_path / "place").iterdir()]


def test_crowds_are_dropped_if_the_format_has_none(coco_folder, tmp_path):
    index = open_dataset(coco_folder)
    crowd = np.array([True, False, False, False])
    index = dataclasses.replace(index, annotations=dataclasses.replace(index.annotations, is_crowd=crowd))
    notes = convert_dataset(index, tmp_path / "yolo", "yolo").notes
    assert [note for note in notes if "no crowd regions: 1" in note]
    assert convert_dataset(index, tmp_path / "new", "coco").boxes == 4
    assert open_dataset(tmp_path / "new").annotations.is_crowd.sum() == 1


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_boxes_of_stuff_classes_are_reported(to, tmp_path):
    index = open_dataset("shapes?size=32&train=2&val=0&panoptic=true")
    notes = convert_dataset(index, tmp_path / to, to).notes
    assert "2 boxes of stuff (ground) written as things." in notes


def test_show_writes_a_page_and_a_picture(voc_folder, tmp_path):
    arguments = ["show", str(voc_folder), "--output_dir", str(tmp_path / "g"), "--num_images", "2", "--draws", "1"]
    assert main([*arguments, "--shortest_edge", "64"]) == 0
    page = (tmp_path / "g" / "gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert (tmp_path / "g" / "gallery.png").stat().st_size > 0
