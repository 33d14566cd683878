import numpy as np
import pytest

from modeling_detr.visualization import draw_slots
from modeling_detr.visualization.slots import box_colours


def test_small_boxes_are_green_wide_ones_red_and_tall_ones_blue():
    colours = box_colours(np.array([[0.02, 0.02], [0.95, 0.2], [0.2, 0.95], [0, 0]]))
    assert colours.argmax(-1).tolist() == [1, 0, 2, 1]
    assert ((colours >= 0) & (colours <= 1)).all()


def test_a_point_is_at_the_centre_of_its_box():
    """The one panel is on the left of the legend; the picture's y runs downwards, as the image's."""
    pixels = {}
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75)):
        drawn = np.asarray(draw_slots([[[x, y, 0.9, 0.1]]]).convert("RGB")).astype(int)
        panel = drawn[:, : drawn.shape[1] // 2]
        rows, columns = ((panel[..., 0] - panel[..., 2] > 100) & (panel[..., 0] > 150)).nonzero()
        assert len(rows) > 3
        pixels[x, y] = rows.mean(), columns.mean()
    assert pixels[0.75, 0.25][0] == pytest.approx(pixels[0.25, 0.25][0], abs=1)
    assert pixels[0.75, 0.25][1] > pixels[0.25, 0.25][1] + 50
    assert pixels[0.25, 0.75][0] > pixels[0.25, 0.25][0] + 50


def test_twenty_slots_are_drawn_unless_others_are_chosen():
    boxes = np.random.default_rng(0).random((3, 100, 4))
    few, many = draw_slots(boxes, [7, 99], ["a", "b"]), draw_slots(boxes)
    assert many.width > few.width
    assert many.height > 3 * few.height


@pytest.mark.parametrize(
    ("boxes", "slots", "titles", "message"),
    [
        (np.zeros((3, 4)), None, None, r"boxes_cxcywh: got shape \(3, 4\), expected \(images, slots, 4\)"),
        (np.zeros((0, 9, 4)), None, None, "got shape"),
        (np.zeros((1, 9, 4)), [9], None, "expected numbers from 0 to 8"),
        (np.zeros((1, 9, 4)), [1], ["a", "b"], "one title for each"),
    ],
)
def test_wrong_arguments_are_errors(boxes, slots, titles, message):
    with pytest.raises(ValueError, match=message):
        draw_slots(boxes, slots, titles)
