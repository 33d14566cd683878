import copy
import json
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from reference_cases import REFERENCE

from modeling_detr.data import open_dataset, read_coco
from modeling_detr.evaluation.evaluators import coco
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, DetectionResult, ImageRecord


DATA = REFERENCE / "coco_metrics"
FIGURES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    "AR1": "ar_1", "AR10": "ar_10", "AR100": "ar_100", "ARs": "ar_small", "ARm": "ar_medium", "ARl": "ar_large",
}  # fmt: skip


def result(boxes: Any, labels: Any, scores: Any) -> DetectionResult:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float64),
    }


def small_index() -> DetectionIndex:
    """Make two images: a 40x40 cat at (10, 10) and a crowd of cats in the first, a 30x30 dog in the second."""
    return DetectionIndex(
        name="pets",
        images=(ImageRecord(700, "a.jpg", 100, 100), ImageRecord("b", "b.jpg", 100, 200)),
        categories=(Category(17, "cat"), Category(18, "dog"), Category(25, "giraffe")),
        annotations=AnnotationTable(
            image_index=np.array([0, 0, 1]),
            label=np.array([0, 0, 1]),
            boxes_xyxy=np.array([[10.0, 10, 50, 50], [50, 50, 100, 100], [0, 0, 30, 30]]),
            area=np.array([1600.0, 2500, 900]),
            is_crowd=np.array([False, True, False]),
        ),
    )


PERFECT = [result([[10, 10, 50, 50]], [0], [0.9]), result([[0, 0, 30, 30]], [1], [0.8])]


