import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from modeling_detr.visualization import (
    class_colour,
    draw_comparison,
    draw_detections,
    draw_panoptic,
    draw_panoptic_comparison,
    plot_curves,
    tile,
)


BLACK = np.zeros((600, 800, 3), np.uint8)
NO_BOXES = torch.zeros(0, 4)
NO_LABELS = torch.zeros(0, dtype=torch.int64)


def test_colours_of_classes_are_stable_and_apart() -> None:
    colours = [class_colour(label) for label in range(20)]
    assert colours == [class_colour(label) for label in range(20)]
    distances = [
        sum(abs(a - b) for a, b in zip(one, other, strict=True))
        for number, one in enumerate(colours)
        for other in colours[:number]
    ]
    assert min(distances) > 40


def test_the_box_is_drawn_where_it_is_in_its_classes_colour() -> None:
    picture = np.array(draw_detections(BLACK, torch.tensor([[100, 200, 300, 400]]), torch.tensor([3])))
    assert picture.shape == BLACK.shape
    colour = class_colour(3)
    for y, x in [(300, 100), (300, 300), (400, 200), (200, 290)]:
        assert tuple(picture[y, x]) == colour, (y, x)
    assert not picture[250:390, 110:290].any()  # nothing inside
    assert not picture[410:].any()
    assert not BLACK.any()  # the input is untouched


def test_small_images_are_enlarged_and_boxes_with_them() -> None:
    picture = draw_detections(np.zeros((60, 80, 3), np.uint8), torch.tensor([[10.0, 20, 30, 40]]), torch.tensor([0]))
    assert picture.size == (640, 480)
    assert picture.getpixel((80, 240)) == class_colour(0)
    assert picture.getpixel((240, 240)) == class_colour(0)


def test_the_name_and_the_score_are_written() -> None:
    box, label = torch.tensor([[100.0, 200, 300, 400]]), torch.tensor([1])

    def tag(scores: Any, names: Any) -> Any:
        return np.array(draw_detections(BLACK, box, label, scores, names))[150:200].tobytes()

    pictures = [tag(None, None), tag(None, {1: "cat"}), tag(torch.tensor([0.5]), {1: "cat"}), tag(None, {2: "cat"})]
    assert len(set(pictures[:3])) == 3
    assert pictures[3] == pictures[0]  # a label without a name is written as its number


@pytest.mark.parametrize("box", [[0, 0, 5, 5], [780, 590, 800, 600], [-50, -50, 900, 900], [50, 5, 20, 2]])
def test_boxes_at_and_past_the_edge_are_drawn(box: list[float]) -> None:
    picture = draw_detections(BLACK, torch.tensor([box]), torch.tensor([0]), torch.tensor([0.99]), {0: "a long name"})
    assert np.array(picture).any()


def test_the_surest_detection_lies_on_top() -> None:
    boxes = torch.tensor([[100.0, 200, 300, 400]] * 2)
    picture = draw_detections(BLACK, boxes, torch.tensor([0, 1]), torch.tensor([0.9, 0.6]))
    assert picture.getpixel((100, 300)) == class_colour(0)


def test_numbers_of_boxes_labels_and_scores_must_agree() -> None:
    with pytest.raises(ValueError, match="1 boxes, 0 labels: wanted one of each"):
        draw_detections(BLACK, torch.zeros(1, 4), NO_LABELS)
    with pytest.raises(ValueError, match="0 boxes, 0 labels, 1 scores"):
        draw_detections(BLACK, NO_BOXES, NO_LABELS, torch.ones(1))


