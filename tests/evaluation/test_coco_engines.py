"""All engines compute what pycocotools computes, bit for bit, on COCO's own files and on made-up ones."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from reference_cases import REFERENCE

from modeling_detr.data import read_coco
from modeling_detr.evaluation.coco_engines import ENGINES, CocoScoring, ScoredObjects, choose_engine
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator, encode_masks


DATA = REFERENCE / "coco_metrics"
OTHER_ENGINES = [
    pytest.param(
        name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    )
    for name in ENGINES
    if name != "pycocotools"
]
SIDE = 120  # of a made-up image, in pixels: its objects are small and medium
NUM_CLASSES = 4  # the last one has no objects


def made_up_objects(random, truth, num_images, masks):
    """Make objects in random places, or detections of `truth`: shifted, of another class, or several of one object.

    Some images have no objects, but detections. Scores have one decimal, so many are equal.
    """
    columns = []
    for image in range(num_images):
        if truth is None:
            count = random.integers(0, 9)
            corner, size = random.integers(0, 90, (count, 2)), random.integers(3, 60, (count, 2))
            boxes, labels = np.concatenate([corner, size], 1), random.integers(0, NUM_CLASSES - 1, count)
        else:
            objects = truth.image_ids == image
            rows = random.choice(np.flatnonzero(objects | (~objects).all()), random.integers(0, 40))
            boxes = truth.boxes_xywh[rows] + random.integers(-4, 5, (len(rows), 4))
            labels = np.where(random.random(len(rows)) < 0.8, truth.labels[rows], random.integers(0, NUM_CLASSES))
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:].clip(1)], 1).astype(np.float64)
        columns.append((np.full(len(boxes), image), labels, boxes))
    image_ids, labels, boxes = (np.concatenate(column) for column in zip(*columns, strict=True))
    rles = []
    for x, y, width, height in boxes.astype(int).clip(0).tolist():
        mask = np.zeros((1, SIDE, SIDE), dtype=bool)
        mask[:, y : y + height, x : x + width : random.integers(1, 3)] = True  # solid, or every other column
        rles += encode_masks(mask)
    return ScoredObjects(
        image_ids=image_ids,
        labels=labels.astype(np.int64),
        boxes_xywh=boxes,
        areas=np.array([float(coco_mask.area(rle)) for rle in rles]) if masks else boxes[:, 2] * boxes[:, 3],
        is_crowd=(random.random(len(boxes)) < 0.1) & (truth is None),
        scores=random.random(len(boxes)).round(1) if truth is not None else np.zeros(len(boxes)),
        masks=rles if masks else None,
    )


def made_up_scoring(seed, masks, num_images=30, max_detections=(1, 10, 100)):
    random = np.random.default_rng(seed)
    truth = made_up_objects(random, None, num_images, masks)
    return CocoScoring(
        images=[{"id": image, "height": SIDE, "width": SIDE} for image in range(num_images)],
        categories=[{"id": label, "name": f"class {label}"} for label in range(NUM_CLASSES)],
        truth=truth,
        detections=made_up_objects(random, truth, num_images, masks),
        scored_labels=[0, 1, 3],
        max_detections=max_detections,
    )


def without(objects):
    """Return no objects, of the same kind."""
    return ScoredObjects(*(column if column is None else column[:0] for column in objects))


def assert_equal_results(engine, scoring):
    expected, got = ENGINES["pycocotools"](scoring), ENGINES[engine](scoring)
    for name in ("precision", "recall"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), strict=True)
    return expected


@pytest.mark.parametrize("engine", OTHER_ENGINES)
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("seed", range(4))
def test_every_number_of_made_up_data_is_that_of_pycocotools(engine, masks, seed):
    expected = assert_equal_results(engine, made_up_scoring(seed, masks))
    assert 0.01 < expected.precision[expected.precision > -1].mean() < 0.9


@pytest.mark.parametrize("engine", OTHER_ENGINES)
def test_other_limits_of_detections_are_those_of_pycocotools(engine):
    assert_equal_results(engine, made_up_scoring(0, False, max_detections=(2, 5, 7)))


@pytest.mark.parametrize("engine", OTHER_ENGINES)
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_without_objects_or_detections_the_numbers_are_those_of_pycocotools(engine, masks):
    scoring = made_up_scoring(0, masks)
    no_objects, no_detections = without(scoring.truth), without(scoring.detections)
    assert_equal_results(engine, scoring._replace(truth=no_objects))
    assert_equal_results(engine, scoring._replace(detections=no_detections))
    assert_equal_results(engine, scoring._replace(truth=no_objects, detections=no_detections))


def coco_evaluator(engine, masks):
    """Return an evaluator with the detections of COCO's own example."""
    index = read_coco(DATA / "instances_val2014_100.json", require_images=False, masks=masks)
    kind = "segm" if masks else "bbox"
    found = json.loads((DATA / f"instances_val2014_fake{kind}100_results.json").read_text())
    label = {category.id: number for number, category in enumerate(index.categories)}
    evaluator = CocoEvaluator(index, masks=masks, engine=engine)
    for position, image in enumerate(index.images):
        rows = [row for row in found if row["image_id"] == image.id]
        boxes = torch.tensor([row.get("bbox", [0, 0, 1, 1]) for row in rows], dtype=torch.float64).reshape(-1, 4)
        result = {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            "labels": torch.tensor([label[row["category_id"]] for row in rows], dtype=torch.int64),
            "scores": torch.tensor([row["score"] for row in rows], dtype=torch.float64),
        }
        if masks:
            decoded = [coco_mask.decode(row["segmentation"]) for row in rows]
            pixels = np.array(decoded, dtype=bool).reshape(-1, image.height, image.width)
            result["masks"] = torch.from_numpy(pixels)
        evaluator.update([position], [result])
    return evaluator


@pytest.mark.parametrize("engine", OTHER_ENGINES)
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_all_metrics_of_cocos_example_are_those_of_pycocotools(engine, masks):
    """All twelve, and those of each class: no tolerance."""
    expected, got = (coco_evaluator(name, masks).compute().as_dict() for name in ("pycocotools", engine))
    assert expected["ap"] > 0.3
    assert got == expected


def test_the_first_installed_engine_is_chosen_and_pycocotools_is_always_there(monkeypatch):
    assert choose_engine() == next(name for name in ENGINES if importlib.util.find_spec(name))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True if name == "pycocotools" else None)
    assert choose_engine() == "pycocotools"
    with pytest.raises(ImportError, match="engine: 'hotcoco' is not installed; pip install hotcoco, or leave"):
        choose_engine("hotcoco")
    with pytest.raises(ValueError, match="engine: got 'pycoco'; did you mean 'pycocotools'"):
        choose_engine("pycoco")