@pytest.fixture(scope="module")
def coco_files() -> tuple[DetectionIndex, list[DetectionResult], dict[str, Any]]:
    truth = json.loads((DATA / "instances_val2014_100.json").read_text())
    found = json.loads((DATA / "instances_val2014_fakebbox100_results.json").read_text())
    position = {image["id"]: number for number, image in enumerate(truth["images"])}
    label = {category["id"]: number for number, category in enumerate(truth["categories"])}
    rows = sorted(truth["annotations"], key=lambda row: position[row["image_id"]])
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
    index = DetectionIndex(
        name="val2014",
        images=tuple(ImageRecord(image["id"], "", image["height"], image["width"]) for image in truth["images"]),
        categories=tuple(Category(category["id"], category["name"]) for category in truth["categories"]),
        annotations=AnnotationTable(
            image_index=np.array([position[row["image_id"]] for row in rows]),
            label=np.array([label[row["category_id"]] for row in rows]),
            boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            area=np.array([row["area"] for row in rows]),
            is_crowd=np.array([bool(row["iscrowd"]) for row in rows]),
        ),
    )
    results = []
    for image in truth["images"]:
        mine = [row for row in found if row["image_id"] == image["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in mine)]
        results.append(result(corners, [label[row["category_id"]] for row in mine], [row["score"] for row in mine]))
    return index, results, json.loads((DATA / "expected.json").read_text())["cocoapi_fake100_bbox"]


def test_box_metrics_equal_the_published_ones(
    coco_files: tuple[DetectionIndex, list[DetectionResult], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    index, results, expected = coco_files
    assert (len(index.annotations), sum(len(entry["scores"]) for entry in results)) == (
        expected["n_gt"],
        expected["n_dt"],
    )
    evaluator = CocoEvaluator(index)
    evaluator.update(range(len(index)), results)
    metrics = evaluator.compute()
    assert set(FIGURES) == set(expected["metrics"])
    for theirs, ours in FIGURES.items():
        assert getattr(metrics, ours) == pytest.approx(expected["metrics"][theirs], abs=1e-9), ours
    for name, ap in expected["per_class"].items():
        assert metrics.per_class[name].ap == pytest.approx(ap, abs=1e-9), name
    without_truth = set(metrics.per_class) - set(expected["per_class"])
    assert all(math.isnan(metrics.per_class[name].ap) for name in without_truth)
    assert capsys.readouterr().out == ""


def test_the_curves_of_the_matches_have_the_published_ap50(
    coco_files: tuple[DetectionIndex, list[DetectionResult], dict[str, Any]],
) -> None:
    index, results, _ = coco_files
    evaluator = CocoEvaluator(index)
    evaluator.update(range(len(index)), results)
    matches = evaluator.matches(iou=0.5)
    compared = 0
    for name, metrics in evaluator.compute().per_class.items():
        curve = matches.curves()[name]
        scores = matches.score[matches.label == matches.class_names.index(name)]
        # pycocotools ranks predictions with the same score, which no threshold can tell apart
        if not math.isnan(metrics.ap50) and len(set(scores.tolist())) == len(scores):
            compared += 1
            reached = [curve.precision[curve.recall >= recall] for recall in np.linspace(0, 1, 101)]
            interpolated = [float(precision.max()) if len(precision) else 0.0 for precision in reached]
            assert np.mean(interpolated) == pytest.approx(metrics.ap50, abs=1e-9), name
    assert compared > 20


def test_mask_metrics_equal_the_published_ones() -> None:
    index = read_coco(DATA / "instances_val2014_100.json", require_images=False, masks=True)
    found = json.loads((DATA / "instances_val2014_fakesegm100_results.json").read_text())
    expected = json.loads((DATA / "expected.json").read_text())["cocoapi_fake100_segm"]
    label = {category.id: number for number, category in enumerate(index.categories)}
    evaluator = CocoEvaluator(index, masks=True)
    for position, image in enumerate(index.images):
        mine = [row for row in found if row["image_id"] == image.id]
        one = result([[0, 0, 1, 1]] * len(mine), [label[row["category_id"]] for row in mine],
                     [row["score"] for row in mine])  # fmt: skip
        masks = [coco_mask.decode(row["segmentation"]) for row in mine]
        one["masks"] = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, image.height, image.width))
        evaluator.update([position], [one])
    metrics = evaluator.compute()

    for theirs, ours in FIGURES.items():
        assert getattr(metrics, ours) == pytest.approx(expected["metrics"][theirs], abs=1e-9), ours
    for name, ap in expected["per_class"].items():
        assert metrics.per_class[name].ap == pytest.approx(ap, abs=1e-9), name
    written = json.loads(json.dumps(evaluator.to_coco_results()))
    assert sorted(map(str, written)) == sorted(map(str, found))


def test_ground_truth_masks_score_ap_one_and_stuff_is_not_scored() -> None:
    index = open_dataset("shapes?size=64&train=6&val=0", task="panoptic")
    boxes, masks = CocoEvaluator(index), CocoEvaluator(index, masks=True)
    for position in range(len(index)):
        rows = index.annotation_rows(position)
        labels = index.annotations.label[rows]
        truth = result(index.annotations.boxes_xyxy[rows], labels, np.full(len(labels), 0.9))
        truth["masks"] = torch.from_numpy(index.read_masks(position))
        for evaluator in (boxes, masks):
            evaluator.update([position], [truth])
    for evaluator in (boxes, masks):
        metrics = evaluator.compute()
        assert metrics.ap == pytest.approx(1)
        assert math.isnan(metrics.per_class["ground"].ap)


def test_masks_of_a_wrong_shape_are_named() -> None:
    index = open_dataset("shapes?size=32&train=1&val=0", task="instance")
    evaluator = CocoEvaluator(index, masks=True)
    one = result([[0, 0, 9, 9]], [0], [0.5])
    with pytest.raises(ValueError, match=r"shapes, predictions of image 0: got the keys .*, expected 'masks'"):
        evaluator.update([0], [one])
    with pytest.raises(ValueError, match=r"masks have shape \(1, 8, 8\), expected \(1, 32, 32\)"):
        evaluator.update([0], [{**one, "masks": torch.zeros(1, 8, 8, dtype=torch.bool)}])
    with pytest.raises(ValueError, match="pets: has no masks, which mask AP needs"):
        CocoEvaluator(small_index(), masks=True)


def test_perfect_predictions_score_ap_one_and_a_class_without_ground_truth_is_left_out() -> None:
    evaluator = CocoEvaluator(small_index())
    evaluator.update([0, 1], PERFECT)
    metrics = evaluator.compute()
    figures = [metrics.ap, metrics.ap50, metrics.ar_100, metrics.ap_small, metrics.ap_medium]
    assert figures == pytest.approx([1] * 5)
    assert math.isnan(metrics.ap_large)
    assert metrics.per_class["cat"].num_boxes == 1  # the crowd is not counted
    assert math.isnan(metrics.per_class["giraffe"].ap)


@pytest.mark.parametrize("engine", [None, "pycocotools"])
def test_many_classes_are_scored_in_parts_with_the_same_figures(
    coco_files: tuple[DetectionIndex, list[DetectionResult], dict[str, Any]],
    engine: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, results, _ = coco_files
    evaluator = CocoEvaluator(index, engine=engine)
    evaluator.update(range(len(results)), results)
    at_once = evaluator.compute()
    monkeypatch.setattr(coco, "CLASSES_AT_ONCE", 7)
    assert repr(evaluator.compute()) == repr(at_once)


def test_no_predictions_score_ap_zero() -> None:
    for results in ([], [result([], [], [])] * 2):
        evaluator = CocoEvaluator(small_index())
        evaluator.update(range(len(results)), results)
        metrics = evaluator.compute()
        assert metrics.ap == metrics.ap50 == metrics.ar_100 == metrics.per_class["dog"].ap == 0


def test_without_ground_truth_there_is_no_ap() -> None:
    index = small_index()
    nothing = index.annotations.take(np.zeros(3, dtype=bool))
    for images in (index.images, ()):
        metrics = CocoEvaluator(DetectionIndex("empty", images, index.categories, nothing)).compute()
        assert math.isnan(metrics.ap)
        assert metrics.as_dict()["ap"] is None
        assert metrics.as_dict()["per_class"]["cat"]["ap50"] is None


def test_a_detection_inside_a_crowd_is_not_a_false_positive() -> None:
    evaluator = CocoEvaluator(small_index())
    evaluator.update([0], [result([[60, 60, 90, 90], [10, 10, 50, 50]], [0, 0], [0.99, 0.5])])
    assert evaluator.compute().per_class["cat"].ap == pytest.approx(1)


def test_an_image_that_is_passed_twice_counts_once() -> None:
    evaluator = CocoEvaluator(small_index())
    evaluator.update([0, 1, 1], [*PERFECT, PERFECT[1]])
    evaluator.update([0], PERFECT[:1])
    assert len(evaluator.to_coco_results()) == 2
    assert evaluator.compute().ap == pytest.approx(1)


def test_results_are_written_with_the_ids_of_the_dataset() -> None:
    evaluator = CocoEvaluator(small_index())
    evaluator.update([1, 0], PERFECT[::-1])
    written = json.loads(json.dumps(evaluator.to_coco_results()))
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in written] == [
        (700, 17, [10, 10, 40, 40]),
        ("b", 18, [0, 0, 30, 30]),
    ]
    assert written[0]["score"] == pytest.approx(0.9)


def test_the_metrics_are_plain_json() -> None:
    evaluator = CocoEvaluator(small_index())
    evaluator.update([0, 1], PERFECT)
    read = json.loads(json.dumps(evaluator.compute().as_dict(), allow_nan=False))
    assert read["ap"] == pytest.approx(1)
    assert read["per_class"]["cat"] == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1, "ar_100": 1, "num_boxes": 1})


