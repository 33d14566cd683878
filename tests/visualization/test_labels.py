"""Labels: where they go, how large they are, and what they say."""

import numpy as np
import pytest
import torch

from modeling_detr.visualization import draw_prediction
from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import ink
from modeling_detr.visualization.labels import Label, around_box, free_place


NAMES = dict(enumerate(["person", "cactus", "kangaroo", "potted plant", "cat", "fire hydrant"]))


def written(monkeypatch: pytest.MonkeyPatch, height: int, width: int, num_objects: int, **sides: int) -> Canvas:
    """The canvas of random objects, with the places of their labels."""
    canvases = []
    of = Canvas.of
    monkeypatch.setattr(Canvas, "of", lambda *arguments: canvases.append(of(*arguments)) or canvases[-1])
    generator = torch.Generator().manual_seed(0)
    sizes, centres = (torch.rand(num_objects, 2, generator=generator) for _ in range(2))
    image_size = torch.tensor([width, height])
    corners = ((centres - sizes / 8).clip(0), (centres + sizes / 8).clip(max=1))
    objects = {
        "boxes": torch.cat([corner * image_size for corner in corners], dim=1),
        "labels": torch.arange(num_objects) % len(NAMES),
        "scores": torch.linspace(1, 0.5, num_objects),
    }
    draw_prediction(np.zeros((height, width, 3), np.uint8), objects, NAMES, **sides)
    return canvases[0]


@pytest.mark.parametrize("num_objects", [1, 10, 100])
@pytest.mark.parametrize("side", [300, 2000])
def test_labels_are_within_the_picture_and_overlap_no_other(monkeypatch, side, num_objects):
    canvas = written(monkeypatch, side * 3 // 4, side, num_objects)
    labels = np.array(canvas.taken)
    assert len(labels) >= 0.6 * num_objects
    assert (labels >= -1).all()
    assert (labels[:, 2:] <= np.add(canvas.picture.size, 1)).all()
    for index, (x0, y0, x1, y1) in enumerate(labels):
        others = np.delete(labels, index, axis=0)
        apart = (
            (others[:, 2] - 1 <= x0) | (others[:, 0] + 1 >= x1) | (others[:, 3] - 1 <= y0) | (others[:, 1] + 1 >= y1)
        )
        assert apart.all()


def test_a_label_goes_above_its_box_or_inside_at_the_edge_or_below() -> None:
    nothing = np.zeros((0, 4))

    def place(box, taken=nothing):
        return free_place(around_box(box)(40, 10), (40, 10), (200, 100), taken, np.array([box], float))

    assert place((50, 50, 150, 90)) == (50, 40)
    assert place((50, 0, 150, 90)) == (50, 0)
    assert place((180, 50, 200, 90)) == (160, 40)
    assert place((50, 50, 60, 52), np.array([[0.0, 0, 200, 50]])) == (50, 52)
    assert place((50, 50, 60, 52), np.array([[0.0, 0, 200, 100]])) is None


def test_a_label_hides_no_small_object_if_there_is_another_place() -> None:
    above = np.array([[55.0, 42, 75, 48]])
    box = (50.0, 50.0, 150.0, 90.0)
    x, y = free_place(around_box(box)(40, 10), (40, 10), (200, 100), np.zeros((0, 4)), above)
    assert x >= 75 or y >= 48 or y + 10 <= 42


def test_text_and_lines_grow_with_the_picture_and_shrink_among_many_objects() -> None:
    small, large = (Canvas.of(np.zeros((side, side, 3), np.uint8)) for side in (480, 4000))
    assert 10 <= small.text_size(1) < large.text_size(100) < large.text_size(1) < 4000 / 20
    assert 1 < small.line_width(1) <= large.line_width(100) < large.line_width(1)
    assert small.text_size(10) == small.text_size(1)


def test_the_name_is_bold_the_score_regular_and_left_out_where_there_is_no_room() -> None:
    def label(score, taken=()):
        canvas = Canvas.of(np.zeros((480, 640, 3), np.uint8))
        canvas.taken += taken
        canvas.write([Label("cat", score, (255, 255, 255), lambda width, height: [(100, 100)])], np.zeros((0, 4)))
        return canvas

    plain, scored = label(None), label(0.5)
    assert plain.taken[0][2] < scored.taken[0][2]
    narrow = label(0.5, [(plain.taken[0][2], 0, 640, 480)])
    assert narrow.taken[1] == plain.taken[0]
    assert np.array_equal(narrow.picture, plain.picture)
    start = int(plain.taken[0][2])
    name = np.array(plain.picture)[102:114, 103 : start - 3, 0]
    score = np.array(scored.picture)[102:114, start : int(scored.taken[0][2]) - 3, 0]
    assert (name < 128).mean() > (score < 128).mean()


def test_a_very_long_name_ends_in_an_ellipsis_within_half_of_the_picture(monkeypatch):
    monkeypatch.setitem(NAMES, 0, "a very long name " * 20)
    canvas = written(monkeypatch, 200, 300, 1)
    ((x0, _, x1, _),) = canvas.taken
    assert x1 - x0 < 0.75 * canvas.picture.width


@pytest.mark.parametrize(("colour", "expected"), [((240, 228, 66), 0), ((0, 114, 178), 255), ((255, 255, 255), 0)])
def test_text_has_the_better_contrast_with_its_ground(colour, expected):
    assert ink(colour) == (expected,) * 3


def test_large_images_can_be_drawn_smaller_with_legible_text():
    objects = {"boxes": torch.tensor([[1000.0, 1000, 2000, 2000]]), "labels": torch.tensor([4])}
    picture = draw_prediction(np.zeros((3000, 4000, 3), np.uint8), objects, NAMES, longest_side=400)
    assert picture.size == (400, 300)
    assert np.asarray(picture)[150:200, 100].any(-1).all()  # the box's left side
    assert np.asarray(picture)[80:100, 100:130].any()  # its label