def test_a_comparison_shows_sure_predictions_beside_the_truth() -> None:
    boxes = torch.tensor([[100.0, 100, 200, 200], [300, 300, 400, 400]])
    result: Any = {"scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([0, 1]), "boxes": boxes}
    picture = draw_comparison(BLACK, result, boxes[1:], torch.tensor([1]))
    assert picture.width > 2 * 800
    halves = [np.array(picture)[60:, :800], np.array(picture)[60:, 808:]]
    for half, seen, unseen in [(halves[0], 0, 1), (halves[1], 1, 0)]:
        assert (half == class_colour(seen)).all(-1).any()
        assert not (half == class_colour(unseen)).all(-1).any()


def test_pictures_are_tiled_in_rows() -> None:
    pictures = [
        Image.new("RGB", (20, 10), "red"),
        Image.new("RGB", (10, 30), "green"),
        Image.new("RGB", (5, 5), "blue"),
    ]
    sheet = tile(pictures, columns=2)
    assert sheet.size == (48, 68)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((28, 29)) == (0, 128, 0)
    assert sheet.getpixel((0, 38)) == (0, 0, 255)
    assert tile(pictures[:1], columns=5).size == (20, 10)
    with pytest.raises(ValueError, match="0 pictures"):
        tile([], columns=2)
    with pytest.raises(ValueError, match="3 pictures, 1 titles"):
        tile(pictures, columns=2, titles=["one"])


def entries(epochs: int) -> list[dict[str, Any]]:
    step = {"kind": "step", "epoch": 1, "step": 1, "loss": 9.0}
    rows = [
        {"kind": "epoch", "epoch": number + 1, "loss": 5.0 - number, "loss_ce": 1.0, "class_error": 50.0, "ap": None}
        for number in range(epochs)
    ]
    return [step, *rows, {"kind": "epoch", "epoch": epochs + 1, "loss": 1.0, "ap": 0.5, "ap50": 0.8}]


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_curves_of_several_runs_are_drawn_into_one_file(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves({"first": entries(3), "second": entries(60)}, tmp_path / "new" / name)
    assert (tmp_path / "new" / name).stat().st_size > 10_000


def test_curves_leave_no_figure_open(tmp_path: Path) -> None:
    plot_curves({"run": entries(2)}, tmp_path / "curves.png")
    assert pyplot.get_fignums() == []


def test_a_run_without_an_epoch_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Nothing to draw: young; wanted at least one whole epoch"):
        plot_curves({"old": entries(2), "young": entries(0)[:1]}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="no runs were given"):
        plot_curves({}, tmp_path / "curves.png")


# Masks and segments


def panoptic_of(segments: np.ndarray, labels: dict[int, int]) -> Any:
    return {
        "segmentation": torch.from_numpy(segments),
        "segments_info": [{"id": number, "label_id": label} for number, label in labels.items()],
    }


def test_masks_tint_their_own_pixels_in_the_colour_of_the_class() -> None:
    masks = torch.zeros(1, 600, 800, dtype=torch.bool)
    masks[0, 250:350, 150:250] = True
    box, label = torch.tensor([[100, 200, 300, 400]]), torch.tensor([3])
    picture = np.array(draw_detections(BLACK, box, label, masks=masks))
    assert np.abs(picture[300, 200].astype(int) - np.array(class_colour(3)) // 2).max() <= 1
    assert not picture[210:245, 110:290].any()
    with pytest.raises(ValueError, match=r"masks of shape \(1, 60, 80\); wanted \(1, 600, 800\)"):
        draw_detections(BLACK, box, label, masks=masks[:, ::10, ::10])


def test_segments_are_tinted_and_named_and_void_is_left_alone() -> None:
    segments = np.zeros((600, 800), np.int64)
    segments[:300, :400], segments[:300, 400:] = 7, 9
    panoptic = panoptic_of(segments, {7: 2, 9: 2})
    picture = np.array(draw_panoptic(BLACK, panoptic))
    assert not picture[310:].any()
    first, second = picture[20, 20], picture[20, 780]
    assert np.abs(first.astype(int) - np.array(class_colour(2)) // 2).max() <= 1
    assert not np.array_equal(first, second)  # two objects of one class
    assert not np.array_equal(picture, np.array(draw_panoptic(BLACK, panoptic, {2: "cat"})))
    with pytest.raises(ValueError, match=r"segmentation of shape \(60, 80\)"):
        draw_panoptic(BLACK, panoptic_of(segments[::10, ::10], {7: 2}))


def test_small_images_are_enlarged_and_segments_with_them() -> None:
    segments = np.zeros((6, 8), np.int64)
    segments[0, 0] = 1
    picture = np.array(draw_panoptic(np.zeros((6, 8, 3), np.uint8), panoptic_of(segments, {1: 0})))
    assert picture.shape == (480, 640, 3)
    assert picture[75, 75].any()
    assert not picture[100:, 200:].any()


def test_predicted_segments_stand_beside_the_true_ones() -> None:
    segments = np.zeros((600, 800), np.int64)
    segments[100:500, 100:700] = 1
    nothing, truth = panoptic_of(segments * 0, {}), panoptic_of(segments, {1: 4})
    picture = np.array(draw_panoptic_comparison(BLACK, nothing, truth))
    assert picture.shape[1] > 1600
    left, right = picture[-600:, :800], picture[-600:, -800:]
    assert not left[200:400, 200:600].any()
    assert right[300, 200].any()