def test_gather_merges_the_processes(gather_with: Callable[..., None]) -> None:
    evaluators = [CocoEvaluator(small_index()), CocoEvaluator(small_index())]
    evaluators[0].update([0], PERFECT[:1])
    evaluators[1].update([0, 1], PERFECT)
    accelerator: Any = SimpleNamespace(num_processes=2)
    for mine, others in (evaluators, reversed(evaluators)):
        evaluator, other = copy.deepcopy(mine), copy.deepcopy(others)
        gather_with(partial(other.gather, accelerator))
        evaluator.gather(accelerator)
        assert evaluator.compute().ap == pytest.approx(1)
        assert len(evaluator.to_coco_results()) == 2


bad_updates = [
    ([0], PERFECT, "pets: got 1 image indices for 2 results"),
    ([0, 2], PERFECT, "pets: image index 2 is out of range for 2 images"),
    (
        [0],
        [result([[0, 0, 1, 1]], [3], [0.5])],
        r"pets, predictions of image 700: labels range from 3 to 3, but the dataset has 3 classes \(0-2\)",
    ),
    (
        [0],
        [result([[0, 0, 1, 1]], [0], [math.nan])],
        "pets, predictions of image 700: scores or boxes are NaN or infinite",
    ),
    (
        [1],
        [result([[0, 0, 1, math.inf]], [0], [0.5])],
        "pets, predictions of image b: scores or boxes are NaN or infinite",
    ),
    (
        [0],
        [result([[0, 0, 1, 1]], [0, 1], [0.5])],
        r"labels \(2,\) and boxes \(1, 4\), expected \(K,\)",
    ),
]


@pytest.mark.parametrize(("positions", "results", "message"), bad_updates)
def test_predictions_of_another_dataset_are_named(positions: list[int], results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(small_index()).update(positions, results)
