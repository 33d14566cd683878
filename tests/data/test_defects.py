"""Defects of real datasets: each is handled and reported, or refused with its location."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_detr.commands import data
from modeling_detr.data import open_dataset, read_image
from modeling_detr.data.findings import Findings
from modeling_detr.data.labels import with_raw_labels
from modeling_detr.structures_detr import ImageRecord


Edit = Callable[[Path, str, str], None]


def test_numbers_with_a_decimal_comma_are_read(voc_folder: Path, yolo_folder: Path, edit: Edit) -> None:
    edit(voc_folder / "Annotations" / "b.xml", "<ymin>6.25</ymin>", "<ymin>6,25</ymin>")
    label = yolo_folder / "labels" / "train" / "b.txt"
    label.write_text(label.read_text().replace(".", ","))
    for folder in (voc_folder, yolo_folder):
        index = open_dataset(folder, "train")
        np.testing.assert_allclose(index.annotations.boxes_xyxy[2], [5.5, 6.25, 20, 30])


def test_exact_duplicates_are_kept_and_reported(coco_folder: Path) -> None:
    file = coco_folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"] += [dict(content["annotations"][0], id=90), dict(content["annotations"][1], id=91)]
    other_class = dict(content["annotations"][2], id=92, category_id=1)
    content["annotations"].append(other_class)
    file.write_text(json.dumps(content))

    index = open_dataset(coco_folder, "train")

    assert len(index.annotations) == 6
    (note,) = (note for note in index.notes if "exact duplicates" in note)
    assert note.startswith("2 exact duplicates of another box")
    assert "annotation 90 of image 1" in note


def test_difficult_objects_are_kept_unless_drop_difficult_is_set(voc_folder: Path, edit: Edit) -> None:
    edit(voc_folder / "Annotations" / "b.xml", "<difficult>1</difficult>", "<difficult>0</difficult>")
    assert len(open_dataset(voc_folder, "train").annotations) == 3

    index = open_dataset(voc_folder, "train", drop_difficult=True)

    assert len(index.annotations) == 1
    assert any("3 objects marked as difficult, left out" in note for note in index.notes)


def test_an_option_of_another_format_is_refused(coco_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"format 'coco' has no option 'drop_difficult'; .*\(format='voc'\)"):
        open_dataset(coco_folder, drop_difficult=True)


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_an_image_outside_the_root_is_an_error_unless_its_folder_is_allowed(
    form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root: Path = request.getfixturevalue(f"{form}_folder")
    inside = next(root.rglob("a.jpg"))
    outside = tmp_path / "elsewhere" / "a.jpg"
    outside.parent.mkdir()
    shutil.move(inside, outside)
    inside.symlink_to(outside)

    with pytest.raises(ValueError, match=r"a\.jpg: is outside the dataset's folder .*\(images='.*elsewhere'\)"):
        open_dataset(root)
    findings = Findings(collects=True)
    open_dataset(root, findings=findings)
    assert [finding.kind for finding in findings.items if finding.severity == "error"] == ["path outside"]
    assert len(open_dataset(root, images=outside.parent)) == 4


def test_images_can_be_in_any_folder_that_is_given(tmp_path: Path, coco_folder: Path) -> None:
    file = tmp_path / "alone" / "train.json"
    file.parent.mkdir()
    file.write_text((coco_folder / "annotations" / "instances_train.json").read_text())

    index = open_dataset(file, images=coco_folder / "train")

    assert [Path(image.path).parent for image in index.images] == [coco_folder / "train"] * 2
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_dataset(file, images="nowhere")


def test_a_yaml_that_points_outside_its_folder_is_an_error(yolo_folder: Path, tmp_path: Path, edit: Edit) -> None:
    shutil.move(yolo_folder / "images" / "val", tmp_path / "strangers")
    edit(yolo_folder / "data.yaml", "val: images/val", f"val: {tmp_path / 'strangers'}")
    with pytest.raises(ValueError, match=r"strangers/: is outside"):
        open_dataset(yolo_folder)
    assert len(open_dataset(yolo_folder, images=tmp_path / "strangers").split("val")) == 2


@pytest.mark.parametrize("absolute", [True, False])
def test_a_yaml_whose_path_leads_outside_is_an_error_unless_that_folder_is_allowed(
    yolo_folder: Path, tmp_path: Path, edit: Edit, absolute: bool
) -> None:
    (tmp_path / "strangers").mkdir()
    shutil.move(yolo_folder / "images", tmp_path / "strangers" / "images")
    shutil.move(yolo_folder / "labels", tmp_path / "strangers" / "labels")
    path = tmp_path / "strangers" if absolute else "../strangers"
    edit(yolo_folder / "data.yaml", "train:", f"path: {path}\ntrain:")

    with pytest.raises(ValueError, match=r"'path: .*strangers': is outside .*yolo, .*\(images='.*/strangers'\)"):
        open_dataset(yolo_folder)
    findings = Findings(collects=True)
    with pytest.raises(FileNotFoundError):  # nothing is left inside
        open_dataset(yolo_folder, findings=findings)
    assert "path outside" in {finding.kind for finding in findings.items}
    assert len(open_dataset(yolo_folder, images=tmp_path / "strangers")) == 4


@pytest.mark.parametrize("path", [".", "", "../yolo", "{root}", "/dead/machine", "../dead/machine", "datasets/dead"])
def test_a_yaml_whose_path_is_inside_or_does_not_exist_is_read(yolo_folder: Path, edit: Edit, path: str) -> None:
    edit(yolo_folder / "data.yaml", "train:", f"path: '{path.format(root=yolo_folder)}'\ntrain:")
    assert len(open_dataset(yolo_folder)) == 4


def test_a_dataset_that_is_a_symbolic_link_is_followed(
    yolo_folder: Path, coco_folder: Path, voc_folder: Path, tmp_path: Path
) -> None:
    for root in (yolo_folder, coco_folder, voc_folder):
        link = tmp_path / f"link_to_{root.name}"
        link.symlink_to(root)
        assert len(open_dataset(link)) == 4


def test_a_list_of_images_outside_is_not_opened(yolo_folder: Path, tmp_path: Path, edit: Edit) -> None:
    (tmp_path / "secret.txt").write_text("the secret\n")
    edit(yolo_folder / "data.yaml", "val: images/val", f"val: {tmp_path / 'secret.txt'}")
    with pytest.raises(ValueError, match=r"secret\.txt: is outside") as error:
        open_dataset(yolo_folder)
    assert "the secret" not in str(error.value)


def test_an_image_set_that_links_outside_is_not_opened(voc_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the secret\n")
    (voc_folder / "ImageSets" / "Main" / "test.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"test\.txt: is outside") as error:
        open_dataset(voc_folder)
    assert "the secret" not in str(error.value)


def test_a_huge_image_is_refused_before_it_is_decoded(yolo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = yolo_folder / "images" / "train" / "a.jpg"
    monkeypatch.setattr("modeling_detr.data.image_headers.MAX_PIXELS", 60 * 80 - 1)
    with pytest.raises(OSError, match=r"a\.jpg: 80x60 pixels \(width x height\), more than the limit"):
        open_dataset(yolo_folder)
    with pytest.raises(OSError, match="more than the limit"):
        read_image(ImageRecord("a", str(path), 60, 80))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_invalid_exif_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(ImageRecord("a", str(tmp_path / "a.jpg"), 20, 30)).shape == (3, 20, 30)


def test_truncated_exif_data_is_ignored(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert read_image(ImageRecord("a", str(tmp_path / "a.jpg"), 20, 30)).shape == (3, 20, 30)


def test_raw_labels_are_the_category_ids_of_the_dataset(coco_folder: Path, edit: Edit) -> None:
    for file in (coco_folder / "annotations").iterdir():
        file.write_text(file.read_text().replace('"id": 2, "name"', '"id": 106, "name"'))
        file.write_text(file.read_text().replace('"category_id": 2', '"category_id": 106'))

    index = with_raw_labels(open_dataset(coco_folder))

    assert len(index.categories) == 107
    assert {index.id2label[1], index.id2label[106]} == {"cat", "dog"}
    assert index.annotations.label.tolist() == [1, 106, 106, 1]
    assert [index.categories[label].id for label in (1, 106)] == [1, 106]
    edit(coco_folder / "annotations" / "instances_val.json", '"id": 106, "name"', '"id": 2000000, "name"')
    val = open_dataset(coco_folder / "annotations" / "instances_val.json", findings=Findings(collects=True))
    with pytest.raises(ValueError, match="id 2000000 cannot be a label"):
        with_raw_labels(val)


@pytest.mark.parametrize("indent", [None, 2])
def test_segmentations_are_skipped_if_only_boxes_are_needed(coco_folder: Path, indent: int | None) -> None:
    plain = open_dataset(coco_folder, "train").annotations
    file = coco_folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["info"] = {"description": 'a "segmentation": [1] in a text', "segmentation": "no"}
    shapes = [[[1, 2, 3.5, 4, -5e-1, 6], [1, 2, 3, 4, 5, 6]], {"size": [60, 80], "counts": [0, 4800]}, []]
    for entry, shape in zip(content["annotations"], shapes, strict=True):
        entry["segmentation"] = shape  # the last key of the entry
    content["annotations"][0] = dict(reversed(content["annotations"][0].items()))  # and the first
    file.write_text(json.dumps(content, indent=indent))

    read = open_dataset(coco_folder, "train").annotations

    np.testing.assert_array_equal(read.boxes_xyxy, plain.boxes_xyxy)
    np.testing.assert_array_equal(read.label, plain.label)
    file.write_text(file.read_text()[:-2] + "?")
    with pytest.raises(ValueError, match=rf"not valid JSON .*char {len(file.read_text()) - 1}\)"):
        open_dataset(coco_folder)


def test_the_single_list_of_an_export_is_not_a_split(voc_folder: Path) -> None:
    for file in (voc_folder / "ImageSets" / "Main").iterdir():
        file.unlink()
    (voc_folder / "ImageSets" / "Main" / "default.txt").write_text("a\nb\nc\n")
    index = open_dataset(voc_folder)
    assert {name: len(members) for name, members in index.splits.items()} == {"all": 3}


def test_the_data_commands_read_datasets_like_training(
    voc_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main(["check", str(voc_folder), "--drop_difficult"]) == 1  # nothing is left to learn
    assert "4 images, 0 boxes" in capsys.readouterr().out
    shutil.move(voc_folder / "JPEGImages", tmp_path / "pictures")
    assert data.main(["check", str(voc_folder)]) == 1
    arguments = ["convert", str(voc_folder), str(tmp_path / "copy"), "--to", "coco"]
    assert data.main([*arguments, "--images", str(tmp_path / "pictures"), "--format", "voc"]) == 0
    assert len(open_dataset(tmp_path / "copy").annotations) == 4
