import numpy as np
import pytest
import torch

from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, check_labels


@pytest.fixture
def index():
    """Four images with 1, 0, 2 and 1 boxes; labels tell which is whose."""
    rows = np.array([0, 2, 2, 3])
    return DetectionIndex(
        name="four",
        images=tuple(ImageRecord(f"id{position}", f"{position}.jpg", 10, 20) for position in range(4)),
        categories=(Category(7, "cat"), Category(9, "dog")),
        annotations=AnnotationTable(
            rows, np.array([0, 1, 0, 1]), np.tile([1.0, 2, 3, 4], (4, 1)), np.full(4, 4.0), np.zeros(4, np.bool_)
        ),
        splits={"train": np.array([0, 1, 2]), "val": np.array([2, 3])},
    )


def test_rows_of_an_image_are_found_also_if_it_has_none(index):
    assert [len(index.annotations.take(index.annotation_rows(position))) for position in range(4)] == [1, 0, 2, 1]


def test_a_split_keeps_its_images_annotations_and_all_categories(index):
    val = index.split("val")
    assert [image.id for image in val.images] == ["id2", "id3"]
    assert val.annotations.image_index.tolist() == [0, 0, 1]
    assert val.annotations.label.tolist() == [1, 0, 1]
    assert val.id2label == {0: "cat", 1: "dog"}
    assert val.splits["train"].tolist() == [0]


def test_joined_splits_hold_each_image_once(index):
    assert [image.id for image in index.split("val+train").images] == ["id0", "id1", "id2", "id3"]


def test_a_split_that_does_not_exist_lists_those_that_do(index):
    with pytest.raises(ValueError, match=r"four has no split 'valid'; its splits are: train, val\."):
        index.split("valid")


def test_tables_are_joined_in_their_order_and_none_is_the_empty_table(index):
    both = AnnotationTable.concatenate([index.annotations.take(slice(2, 4)), index.annotations.take(slice(0, 1))])
    assert both.label.tolist() == [0, 1, 0]
    assert AnnotationTable.concatenate([]).boxes_xyxy.shape == (0, 4)


def test_sound_labels_pass_and_a_bad_one_is_named_by_its_image():
    sound = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]])}
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    check_labels([sound, empty], num_labels=2)
    with pytest.raises(ValueError, match=r"b\.jpg: class label 1, but the model has 1 classes"):
        check_labels([empty, sound], num_labels=1, names=["a.jpg", "b.jpg"])
