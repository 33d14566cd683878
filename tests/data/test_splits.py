"""Which images are for training and which for evaluation."""

import numpy as np
import pytest

from modeling_detr.data import find_split, open_dataset
from modeling_detr.data.splits import draw_images, hold_out, training_splits
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex


def test_held_out_images_depend_on_their_ids_but_not_on_their_order():
    index = open_dataset("shapes?size=64&train=40&val=4").split("train")
    train, held_out = hold_out(index, 0.25, seed=3)
    assert (len(train), len(held_out)) == (30, 10)
    assert not {image.id for image in train.images} & {image.id for image in held_out.images}
    fewer = index.select(np.arange(20))
    assert {image.id for image in hold_out(fewer, 0.99, seed=3)[1].images} > {
        image.id for image in held_out.images if image.id in {record.id for record in fewer.images}
    }
    assert [image.id for image in hold_out(index, 0.25, seed=4)[1].images] != [image.id for image in held_out.images]


def test_images_drawn_to_train_on_are_nested_and_depend_on_the_seed():
    index = open_dataset("shapes?size=64&train=40&val=4")

    def names(count, seed=3):
        train, evaluation = training_splits(index, seed=seed, train_images=count)
        assert (len(train), len(evaluation)) == (count, 4)
        return {image.path for image in train.images}

    assert names(5) < names(10) < names(20) < names(40)
    assert names(10) != names(10, seed=4)
    train, held_out = training_splits(index, eval_fraction=0.25, seed=3, train_images=10)
    assert not {image.path for image in train.images} & {image.path for image in held_out.images}


def test_more_images_than_there_are_cannot_be_drawn():
    index = open_dataset("shapes?size=64&train=40&val=4").split("train")
    with pytest.raises(DatasetError, match=r"40 images to train on, expected at least 50; lower train_images"):
        draw_images(index, 50, seed=0)


@pytest.mark.parametrize(
    ("splits", "train", "evaluation"),
    [
        (["train", "val", "test"], "train", "val"),
        (["train2017", "val2017"], "train2017", "val2017"),
        (["train", "valid", "test"], "train", "valid"),
        (["train", "val", "trainval", "test"], "train", "val"),
        (["trainval", "test"], "trainval", "test"),
    ],
)
def test_splits_are_found_by_their_usual_names(splits, train, evaluation, yolo_folder):
    index = open_dataset(yolo_folder)
    renamed = DetectionIndex(
        "set", index.images, index.categories, index.annotations, dict.fromkeys(splits, np.arange(2))
    )
    assert (find_split(renamed, "train"), find_split(renamed, "eval")) == (train, evaluation)


def test_splits_without_a_usual_name_are_listed_in_the_error(yolo_folder):
    index = open_dataset(yolo_folder)
    other = DetectionIndex("set", index.images, index.categories, index.annotations, {UNSPLIT: np.arange(2)})
    with pytest.raises(ValueError, match=r"set: has no splits; hold out some images .* \(eval_fraction=0\.1\)"):
        find_split(other, "train")
    odd = DetectionIndex("set", index.images, index.categories, index.annotations, {"odd": np.arange(2)})
    with pytest.raises(ValueError, match=r"splits are: odd; choose one, .* \(eval_split='odd', eval_fraction=0\.1\)"):
        find_split(odd, "eval")
    only = DetectionIndex("set", index.images, index.categories, index.annotations, {"train2017": np.arange(2)})
    with pytest.raises(ValueError, match=r"train2017; hold out some images for evaluation \(eval_fraction=0\.1\)\."):
        find_split(only, "eval")
    more = DetectionIndex(
        "set", index.images, index.categories, index.annotations, dict.fromkeys(["train", "x"], np.arange(2))
    )
    with pytest.raises(ValueError, match=r"or hold out some images \(eval_split='x', eval_fraction=0\.1\)"):
        find_split(more, "eval")
    two = {"train2014": np.arange(2), "train2017": np.arange(2)}
    with pytest.raises(
        ValueError, match=r"several splits to train on, train2014, train2017; choose one \(train_split='train2014'\)"
    ):
        find_split(DetectionIndex("set", index.images, index.categories, index.annotations, two), "train")
