import pytest

from modeling_detr.analysis.crowding import crowding


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def test_images_are_grouped_by_their_number_of_objects(hand_made):
    objects = [(0, 0, BOX), (1, 0, BOX), (1, 0, FAR), (1, 0, BOX, "crowd")]
    found = crowding(hand_made(objects, [(0, 0, BOX, 0.9)], num_images=3)).groups
    assert {name: (group.images, group.ap50) for name, group in found.items()} == {
        "1": (1, pytest.approx(1)),
        "2 to 4": (1, 0),
    }
