import numpy as np
import pytest

from modeling_detr.training.picture_history import drop_later_pictures, find_pictures, keep_pictures
from modeling_detr.training.trainer import Trainer


PICTURES = {"000_cat": np.zeros((8, 8, 3), np.uint8), "001_dog": np.zeros((8, 8, 3), np.uint8)}


def steps(folder):
    return [int(pictures.key) for pictures in find_pictures(folder)]


def test_the_first_the_last_and_evaluations_at_equal_distances_are_kept(tmp_path):
    for step in range(10, 110, 10):
        keep_pictures(tmp_path, step, PICTURES, most=4)
        assert len(steps(tmp_path)) == min(step // 10, 4)
        assert (steps(tmp_path)[0], steps(tmp_path)[-1]) == (10, step)
    gaps = np.diff(steps(tmp_path))
    assert gaps.max() <= 2 * gaps.min() + 10
    assert find_pictures(tmp_path)[0].names == ["cat", "dog"]


@pytest.mark.parametrize(("most", "kept"), [(1, [30]), (2, [10, 30])])
def test_few_can_be_kept(tmp_path, most, kept):
    for step in (10, 20, 30):
        keep_pictures(tmp_path, step, PICTURES, most)
    assert steps(tmp_path) == kept


def test_a_resumed_run_drops_those_that_it_will_draw_again(tmp_path):
    for step in (10, 20, 30):
        keep_pictures(tmp_path, step, PICTURES, most=9)
    drop_later_pictures(tmp_path, 20)
    assert steps(tmp_path) == [10, 20]


def test_a_run_keeps_pictures_of_its_evaluations(tiny_recipe):
    recipe = tiny_recipe(trackers=[], num_images_to_log=2)
    Trainer.from_recipe(recipe).train()
    assert steps(recipe.run_dir) == [5, 10]
    assert [len(pictures.files) for pictures in find_pictures(recipe.run_dir)] == [2, 2]
