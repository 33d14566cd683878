"""YOLO: layouts, descriptions, polygons, and errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_detr.data import open_dataset


def _splits(index) -> dict[str, int]:
    return {name: len(members) for name, members in index.splits.items()}


def _by_split_folder(root: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split).mkdir(exist_ok=True)
            shutil.move(root / kind / split, root / split / kind)
    (root / "data.yaml").write_text("train: ../train/images\nval: ../val/images\nnames: [cat, dog]\n")


def _labels_beside_images(root: Path) -> None:
    for file in (root / "labels").rglob("*.txt"):
        shutil.move(file, root / "images" / file.parent.name / file.name)
    shutil.rmtree(root / "labels")


def _labels_with_an_ending(root: Path) -> None:
    for split in ("train", "val"):
        shutil.move(root / "labels" / split, root / "labels" / f"{split}-labels")
    (root / "data.yaml").write_text("train: ../x/images/train\nval: ../x/images/val\nnames: [cat, dog]\n")


def _image_lists(root: Path) -> None:
    for split in ("train", "val"):
        paths = [f"./images/{split}/{file.name}" for file in sorted((root / "images" / split).iterdir())]
        (root / f"{split}.txt").write_text("\n".join(paths))
    (root / "data.yaml").write_text("path: /dead/machine\ntrain: train.txt\nval: [val.txt]\nnames: [cat, dog]\n")


def _no_yaml(root: Path) -> None:
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")


@pytest.mark.parametrize(
    "layout", [_by_split_folder, _labels_beside_images, _labels_with_an_ending, _image_lists, _no_yaml]
)
def test_every_layout_gives_the_same_dataset(yolo_folder, layout):
    expected = open_dataset(yolo_folder)
    layout(yolo_folder)
    index = open_dataset(yolo_folder)
    assert _splits(index) == {"train": 2, "val": 2}
    assert index.id2label == {0: "cat", 1: "dog"}
    assert [(r.height, r.width) for r in index.images] == [(r.height, r.width) for r in expected.images]
    np.testing.assert_array_equal(index.annotations.boxes_xyxy, expected.annotations.boxes_xyxy)


def test_a_path_to_the_yaml_opens_it(yolo_folder):
    assert len(open_dataset(yolo_folder / "data.yaml")) == 4


def test_an_image_in_two_splits_is_one_image(yolo_folder, edit):
    edit(yolo_folder / "data.yaml", "val: images/val", "val: images/train")
    index = open_dataset(yolo_folder)
    assert len(index) == 2
    assert index.splits["val"].tolist() == [0, 1]


def test_an_image_without_a_label_file_is_a_background(yolo_folder):
    index = open_dataset(yolo_folder)
    background = next(position for position, record in enumerate(index.images) if record.path.endswith("c.jpg"))
    assert index.annotation_rows(background) == slice(3, 3)


def test_polygons_become_boxes(yolo_folder):
    (yolo_folder / "labels" / "train" / "a.txt").write_text("1 0.25 0.5 0.75 0.25 0.5 1.0\n0 0.5 0.5 0.5 0.5\n")
    index = open_dataset(yolo_folder)
    assert index.annotations.boxes_xyxy[:2].tolist() == [[20, 15, 60, 60], [20, 15, 60, 45]]
    assert index.annotations.label[:2].tolist() == [1, 0]


def test_class_ids_with_gaps_become_dense_labels_and_are_kept(yolo_folder, edit):
    edit(yolo_folder / "data.yaml", "{0: cat, 1: dog}", "{0: cat, 5: dog}")
    for file in (yolo_folder / "labels").rglob("*.txt"):
        file.write_text(file.read_text().replace("\n1 ", "\n5 ").replace("1 0.3", "5 0.3"))
    index = open_dataset(yolo_folder)
    assert [category.id for category in index.categories] == [0, 5]
    assert index.id2label == {0: "cat", 1: "dog"}


def test_sizes_respect_the_exif_orientation(yolo_folder):
    path = yolo_folder / "images" / "train" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    index = open_dataset(yolo_folder)
    assert (index.images[0].height, index.images[0].width) == (80, 60)


@pytest.mark.parametrize(
    "written", ["names: [yes, NO, 1e3, 010, 2024-01-01, 12:30, ~, .5]", "names: {0: yes, 1: NO, 2: 1e3, 3: 010}"]
)
def test_class_names_are_text_whatever_they_look_like(yolo_folder, written):
    (yolo_folder / "data.yaml").write_text(f"train: images/train\nval: images/val\n{written}\n")
    names = [category.name for category in open_dataset(yolo_folder).categories]
    assert names == ["yes", "NO", "1e3", "010", "2024-01-01", "12:30", "~", ".5"][: len(names)]
    assert len(names) >= 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", r"a.txt, line 2: got class id 7, expected one of those in .*data.yaml: 0, 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"line 2: got class id 0.5"),
        ("cat 0.5 0.5 0.1 0.1", r"line 2: got 'cat 0.5 0.5 0.1 0.1', expected numbers"),
        ("0 0.5 0.5 0.1", r"line 2: got 4 numbers, expected 5"),
        ("0 0.1 0.1 0.5 0.5 0.9 0.9 -0.3", r"line 2: got 8 numbers, expected 5"),
    ],
)
def test_errors_in_a_line_are_named(yolo_folder, line, message):
    (yolo_folder / "labels" / "train" / "a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match=message):
        open_dataset(yolo_folder)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("nc: 2", "nc: 3", ValueError, "nc is 3, but 'names' lists 2 classes"),
        ("names: {0: cat, 1: dog}", "names: cat", ValueError, "'names': got 'cat', expected a list"),
        ("names: {0: cat, 1: dog}", "names: []", ValueError, "no 'names'; list the classes under 'names:'"),
        ("train: images/train", "train: [", ValueError, "invalid YAML"),
    ],
)
def test_errors_in_the_yaml_are_named(yolo_folder, edit, old, new, error, message):
    edit(yolo_folder / "data.yaml", old, new)
    with pytest.raises(error, match=message):
        open_dataset(yolo_folder / "data.yaml")


def test_missing_or_broken_files_are_named(yolo_folder):
    (yolo_folder / "images" / "train" / "a.jpg").write_bytes(b"")
    with pytest.raises(OSError, match=r"a.jpg: the image cannot be decoded \(not a readable image, 0 bytes\)"):
        open_dataset(yolo_folder)
    shutil.rmtree(yolo_folder / "labels")
    with pytest.raises(FileNotFoundError, match=r"no image has a label file, searched .*labels/train"):
        open_dataset(yolo_folder)
    _image_lists(yolo_folder)
    (yolo_folder / "images" / "val" / "c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val.txt, line 1: names './images/val/c.jpg', which is not in"):
        open_dataset(yolo_folder)


def test_a_split_without_labels_is_reported(yolo_folder):
    shutil.rmtree(yolo_folder / "labels" / "val")
    notes = open_dataset(yolo_folder).notes
    assert [note for note in notes if note.startswith("no label files for 2 images in ") and "background" in note]


def test_missing_and_unused_label_files_are_reported(yolo_folder):
    labels = yolo_folder / "labels" / "train"
    shutil.move(labels / "b.txt", labels / "other.txt")
    notes = "\n".join(open_dataset(yolo_folder).notes)
    assert "1 of 2 images in images/train has no label file and is treated as background; the first: " in notes
    assert "1 label file in labels/train belongs to no image and is left out; the first: " in notes


def test_a_label_file_with_other_case_is_found(yolo_folder):
    labels = yolo_folder / "labels" / "train"
    shutil.move(labels / "b.txt", labels / "B.TXT")
    index = open_dataset(yolo_folder)
    assert len(index.annotations) == 4
    assert not [note for note in index.notes if "images/train" in note]
