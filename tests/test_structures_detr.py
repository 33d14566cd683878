import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_detr.structures_detr import (
    AnnotationTable,
    Category,
    DetectionIndex,
    ImageRecord,
    ImageTable,
    check_labels,
    labels_as_tensors,
)


@pytest.fixture
def index():
    """Four images with 1, 0, 2 and 1 boxes; labels identify the boxes."""
    rows = np.array([0, 2, 2, 3])
    return DetectionIndex(
        name="four",
        images=tuple(ImageRecord(f"id{number}", f"{number}.jpg", 10, 20) for number in range(4)),
        categories=(Category(7, "cat"), Category(9, "dog")),
        annotations=AnnotationTable(
            rows, np.array([0, 1, 0, 1]), np.tile([1.0, 2, 3, 4], (4, 1)), np.full(4, 4.0), np.zeros(4, np.bool_)
        ),
        splits={"train": np.array([0, 1, 2]), "val": np.array([2, 3])},
    )


def test_annotation_rows_of_an_image_may_be_empty(index):
    assert [len(index.annotations.take(index.annotation_rows(image_index))) for image_index in range(4)] == [
        1,
        0,
        2,
        1,
    ]


def test_a_split_has_the_annotations_of_its_images_and_all_categories(index):
    val = index.split("val")
    assert [image.id for image in val.images] == ["id2", "id3"]
    assert val.annotations.image_index.tolist() == [0, 0, 1]
    assert val.annotations.label.tolist() == [1, 0, 1]
    assert val.id2label == {0: "cat", 1: "dog"}
    assert val.splits["train"].tolist() == [0]


def test_joined_splits_contain_each_image_once(index):
    assert [image.id for image in index.split("val+train").images] == ["id0", "id1", "id2", "id3"]


def test_a_missing_split_is_an_error_that_lists_the_splits(index):
    with pytest.raises(ValueError, match=r"four has no split 'valid'; its splits are: train, val\."):
        index.split("valid")


def test_tables_are_joined_in_order_and_no_tables_give_an_empty_one(index):
    both = AnnotationTable.concatenate([index.annotations.take(slice(2, 4)), index.annotations.take(slice(0, 1))])
    assert both.label.tolist() == [0, 1, 0]
    assert AnnotationTable.concatenate([]).boxes_xyxy.shape == (0, 4)


def test_check_labels_names_the_image_with_a_bad_label():
    valid = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]])}
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    check_labels([valid, empty], num_labels=2)
    with pytest.raises(ValueError, match=r"b\.jpg: class label 1, but the model has 1 classes"):
        check_labels([empty, valid], num_labels=1, names=["a.jpg", "b.jpg"])


BOXES = [[0.5, 0.5, 0.2, 0.2], [0.4, 0.4, 0.1, 0.1]]


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, torch.tensor, lambda rows: [torch.tensor(row) for row in rows]]
)
def test_labels_of_any_kind_become_tensors(make):
    (labels,) = labels_as_tensors([{"class_labels": make([0, 1]), "boxes": make(BOXES), "noise_seed": 7}])
    assert labels["class_labels"].tolist() == [0, 1]
    torch.testing.assert_close(labels["boxes"], torch.tensor(BOXES), check_dtype=False)
    assert labels["noise_seed"] == 7
    check_labels([labels], num_labels=2)


@pytest.mark.parametrize("empty", [[], np.array([]), torch.tensor([])])
def test_empty_labels_get_the_shapes_of_no_objects(empty):
    (labels,) = labels_as_tensors([{"class_labels": empty, "boxes": empty}])
    assert labels["class_labels"].dtype == torch.int64
    assert labels["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"class_labels": [0], "boxes": BOXES}, "labels: got dict, expected one dict per image"),
        (torch.zeros(2, 5), "labels: got Tensor, expected one dict per image"),
        (3, "labels: got int, expected one dict per image"),
        ([[0, 1]], "image 0 of the batch: its labels are list, expected one dict per image"),
        ([{"class_labels": ["cat"]}], r"image 0 of the batch: got class_labels \['cat'\], expected numbers"),
        ([{"boxes": [BOXES[0], [0.5]]}], r"got boxes \[\[0.5, .* expected rows of equal length"),
        ([{"class_labels": None}], "got class_labels None, expected rows"),
    ],
)
def test_labels_that_are_no_numbers_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        labels_as_tensors(labels)


READER = len
RECORDS = [
    ImageRecord(7, "/data/train/a.jpg", 10, 20),
    ImageRecord("7", "/data/train/b.jpg", 2**31, 1, READER),  # an id is not its text
    ImageRecord(-(2**70), "/data/train/\udcff\n.jpg", 0, 0, READER, number=0),
    ImageRecord("", "/data/train/", 30, 40, print, number=3, ignores_exif=True),
    ImageRecord("ü", "/data/train/ü/日.jpg", 30, 40),
]


def test_an_image_table_gives_back_its_records():
    table = ImageTable.of(RECORDS)
    assert list(table) == RECORDS
    assert table == RECORDS
    assert table != RECORDS[::-1]
    assert [type(record.id) for record in table] == [int, str, int, str, str]
    assert list(table.paths) == [record.path for record in RECORDS]
    assert table.sizes.tolist() == [[record.height, record.width] for record in RECORDS]
    assert list(pickle.loads(pickle.dumps(table))) == RECORDS
    assert list(ImageTable.of([])) == []


def test_images_are_selected_like_items_of_a_list():
    table = ImageTable.of(RECORDS)
    assert list(table[1:4]) == RECORDS[1:4]
    assert list(table[::-2]) == RECORDS[::-2]
    assert list(table.take(np.array([3, 0, 3]))) == [RECORDS[3], RECORDS[0], RECORDS[3]]
    assert list(table.paths[3:]) == [record.path for record in RECORDS[3:]]
    assert table[-1] == RECORDS[-1]
    with pytest.raises(IndexError):
        table[5]


def _private_megabytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


def _read_all(images, sender):
    before = _private_megabytes()
    assert sum(record.height for record in images) == 480 * len(images)
    sender.send(_private_megabytes() - before)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_reading_a_hundred_thousand_records_in_a_loader_process_copies_none_of_them():
    images = ImageTable.of([ImageRecord(number, f"/data/{number:012}.jpg", 480, 640) for number in range(100_000)])
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_read_all, args=(images, sender))
    process.start()
    grown = receiver.recv()
    process.join()
    assert grown < 2  # megabytes; a list of records grows by 10
