"""The built-in shapes: deterministic, exact, never hidden, and different for validation."""

import numpy as np
import pytest
import torch

from modeling_detr.data import open_dataset, read_image
from modeling_detr.data.formats.shape_scenes import KINDS, MOST_COVER, coverage, draw_scene, render


def test_the_same_options_give_the_same_dataset():
    first, again = open_dataset("shapes?train=20&val=5"), open_dataset("shapes?train=20&val=5")
    np.testing.assert_array_equal(first.annotations.boxes_xyxy, again.annotations.boxes_xyxy)
    assert torch.equal(read_image(first.images[3]), read_image(again.images[3]))
    other = open_dataset("shapes?train=20&val=5&seed=1")
    assert not np.array_equal(first.annotations.boxes_xyxy[:10], other.annotations.boxes_xyxy[:10])


def test_an_image_does_not_depend_on_how_many_there_are():
    few, many = open_dataset("shapes?train=3&val=3"), open_dataset("shapes?train=30&val=3")
    assert few.split("train").images == many.split("train").images[:3]
    assert [record.path for record in few.split("val").images] == [record.path for record in many.split("val").images]


def test_train_and_validation_differ():
    scenes = {split: [draw_scene(128, 0, split, number) for number in range(50)] for split in ("train", "val")}
    assert not set(scenes["train"]) & set(scenes["val"])


def test_the_default_is_as_documented():
    index = open_dataset("shapes")
    assert {name: len(members) for name, members in index.splits.items()} == {"train": 8000, "val": 400}
    assert {(record.height, record.width) for record in index.images} == {(128, 128)}
    assert [category.name for category in index.categories] == list(KINDS)
    counts = np.bincount(index.annotations.image_index, minlength=len(index))
    assert (counts.min(), counts.max()) == (1, 5)
    sides = index.annotations.boxes_xyxy[:, 2:] - index.annotations.boxes_xyxy[:, :2]
    assert sides.min() >= 0.18 * 128
    assert sides.max() <= 0.45 * 128
    assert (np.bincount(index.annotations.label) > 0.2 * len(index.annotations)).all()


def test_boxes_are_the_extent_of_what_is_drawn():
    for number in range(60):
        for shape in draw_scene(128, 0, "val", number).shapes:
            inside, top, left = coverage(shape.outline(), 128, 128)
            rows, columns = np.nonzero(inside.max(1))[0], np.nonzero(inside.max(0))[0]
            drawn = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
            assert np.abs(np.array(drawn) - shape.box).max() <= 1
            if KINDS[shape.kind] == "square":
                assert inside.sum() / 255 == pytest.approx(shape.side**2, rel=0.05)


def test_drawn_shapes_match_their_annotations():
    """Inside a square, pixels have the colour of the shape, up to the noise of the background."""
    index = open_dataset("shapes?train=0&val=30")
    checked = 0
    for number, record in enumerate(index.images):
        shape = draw_scene(128, 0, "val", number).shapes[-1]  # on top
        x0, y0, x1, y1 = index.annotations.boxes_xyxy[index.annotation_rows(number)][-1]
        if KINDS[shape.kind] == "square":
            patch = render(record.path)[int(y0) + 2 : int(y1) - 2, int(x0) + 2 : int(x1) - 2]
            assert np.abs(patch.reshape(-1, 3).mean(0) - shape.colour).max() < 10
            checked += 1
    assert checked > 3


def test_no_shape_is_hidden():
    for number in range(200):
        shapes = draw_scene(128, 0, "train", number).shapes
        for position, mine in enumerate(shapes):
            for other in shapes[position + 1 :]:
                width = min(mine.x + mine.side, other.x + other.side) - max(mine.x, other.x)
                height = min(mine.y + mine.side, other.y + other.side) - max(mine.y, other.y)
                cover = max(width, 0) * max(height, 0) / min(mine.side, other.side) ** 2
                assert cover <= MOST_COVER + 1e-9


def test_only_the_chosen_classes_are_drawn_in_the_chosen_order():
    index = open_dataset("shapes?train=20&val=5&classes=star,circle")
    assert index.id2label == {0: "star", 1: "circle"}
    assert set(index.annotations.label) == {0, 1}
    image = 0
    kinds = (KINDS.index("star"), KINDS.index("circle"))
    shapes = draw_scene(128, 0, "train", image, kinds).shapes
    assert [kinds.index(shape.kind) for shape in shapes] == index.annotations.label[
        index.annotation_rows(image)
    ].tolist()
    everything = render(open_dataset("shapes?train=20&val=5").images[image].path)
    assert not np.array_equal(render(index.images[image].path), everything)


def test_shapes_have_the_chosen_sizes():
    index = open_dataset("shapes?size=100&train=50&val=0&side=0.1,0.2")
    sides = index.annotations.boxes_xyxy[:, 2] - index.annotations.boxes_xyxy[:, 0]
    assert 10 <= sides.min() < 12 < 18 < sides.max() <= 20
    pixels = render(index.images[0].path)
    assert not np.array_equal(pixels, render(open_dataset("shapes?size=100&train=1").images[0].path))
    assert np.array_equal(index.read_masks(0).any((1, 2)), [True] * len(index.read_masks(0)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("shapes?side=0.3", "side: got '0.3', expected the smallest and the largest side as shares"),
        ("shapes?side=0.3,0.2", "use two numbers from 0.02 to 1, such as side=0.12,0.38"),
        ("shapes?side=small,large", "side: got 'small,large'"),
        ("shapes?classes=circle,stra", "unknown shape 'stra'; did you mean 'star'"),
        ("shapes?classes=circle,circle", "expected each shape once"),
        ("shapes?sise=64", "unknown option 'sise'; did you mean 'size'"),
        ("shapes?size=big", "size: got 'big', expected an integer of at least 16"),
        ("shapes?size=8", "size: got '8'"),
        ("shapes?train=-1", "train: got '-1'"),
    ],
)
def test_wrong_options_are_named(path, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(path)


def test_a_path_that_only_resembles_shapes_is_an_error():
    with pytest.raises(ValueError, match="not an image of the built-in shapes"):
        render("shapes?size=128/middle/000001.png")
