import numpy as np
import pytest
import torch

from modeling_detr.visualization import class_colour, draw_heat, draw_heats


GREY = torch.full((3, 480, 640), 200, dtype=torch.uint8)


def test_the_maximum_is_bright_and_the_rest_is_the_image_in_grey():
    heat = torch.zeros(480, 640)
    heat[100:200, 300:400] = 7.0
    heat[300:400, 300:400] = 3.5
    drawn = np.asarray(draw_heat(GREY, heat)).astype(int)
    np.testing.assert_array_equal(drawn[20, 20], [120, 120, 120])
    assert drawn[150, 350].tolist() == [252, 255, 164]  # the last colour of "inferno"
    assert 120 < drawn[350, 350, 0] < drawn[150, 350, 0]


def test_a_map_of_zeros_is_drawn():
    assert np.unique(np.asarray(draw_heat(GREY, torch.zeros(480, 640)))).tolist() == [120]


def test_boxes_and_points_are_drawn_on_top():
    box = {"boxes": torch.tensor([[100, 100, 300, 300]]), "labels": torch.tensor([0])}
    drawn = np.asarray(draw_heat(GREY, torch.zeros(480, 640), box, {0: "cat"}, [(500, 400)]))
    assert (drawn[200, 95:106] != 120).any()
    assert (drawn[395:406, 490:511] == 255).any()
    assert (drawn[200, 200] == 120).all()


def test_a_map_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"got shape \(480, 480\), expected that of the image, \(480, 640\)"):
        draw_heat(GREY, torch.zeros(480, 480))


def test_each_map_and_its_box_have_a_colour_of_their_own():
    heats = torch.zeros(2, 480, 640)
    heats[0, 100:200, 100:200] = 3
    heats[1, 100:200, 400:500] = 0.1  # each relative to its own maximum
    of_one_class = {
        "boxes": torch.tensor([[100, 100, 200, 200], [400, 100, 500, 200]]),
        "labels": torch.tensor([5, 5]),
    }
    drawn = np.asarray(draw_heats(GREY, heats, of_one_class, {5: "cat"}))
    assert drawn[20, 20].tolist() == [120, 120, 120]
    for object_index, x in enumerate((150, 450)):
        assert tuple(drawn[150, x]) == class_colour(object_index)
        assert (drawn[195:206, x] == class_colour(object_index)).all(-1).any()


def test_maps_and_objects_that_do_not_fit_together_are_errors():
    with pytest.raises(ValueError, match=r"got shape \(2, 480, 480\), expected \(objects, 480, 640\)"):
        draw_heats(GREY, torch.zeros(2, 480, 480))
    one = {"boxes": torch.tensor([[1, 1, 2, 2]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"colours: got 2, expected 1"):
        draw_heats(GREY, torch.zeros(2, 480, 640), one)
