"""COCO: layouts, ids, missing files, and errors."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modeling_detr.data import open_dataset, read_coco
from modeling_detr.data.check import check_dataset


def _change(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def train_file(coco_folder) -> Path:
    return coco_folder / "annotations" / "instances_train.json"


def _move_to_images(root: Path) -> Path:
    (root / "images").mkdir()
    for split in ("train", "val"):
        shutil.move(root / split, root / "images" / split)
    return root


def _move_beside_images(root: Path) -> Path:
    for split in ("train", "val"):
        shutil.move(root / "annotations" / f"instances_{split}.json", root / split / "_annotations.coco.json")
    (root / "annotations").rmdir()
    return root


def _flatten_images(root: Path) -> Path:
    (root / "images").mkdir()
    for split in ("train", "val"):
        for file in (root / split).iterdir():
            shutil.move(file, root / "images" / file.name)
        (root / split).rmdir()
        shutil.move(root / "annotations" / f"instances_{split}.json", root / f"{split}.json")
    (root / "annotations").rmdir()
    return root


@pytest.mark.parametrize("layout", [lambda root: root, _move_to_images, _move_beside_images, _flatten_images])
def test_every_layout_gives_the_same_dataset(coco_folder, layout):
    index = open_dataset(layout(coco_folder))
    assert {name: members.tolist() for name, members in index.splits.items()} == {"train": [0, 1], "val": [2, 3]}
    assert index.annotations.image_index.tolist() == [0, 0, 1, 3]
    assert index.annotations.boxes_xyxy[2].tolist() == [5.5, 6.25, 20, 30]
    assert all(Path(record.path).is_file() for record in index.images)


def test_one_json_with_an_image_folder_is_one_split(coco_folder, train_file):
    index = open_dataset(train_file)
    assert len(index) == 2
    assert list(index.splits) == ["train"]
    root = coco_folder.parent / "single"
    shutil.copytree(coco_folder / "train", root / "images")
    shutil.copy(train_file, root / "result.json")
    assert list(open_dataset(root).splits) == ["all"]


def test_captions_and_panoptic_files_are_not_splits(coco_folder):
    (coco_folder / "annotations" / "captions_train.json").write_text('{"images": [], "annotations": []}')
    assert list(open_dataset(coco_folder).splits) == ["train", "val"]


def test_labels_are_dense_and_ordered_by_the_ids_of_all_files(coco_folder, train_file):
    def renumber(content):
        content["categories"] = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = {1: 7, 2: 90}[annotation["category_id"]]

    _change(train_file, renumber)
    _change(coco_folder / "annotations" / "instances_val.json", renumber)
    _change(train_file, lambda content: content["categories"].append({"id": 2**40, "name": 13}))
    index = open_dataset(coco_folder)
    assert [category.id for category in index.categories] == [7, 90, 2**40]
    assert index.id2label == {0: "cat", 1: "dog", 2: "13"}
    assert index.annotations.label.tolist() == [0, 1, 1, 0]


def test_crowd_flags_and_areas_are_read_from_the_file(coco_folder, train_file):
    def mark(content):
        content["annotations"][0].update(iscrowd=1, area=123.5)

    _change(train_file, mark)
    table = open_dataset(coco_folder).annotations
    assert table.is_crowd.tolist() == [True, False, False, False]
    assert table.area.tolist() == [123.5, 4800, pytest.approx(344.375), 4]


def test_image_ids_may_be_strings_or_huge(coco_folder, train_file):
    def rename(content):
        for image in content["images"]:
            image["id"] = {1: "first", 2: 2**40}[image["id"]]
        for annotation in content["annotations"]:
            annotation["image_id"] = {1: "first", 2: 2**40}[annotation["image_id"]]

    _change(train_file, rename)
    index = open_dataset(coco_folder)
    assert [record.id for record in index.images[:2]] == ["first", 2**40]
    assert index.annotations.image_index.tolist() == [0, 0, 1, 3]


def test_a_missing_image_size_is_read_from_the_image(coco_folder, train_file):
    _change(train_file, lambda content: [image.pop("height") for image in content["images"]])
    index = open_dataset(coco_folder)
    assert [(record.height, record.width) for record in index.images[:2]] == [(60, 80), (50, 40)]
    assert [note for note in index.notes if "no height and width" in note]


def test_unusual_boxes_are_dropped_or_clipped_and_reported(coco_folder, train_file):
    boxes = {
        "of zero area": [10, 10, 0, 5],
        "inverted corners": [10, 10, -5, 5],
        "not finite": [float("nan"), 1, 2, 3],
        "entirely outside": [200, 10, 5, 5],
        "without a box at all": [],
    }

    def add(content):
        for number, box in enumerate(boxes.values()):
            content["annotations"].append({"id": 100 + number, "image_id": 1, "category_id": 1, "bbox": box})
        content["annotations"].append({"id": 200, "image_id": 1, "category_id": 1, "bbox": [70, 50, 30, 30]})

    _change(train_file, add)
    index = open_dataset(coco_folder)
    assert len(index.annotations) == 5
    assert index.annotations.boxes_xyxy[2].tolist() == [70, 50, 80, 60]
    assert index.annotations.area[2] == 100
    notes = "\n".join(index.notes)
    for words in (
        r"2 boxes have zero area or inverted corners and are left out; .*annotation 100 of image 1",
        r"2 boxes are missing or not finite and are left out; .*annotation 102",
        r"1 box is entirely outside the image and is left out; .*annotation 103",
        r"1 box extends past the edge of the image by up to 20 pixels, clipped to the image; .*annotation 200",
    ):
        assert re.search(words, notes), (words, notes)


def test_annotations_of_unlisted_images_are_dropped_and_reported(coco_folder, train_file):
    _change(train_file, lambda content: content["annotations"][0].update(image_id=77))
    index = open_dataset(coco_folder)
    assert len(index.annotations) == 3
    assert [note for note in index.notes if "1 annotation belongs to an image that the file does not list" in note]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["annotations"][1].update(category_id=91),
            r"annotation 1 of image 1: got category_id 91, expected one of the dataset's categories: 1, 2",
        ),
        (
            lambda content: content["annotations"][1].update(bbox=[1, 2, 3]),
            r"annotation 1 of image 1: got bbox \[1, 2, 3\], expected four numbers",
        ),
        (
            lambda content: content["annotations"][1].update(area="large"),
            r"annotation 1 of image 1: got area 'large', expected a number",
        ),
        (lambda content: content.pop("images"), r"no 'images', only annotations, categories; add the list 'images'"),
        (lambda content: content["images"][1].update(id=1), "2 images have the id 1"),
        (lambda content: content["images"][1].pop("file_name"), "image entry 1: no 'file_name'"),
        (
            lambda content: content["categories"][0].update(name="lion"),
            "category 1: is named 'cat', but 'lion' in .*instances_train.json",
        ),
        (lambda content: content["categories"][0].update(id="cat"), "got id 'cat', expected an integer"),
    ],
)
def test_errors_are_named(coco_folder, train_file, change, message):
    _change(train_file, change)
    with pytest.raises(ValueError, match=message):
        open_dataset(coco_folder)


def test_classes_that_each_file_numbers_in_its_own_way_are_matched_by_name(coco_folder, train_file):
    def renumber(content):
        for entry in [*content["categories"], *content["annotations"]]:
            key = "category_id" if "category_id" in entry else "id"
            entry[key] = {1: 2, 2: 1}[entry[key]]

    expected = open_dataset(coco_folder)
    _change(train_file, renumber)
    report = check_dataset(coco_folder, pixels="none")
    table, names = report.index.annotations, [category.name for category in report.index.categories]
    assert sorted(names) == sorted(category.name for category in expected.categories)
    assert [names[label] for label in table.label] == [
        expected.id2label[label] for label in expected.annotations.label
    ]
    assert not report.errors
    assert "classes are matched by name" in report.to_text()


def test_missing_images_are_named_with_the_folders_searched(coco_folder, train_file):
    (coco_folder / "train" / "b.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"instances_train.json: 1 of 2 images missing, the first is 'b.png', searched"
    ):
        open_dataset(coco_folder)
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images missing, .*put missing images into .*train"):
        open_dataset(train_file)
    assert len(read_coco(train_file, require_images=False).annotations) == 3


def test_a_file_name_with_other_case_or_a_stale_folder_is_resolved(coco_folder, train_file):
    _change(train_file, lambda content: content["images"][0].update(file_name="C:\\old\\A.JPG"))
    assert Path(open_dataset(coco_folder).images[0].path).name == "a.jpg"


def test_truncated_json_is_named(coco_folder, train_file):
    train_file.write_text(train_file.read_text()[:100])
    with pytest.raises(ValueError, match=r"instances_train.json: not valid JSON"):
        open_dataset(coco_folder)
    train_file.write_text("[]")
    with pytest.raises(ValueError, match="got a JSON list, expected an object"):
        open_dataset(train_file)


def test_annotations_are_ordered_by_image(coco_folder, train_file):
    generator = np.random.default_rng(0)
    image_ids = generator.integers(1, 3, 1000).tolist()

    def add(content):
        content["annotations"] = [
            {"id": number, "image_id": image_id, "category_id": 1, "bbox": [number / 100, 0, 1, 1]}
            for number, image_id in enumerate(image_ids)
        ]

    _change(train_file, add)
    table = open_dataset(train_file).annotations
    assert (np.diff(table.image_index) >= 0).all()
    for position in (0, 1):
        mine = table.boxes_xyxy[table.image_index == position, 0]
        expected = [number / 100 for number, image_id in enumerate(image_ids) if image_id == position + 1]
        assert mine.tolist() == expected


def _add_category(root: Path, **entry) -> None:
    for file in (root / "annotations").iterdir():
        _change(file, lambda content: content["categories"].insert(0, {"id": 0, **entry}))


def test_an_unused_category_with_a_duplicate_name_is_dropped(coco_folder, train_file):
    _add_category(coco_folder, name="dog")
    index = open_dataset(coco_folder)
    assert index.id2label == {0: "cat", 1: "dog"}
    assert index.annotations.label.tolist() == [0, 1, 1, 0]
    assert "category 0 'dog' has no box and the same name as category 2; it is left out." in index.notes
    _change(train_file, lambda content: content["annotations"][0].update(category_id=0))
    with pytest.raises(ValueError, match=r"categories 0 and 2: both are named 'dog' and both have boxes \(1 and 2\)"):
        open_dataset(coco_folder)


def test_an_unused_supercategory_is_dropped_and_other_empty_classes_are_reported(coco_folder):
    _add_category(coco_folder, name="pets", supercategory="none")
    index = open_dataset(coco_folder)
    assert len(index.categories) == 3
    assert "class 'pets' has no box; remove it from 'categories' if it is not needed." in index.notes
    for file in (coco_folder / "annotations").iterdir():
        _change(file, lambda content: [entry.update(supercategory="pets") for entry in content["categories"][1:]])
    assert open_dataset(coco_folder).id2label == {0: "cat", 1: "dog"}


def test_a_file_without_annotations_is_an_error_except_for_a_test_split(coco_folder):
    _move_beside_images(coco_folder)
    _change(coco_folder / "val" / "_annotations.coco.json", lambda content: content.pop("annotations"))
    with pytest.raises(ValueError, match="no 'annotations', only categories, images"):
        open_dataset(coco_folder)
    shutil.move(coco_folder / "val", coco_folder / "test")
    index = open_dataset(coco_folder)
    assert len(index.split("test").annotations) == 0
    assert [note for note in index.notes if ": no 'annotations'" in note]


def test_boxes_in_another_format_are_reported_or_refused(coco_folder, train_file):
    def corners(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [20, 25, 40, 50]

    def normalized(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [0.1, 0.2, 0.5, 0.25]

    _change(train_file, corners)
    with pytest.raises(ValueError, match=r"instances_train.json: 3 of 3 boxes extend past .* look like corners.*xyxy"):
        open_dataset(coco_folder)
    notes = open_dataset(coco_folder, box_format="xywh").notes
    assert [note for note in notes if "3 of 3 boxes extend past the edge" in note]
    with pytest.raises(ValueError, match="got 'cxcywh'; COCO files can be read as xywh or xyxy"):
        open_dataset(coco_folder, box_format="cxcywh")
    _change(train_file, normalized)
    with pytest.raises(ValueError, match=r"instances_train.json: the boxes look normalised.* in pixels"):
        open_dataset(coco_folder)


def test_corners_are_read_as_corners_on_request(coco_folder):
    expected = open_dataset(coco_folder).annotations.boxes_xyxy

    def corners(content):
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]

    for file in (coco_folder / "annotations").glob("*.json"):
        _change(file, corners)
    np.testing.assert_allclose(open_dataset(coco_folder, box_format="xyxy").annotations.boxes_xyxy, expected)


def test_an_annotation_without_a_category_is_named(train_file, coco_folder):
    _change(train_file, lambda content: content["annotations"][0].pop("category_id"))
    with pytest.raises(ValueError, match="has no category_id; add it, or remove the annotation"):
        open_dataset(coco_folder)
