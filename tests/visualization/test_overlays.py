"""Predictions on images: boxes, masks, segments, and an overlay added from outside."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from modeling_detr.visualization import OVERLAYS, class_colour, draw_comparison, draw_prediction


BLACK = np.zeros((600, 800, 3), np.uint8)


def objects(boxes: Any, labels: Any, **parts: Any) -> dict[str, Any]:
    return {"boxes": torch.as_tensor(boxes).reshape(-1, 4), "labels": torch.as_tensor(labels), **parts}


def panoptic_of(segments: np.ndarray, labels: dict[int, int]) -> dict[str, Any]:
    return {
        "segmentation": torch.from_numpy(segments),
        "segments_info": [{"id": segment_id, "label_id": label} for segment_id, label in labels.items()],
    }


ONE_BOX = objects([100.0, 200, 300, 400], [3])


def test_class_colours_are_stable_and_distinct() -> None:
    colours = [class_colour(label) for label in range(20)]
    assert colours == [class_colour(label) for label in range(20)]
    distances = [
        sum(abs(a - b) for a, b in zip(one, other, strict=True))
        for index, one in enumerate(colours)
        for other in colours[:index]
    ]
    assert min(distances) > 40


# Boxes


def test_a_box_is_drawn_at_its_place_in_the_colour_of_its_class() -> None:
    picture = np.array(draw_prediction(BLACK, ONE_BOX))
    assert picture.shape == BLACK.shape
    for y, x in [(300, 100), (300, 300), (400, 200), (200, 290)]:
        assert tuple(picture[y, x]) == class_colour(3), (y, x)
    assert not picture[250:390, 110:290].any()  # nothing inside
    assert not picture[410:].any()
    assert not BLACK.any()  # the input is unchanged


def test_small_images_are_enlarged_together_with_their_boxes() -> None:
    picture = draw_prediction(np.zeros((60, 80, 3), np.uint8), objects([10.0, 20, 30, 40], [0]))
    assert picture.size == (640, 480)
    assert picture.getpixel((80, 240)) == class_colour(0)
    assert picture.getpixel((240, 240)) == class_colour(0)


def test_the_name_and_the_score_are_written() -> None:
    def tag(names: Any, **parts: Any) -> Any:
        return np.array(draw_prediction(BLACK, {**ONE_BOX, **parts}, names))[150:200].tobytes()

    pictures = [tag(None), tag({3: "cat"}), tag({3: "cat"}, scores=torch.tensor([0.5])), tag({2: "cat"})]
    assert len(set(pictures[:3])) == 3
    assert pictures[3] == pictures[0]  # a class without a name is written as its label


@pytest.mark.parametrize("box", [[0, 0, 5, 5], [780, 590, 800, 600], [-50, -50, 900, 900], [50, 5, 20, 2]])
def test_boxes_at_and_beyond_the_edge_are_drawn(box: list[float]) -> None:
    prediction = objects(box, [0], scores=torch.tensor([0.99]))
    assert np.array(draw_prediction(BLACK, prediction, {0: "a long name"})).any()


@pytest.mark.timeout(20)
def test_boxes_far_beyond_the_edge_take_no_longer() -> None:
    boxes = objects([[-1e9, -1e9, 1e9, 1e9], [100, -1e9, 300, 1e9]], [0, 3], is_match=torch.tensor([False, False]))
    picture = np.array(draw_prediction(BLACK, boxes))
    assert 0.3 < (picture[:, 100] == class_colour(3)).all(-1).mean() < 0.7


def test_the_detection_with_the_highest_score_is_on_top() -> None:
    prediction = objects([[100.0, 200, 300, 400]] * 2, [0, 1], scores=torch.tensor([0.9, 0.6]))
    assert draw_prediction(BLACK, prediction).getpixel((100, 300)) == class_colour(0)


def test_boxes_labels_and_scores_must_have_the_same_length() -> None:
    with pytest.raises(ValueError, match="got 1 boxes, 0 labels, expected one of each"):
        draw_prediction(BLACK, objects([0.0, 0, 1, 1], []))
    with pytest.raises(ValueError, match="got 0 boxes, 0 labels, 1 scores"):
        draw_prediction(BLACK, objects([], [], scores=torch.ones(1)))
    with pytest.raises(ValueError, match=r"got the keys \['boxes'\], expected 'labels'"):
        draw_prediction(BLACK, {"boxes": torch.ones(1, 4)})


# Masks and segments


def test_a_mask_tints_its_pixels_in_the_colour_of_its_class() -> None:
    masks = torch.zeros(1, 600, 800, dtype=torch.bool)
    masks[0, 250:350, 150:250] = True
    picture = np.array(draw_prediction(BLACK, {**ONE_BOX, "masks": masks}))
    assert np.abs(picture[300, 200].astype(int) - np.array(class_colour(3)) // 2).max() <= 1
    assert not picture[210:245, 110:290].any()
    with pytest.raises(ValueError, match=r"masks: got shape \(1, 60, 80\), expected \(1, 600, 800\)"):
        draw_prediction(BLACK, {**ONE_BOX, "masks": masks[:, ::10, ::10]})


@pytest.mark.parametrize("ground", [0, 255])
def test_masks_have_an_outline_that_stands_out_from_any_ground(ground: int) -> None:
    masks = torch.zeros(1, 600, 800, dtype=torch.bool)
    masks[0, 220:380, 120:280] = True
    image = np.full_like(BLACK, ground)
    row = np.array(draw_prediction(image, {**ONE_BOX, "masks": masks}, overlays=["masks"]))[300].astype(int)
    assert (row[:120] == ground).all()
    assert (row[120] == 0).all()  # the black edge of a bright colour
    assert (row[121:124] == class_colour(3)).all()
    assert (row[130:270] != class_colour(3)).any(-1).all()  # tinted


def test_segments_are_tinted_and_named_and_void_is_untouched() -> None:
    segments = np.zeros((600, 800), np.int64)
    segments[:300, :400], segments[:300, 400:] = 7, 9
    panoptic = panoptic_of(segments, {7: 2, 9: 2})
    picture = np.array(draw_prediction(BLACK, panoptic))
    assert not picture[310:].any()
    first, second = picture[20, 20], picture[20, 780]
    assert np.abs(first.astype(int) - np.array(class_colour(2)) // 2).max() <= 1
    assert not np.array_equal(first, second)  # two objects of one class
    assert not np.array_equal(picture, np.array(draw_prediction(BLACK, panoptic, {2: "cat"})))
    with pytest.raises(ValueError, match=r"segmentation: got shape \(60, 80\), expected \(600, 800\)"):
        draw_prediction(BLACK, panoptic_of(segments[::10, ::10], {7: 2}))


def test_small_images_are_enlarged_together_with_their_segments() -> None:
    segments = np.zeros((6, 8), np.int64)
    segments[0, 0] = 1
    picture = np.array(draw_prediction(np.zeros((6, 8, 3), np.uint8), panoptic_of(segments, {1: 0})))
    assert picture.shape == (480, 640, 3)
    assert picture[75, 75].any()
    assert not picture[100:, 200:].any()


def test_instances_are_drawn_as_boxes_and_masks_and_not_once_more_as_segments() -> None:
    masks = torch.zeros(1, 600, 800, dtype=torch.bool)
    masks[0, 250:350, 150:250] = True
    detection = {**ONE_BOX, "scores": torch.tensor([0.9]), "masks": masks}
    instance = {**detection, **panoptic_of(np.where(masks[0].numpy(), 0, -1), {0: 3})}
    assert np.array_equal(draw_prediction(BLACK, instance), draw_prediction(BLACK, detection))


# Beside the truth


def test_a_comparison_shows_confident_predictions_beside_the_truth() -> None:
    boxes = torch.tensor([[100.0, 100, 200, 200], [300, 300, 400, 400]])
    predicted = objects(boxes, [0, 1], scores=torch.tensor([0.9, 0.1]))
    picture = draw_comparison(BLACK, predicted, objects(boxes[1:], [1]))
    assert picture.width > 2 * 800
    halves = [np.array(picture)[60:, :800], np.array(picture)[60:, 808:]]
    for half, drawn, absent in [(halves[0], 0, 1), (halves[1], 1, 0)]:
        assert (half == class_colour(drawn)).all(-1).any()
        assert not (half == class_colour(absent)).all(-1).any()


def test_predicted_segments_are_shown_beside_the_true_ones() -> None:
    segments = np.zeros((600, 800), np.int64)
    segments[100:500, 100:700] = 1
    picture = np.array(draw_comparison(BLACK, panoptic_of(segments * 0, {}), panoptic_of(segments, {1: 4})))
    assert picture.shape[1] > 1600
    left, right = picture[-600:, :800], picture[-600:, -800:]
    assert not left[200:400, 200:600].any()
    assert right[300, 200].any()


# One more kind of overlay


def test_an_overlay_added_from_outside_is_drawn_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_points(canvas: Any, prediction: Any) -> None:
        draw = ImageDraw.Draw(canvas.picture)
        for x, y in (prediction.get("points", torch.zeros(0, 2)) * canvas.scale).tolist():
            draw.rectangle((x - 3, y - 3, x + 3, y + 3), fill=(1, 2, 3))

    monkeypatch.setitem(OVERLAYS, "points", draw_points)
    image = np.full((300, 400, 3), 9, np.uint8)
    prediction = objects(
        [[50.0, 100, 150, 200]] * 2,
        [3, 3],
        scores=torch.tensor([0.9, 0.1]),
        points=torch.tensor([[100.0, 150], [9, 9]]),
    )
    picture = draw_prediction(image, prediction, shortest_side=600)
    assert picture.getpixel((200, 300)) == (1, 2, 3)
    assert picture.getpixel((100, 300)) == class_colour(3)  # the box is still drawn
    assert draw_prediction(image, prediction, overlays=["boxes"], shortest_side=600).getpixel((200, 300)) == (9, 9, 9)
    left_half = np.array(draw_comparison(image, prediction, objects([], []), shortest_side=600))[:, :800]
    drawn = (left_half == (1, 2, 3)).all(-1)
    assert drawn.sum() == 7 * 7  # the point of the object below the threshold is not drawn
