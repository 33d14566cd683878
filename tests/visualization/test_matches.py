"""Hits, false predictions and missed objects: which they are, and how they are drawn."""

import numpy as np
import torch

from modeling_detr.visualization import class_colour, draw_comparison
from modeling_detr.visualization.matches import match


GREY = np.full((600, 800, 3), 100, np.uint8)
BOXES = torch.tensor([[100.0, 100, 300, 300], [400, 100, 600, 300], [100, 350, 300, 550]])


def test_a_hit_has_the_class_and_half_of_the_place_of_a_true_object_that_no_better_one_has_taken():
    truth = {"boxes": BOXES, "labels": torch.tensor([0, 1, 2])}
    predicted = {
        "boxes": torch.stack([BOXES[0] + 5, BOXES[0], BOXES[1], BOXES[2] + 100]),
        "labels": torch.tensor([0, 0, 2, 2]),
        "scores": torch.tensor([0.6, 0.9, 0.8, 0.7]),
    }
    matches = match(predicted, truth)
    assert matches.predicted.tolist() == [False, True, False, False]  # a duplicate, a hit, another class, elsewhere
    assert matches.truth.tolist() == [True, False, False]
    assert matches.titles == ("predicted: 1 hit, 3 false (dashed)", "truth: 1 found, 2 missed (dashed)")


def test_without_objects_on_one_side_nothing_matches():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    some = {"boxes": BOXES, "labels": torch.tensor([0, 1, 2])}
    assert match(empty, some).titles == ("predicted: 0 hits, 0 false (dashed)", "truth: 0 found, 3 missed (dashed)")
    assert not match(some, empty).predicted.any()
    assert draw_comparison(GREY, empty, some).width > 1600


def test_hits_have_solid_lines_and_false_and_missed_objects_dashed_ones():
    predicted = {"boxes": BOXES[:2], "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8])}
    truth = {"boxes": BOXES[[0, 2]], "labels": torch.tensor([0, 2])}
    picture = np.array(draw_comparison(GREY, predicted, truth))[-600:]
    left, right = picture[:, :800], picture[:, -800:]

    def coloured(half, label, row, columns):
        return (half[row, columns] == class_colour(label)).all(-1).mean()

    assert coloured(left, 0, 300, slice(102, 299)) == 1
    assert 0.3 < coloured(left, 1, 300, slice(402, 599)) < 0.7
    assert coloured(right, 0, 300, slice(102, 299)) == 1
    assert 0.3 < coloured(right, 2, 550, slice(102, 299)) < 0.7


def test_false_segments_are_striped():
    truth_map = torch.zeros(600, 800, dtype=torch.int64)
    truth_map[:300], truth_map[300:500] = 1, 2
    truth = {"segmentation": truth_map, "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}]}
    predicted = {**truth, "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 3}]}
    matches = match(predicted, truth)
    assert matches.predicted.tolist() == matches.truth.tolist() == [True, False]
    assert matches.titles[0] == "predicted: 1 hit, 1 false (striped)"
    left = np.array(draw_comparison(GREY, predicted, truth))[-600:, :800]
    untouched = (left == 100).all(-1)
    assert not untouched[20:280].any()
    assert 0.3 < untouched[320:350, 20:780].mean() < 0.7


def test_pixels_that_are_void_in_the_truth_do_not_count_against_a_segment():
    truth_map = torch.zeros(10, 10, dtype=torch.int64)
    truth_map[:4] = 1
    truth = {"segmentation": truth_map, "segments_info": [{"id": 1, "label_id": 0}]}
    predicted = {"segmentation": torch.ones(10, 10), "segments_info": [{"id": 1, "label_id": 0}]}
    assert match(predicted, truth).predicted.tolist() == [True]


def test_a_crowd_region_is_not_missed_and_predictions_in_it_are_not_false():
    truth = {"boxes": BOXES[:1], "labels": torch.tensor([0]), "is_crowd": torch.tensor([True])}
    inside = torch.tensor([[120.0, 120, 160, 160]] * 2)
    matches = match({"boxes": inside, "labels": torch.tensor([0, 1])}, truth)
    assert matches.predicted.tolist() == [True, False]
    assert matches.titles == ("predicted: 0 hits, 1 false (dashed)", "truth: 0 found, 0 missed (dashed)")

    truth_map, predicted_map = torch.ones(10, 10, dtype=torch.int64), torch.zeros(10, 10, dtype=torch.int64)
    predicted_map[:3] = 1
    segments = {"segmentation": truth_map, "segments_info": [{"id": 1, "label_id": 0, "is_crowd": True}]}
    matches = match({"segmentation": predicted_map, "segments_info": [{"id": 1, "label_id": 0}]}, segments)
    assert matches.predicted.tolist() == matches.truth.tolist() == [True]
    assert matches.num_hits == 0
