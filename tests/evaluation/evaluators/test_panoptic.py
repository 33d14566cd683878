import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import REAL_DATA, REFERENCE, needs_real_data
from torchvision.ops import masks_to_boxes

from modeling_detr.data import DetectionDataset, open_dataset, read_panoptic, read_panoptic_predictions
from modeling_detr.data.masks import read_segment_ids
from modeling_detr.evaluation.evaluators.panoptic import PanopticEvaluator, PanopticMetrics
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, MaskColumn


SIZE = (8, 10)
CAT, SKY = 0, 1


class ArrayMasks:
    """Masks of images in memory: (A, H, W)."""

    def __init__(self, masks: np.ndarray) -> None:
        self.masks = masks

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.masks[rows]


def index_of(truth: list[tuple[np.ndarray, list[tuple[int, bool]]]]) -> DetectionIndex:
    """A dataset of maps (H, W), in which segment k of an image has the value k + 1, with (label, is_crowd) of each."""
    masks = [segments == number for segments, infos in truth for number in range(1, len(infos) + 1)]
    labels = [info for _, infos in truth for info in infos]
    return DetectionIndex(
        name="pets",
        images=tuple(ImageRecord(100 + number, f"{number}.jpg", *SIZE) for number in range(len(truth))),
        categories=(Category(17, "cat"), Category(187, "sky", is_thing=False), Category(18, "dog")),
        annotations=AnnotationTable(
            image_index=np.repeat(np.arange(len(truth)), [len(infos) for _, infos in truth]),
            label=np.array([label for label, _ in labels]),
            boxes_xyxy=np.tile([0.0, 0.0, 1.0, 1.0], (len(masks), 1)),
            area=np.array([float(mask.sum()) for mask in masks]),
            is_crowd=np.array([crowd for _, crowd in labels]),
            masks=MaskColumn.of(ArrayMasks(np.array(masks)), len(masks)),
        ),
    )


def columns(*spans: tuple[int, int, int]) -> np.ndarray:
    """Make a map (H, W) in which the columns of each (start, stop, value) have that value."""
    segments = np.zeros(SIZE, np.int64)
    for start, stop, value in spans:
        segments[:, start:stop] = value
    return segments


def prediction(segments: np.ndarray, labels: dict[int, int]) -> Any:
    infos = [{"id": number, "label_id": label, "score": 0.9} for number, label in labels.items()]
    return {"segmentation": torch.from_numpy(segments), "segments_info": infos}


def judged(truth: np.ndarray, infos: list, predicted: Any) -> PanopticMetrics:
    evaluator = PanopticEvaluator(index_of([(truth, infos)]))
    evaluator.update([0], [predicted])
    return evaluator.compute()


def counts(metrics: PanopticMetrics, name: str) -> tuple[int, int, int]:
    one = metrics.per_class[name]
    return one.true_positives, one.false_positives, one.false_negatives


def test_the_metrics_equal_those_of_panopticapi(tmp_path: Path) -> None:
    folder = REFERENCE / "golden" / "panoptic_quality"
    index = read_panoptic(folder / "ground_truth.json", require_images=False)
    expected = json.loads((folder / "expected.json").read_text())
    labels = {category.id: label for label, category in enumerate(index.categories)}
    evaluator = PanopticEvaluator(index, save_to=tmp_path / "found")
    for position, predicted in read_panoptic_predictions(folder / "prediction.json", index):
        evaluator.update([position], [predicted])
    metrics = evaluator.compute()

    for name, suffix, number in (
        ("All", "", metrics.num_classes),
        ("Things", "_things", metrics.num_things),
        ("Stuff", "_stuff", metrics.num_stuff),
    ):
        for figure in ("pq", "sq", "rq"):
            assert getattr(metrics, figure + suffix) == pytest.approx(expected[name][figure], abs=1e-9)
        assert number == expected[name]["n"]
    for category_id, figures in expected["per_class"].items():
        found = metrics.per_class[index.categories[labels[int(category_id)]].name]
        assert (found.pq, found.sq, found.rq) == pytest.approx(tuple(figures.values()), abs=1e-9)

    # What was written is read back as a dataset, and as predictions of the first.
    written = evaluator.save_json()
    own = read_panoptic(written, require_images=False)
    itself, again = PanopticEvaluator(own), PanopticEvaluator(index)
    itself.update([0], [own.read_panoptic(0)])
    assert itself.compute().pq == 1
    again.update([0], [predicted for _, predicted in read_panoptic_predictions(written, index)])
    assert again.compute() == metrics


def test_predictions_of_another_dataset_are_refused(tmp_path: Path) -> None:
    index = index_of([(columns((0, 4, 1)), [(CAT, False)])])
    with pytest.raises(ValueError, match="prediction of image 142238: pets has no such image"):
        list(read_panoptic_predictions(REFERENCE / "golden" / "panoptic_quality" / "prediction.json", index))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json: no panoptic predictions"):
        list(read_panoptic_predictions(tmp_path / "list.json", index))


def coco_sample(folder: Path) -> DetectionIndex:
    """COCO's image 39769 with its panoptic annotations."""
    source = REAL_DATA / "coco_39769"
    categories = json.loads((REFERENCE / "golden" / "panoptic_quality" / "ground_truth.json").read_text())[
        "categories"
    ]
    name = "000000039769.png"
    segments = json.loads((source / "coco_panoptic_annotations.txt").read_text())
    content = {
        "images": [{"id": 39769, "file_name": name, "height": 480, "width": 640}],
        "annotations": [{"image_id": 39769, "file_name": name, "segments_info": segments}],
        "categories": categories,
    }
    for target, image in (("annotations/panoptic_val2017", source / "coco_panoptic"), ("val2017", source)):
        (folder / target).mkdir(parents=True)
        shutil.copy(image / name, folder / target)
    (folder / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return open_dataset(folder, "val2017", task="panoptic")


@needs_real_data
def test_the_ground_truth_of_a_coco_image_scores_pq_one(tmp_path: Path) -> None:
    index = coco_sample(tmp_path)
    sample = DetectionDataset(index, masks=True)[0]
    target = sample["target"]
    assert [index.categories[label].name for label in target["class_labels"]] == [
        "cat", "cat", "couch", "remote", "remote", "blanket",
    ]  # fmt: skip
    assert sum(category.is_thing for category in index.categories) == 80
    assert not index.categories[int(target["class_labels"][-1])].is_thing
    corners = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])  # the original's, to their last pixel's end
    assert torch.equal(corners, target["boxes"].as_subclass(torch.Tensor))
    assert torch.equal(target["masks"].sum((1, 2)).float(), target["area"])

    numbers = torch.arange(1, 7)
    segments = (target["masks"].as_subclass(torch.Tensor) * numbers[:, None, None]).sum(0)
    evaluator = PanopticEvaluator(index, save_to=tmp_path / "found")
    evaluator.update([0], [prediction(segments.numpy(), dict(enumerate(target["class_labels"].tolist(), start=1)))])
    metrics = evaluator.compute()
    assert (metrics.pq, metrics.sq, metrics.rq, metrics.num_classes) == (1, 1, 1, 4)
    written = tmp_path / "found" / "000000039769.png"
    assert (read_segment_ids(str(written)) == segments.numpy()).all()


def test_void_is_excluded_from_the_union() -> None:
    metrics = judged(columns((0, 4, 1)), [(CAT, False)], prediction(columns((1, 8, 5)), {5: CAT}))

    assert counts(metrics, "cat") == (1, 0, 0)
    assert metrics.pq == metrics.sq == 3 / 4  # columns 1-3 of 0-3; columns 4-7 are void
    assert math.isnan(metrics.pq_stuff)
    assert math.isnan(metrics.per_class["dog"].pq)
    assert metrics.as_dict()["per_class"]["dog"]["pq"] is None


def test_a_segment_mostly_in_void_is_not_a_false_positive_but_one_half_in_void_is() -> None:
    truth = columns((0, 6, 1))
    assert counts(judged(truth, [(SKY, False)], prediction(columns((4, 9, 1)), {1: CAT})), "cat") == (0, 0, 0)
    assert counts(judged(truth, [(SKY, False)], prediction(columns((4, 8, 1)), {1: CAT})), "cat") == (0, 1, 0)


def test_a_segment_in_a_crowd_of_its_class_is_not_a_false_positive() -> None:
    truth, infos = columns((0, 6, 1), (6, 10, 2)), [(CAT, True), (SKY, False)]
    metrics = judged(truth, infos, prediction(columns((0, 6, 3), (6, 10, 4)), {3: CAT, 4: SKY}))
    assert counts(metrics, "cat") == (0, 0, 0)  # neither found nor missed
    assert metrics.num_classes == 1

    other = judged(truth, infos, prediction(columns((0, 6, 3)), {3: 2}))
    assert counts(other, "dog") == (0, 1, 0)


def test_an_iou_of_one_half_is_not_a_match() -> None:
    metrics = judged(
        columns((0, 4, 1), (4, 8, 2)), [(CAT, False), (SKY, False)], prediction(columns((0, 8, 1)), {1: 0})
    )

    assert counts(metrics, "cat") == (0, 1, 1)
    assert metrics.per_class["cat"].sq == 0


def test_images_without_a_prediction_count_as_missed_and_repeated_images_count_once() -> None:
    truth = columns((0, 4, 1), (4, 10, 2)), [(CAT, False), (SKY, False)]
    evaluator = PanopticEvaluator(index_of([truth, truth]))
    for _ in range(2):
        evaluator.update([1], [prediction(truth[0], {1: CAT, 2: SKY})])

    metrics = evaluator.compute()
    assert counts(metrics, "cat") == counts(metrics, "sky") == (1, 0, 1)
    assert metrics.pq == metrics.rq == pytest.approx(2 / 3)
    assert metrics.sq == 1


def test_several_processes_give_the_same_metrics_as_one(gather_with: Callable[..., None]) -> None:
    draw = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(6):
        segments = np.sort(draw.integers(0, 4, SIZE).ravel()).reshape(SIZE)
        truth.append((segments, [(CAT, False), (SKY, False), (2, True)]))
        found.append(prediction(np.roll(segments, int(draw.integers(0, 4))), {1: CAT, 2: SKY, 3: 2}))
    index = index_of(truth)
    alone = PanopticEvaluator(index)
    alone.update(range(6), found)
    parts = [PanopticEvaluator(index) for _ in range(3)]
    for rank, part in enumerate(parts):
        part.update([5 - rank, rank], [found[5 - rank], found[rank]])
    accelerator: Any = SimpleNamespace(num_processes=3)
    for rank in range(3):
        part, *others = copy.deepcopy([*parts[rank:], *parts[:rank]])
        gather_with(*(partial(other.gather, accelerator) for other in others))
        part.gather(accelerator)
        assert part.compute().as_dict() == alone.compute().as_dict()


def test_an_image_scored_by_two_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = columns((0, 4, 1)), [(CAT, False)]
    evaluator = PanopticEvaluator(index_of([truth]))
    evaluator.update([0], [prediction(truth[0], {1: CAT})])
    monkeypatch.setattr("accelerate.utils.gather_object", lambda item: item * 2)
    with pytest.raises(ValueError, match="pets: image 100 was scored by several processes"):
        evaluator.gather(SimpleNamespace(num_processes=2))  # type: ignore[arg-type]


def test_predictions_are_written_in_the_format_of_panopticapi(tmp_path: Path) -> None:
    truth = columns((0, 4, 1), (4, 10, 2)), [(CAT, False), (SKY, False)]
    evaluator = PanopticEvaluator(index_of([truth]), save_to=tmp_path / "panoptic")
    evaluator.update([0], [prediction(columns((0, 4, 0), (4, 8, 70_000), (8, 10, -1)), {0: CAT, 70_000: SKY})])
    content = json.loads(evaluator.save_json().read_text())

    (annotation,) = content["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (100, "0.png")
    cat, sky = annotation["segments_info"]
    assert (cat["category_id"], cat["isthing"], cat["area"], cat["bbox"]) == (17, 1, 32, [0, 0, 4, 8])
    assert (sky["category_id"], sky["isthing"], sky["area"], sky["bbox"]) == (187, 0, 32, [4, 0, 4, 8])
    with Image.open(tmp_path / "panoptic" / "0.png") as image:
        assert image.mode == "RGB"
    identifiers = read_segment_ids(str(tmp_path / "panoptic" / "0.png"))
    assert (identifiers == columns((0, 4, cat["id"]), (4, 8, sky["id"]))).all()


def test_every_image_has_a_segmentation_map_of_its_own(tmp_path: Path) -> None:
    # the second of two images named "a" used to overwrite the map of the image "a_1"
    paths = ["one/a.jpg", "two/a.jpg", "a_1.jpg", "A_0.jpg", "b.jpg", "B.jpg", "one/a_0.jpg", f"{'x' * 251}.jpg"]
    truth = [(columns((0, 4, 1)), [(CAT, False)])] * len(paths)
    index = index_of(truth)
    records = [dataclasses.replace(image, path=path) for image, path in zip(index.images, paths, strict=True)]
    evaluator = PanopticEvaluator(dataclasses.replace(index, images=tuple(records)), save_to=tmp_path / "panoptic")
    evaluator.update(list(range(len(paths))), [prediction(columns((0, 4, 0)), {0: CAT})] * len(paths))
    names = [annotation["file_name"] for annotation in evaluator.to_coco_panoptic()["annotations"]]
    assert len({name.lower() for name in names}) == len(paths)
    assert sorted(path.name for path in (tmp_path / "panoptic").iterdir()) == sorted(names)


bad_predictions = [
    (
        prediction(np.zeros((2, 2), np.int64), {}),
        r"pets, prediction of image 100: segmentation has shape \(2, 2\)",
    ),
    (prediction(columns((0, 9, 1)), {1: 3}), r"labels range from 3 to 3, but the dataset has 3 classes \(0-2\)"),
    (prediction(columns((0, 9, 1)), {1: 0, 4: 0}), "segment 4 has no pixels"),
]


@pytest.mark.parametrize(("predicted", "message"), bad_predictions)
def test_invalid_predictions_are_named(predicted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged(columns((0, 4, 1)), [(CAT, False)], predicted)


def test_overlapping_masks_are_refused() -> None:
    index = index_of([(columns((0, 4, 1)), [(CAT, False), (CAT, False)])])
    index.annotations.masks.sources[0].masks[1] = index.annotations.masks.sources[0].masks[0]
    with pytest.raises(ValueError, match="masks of image 100 overlap"):
        PanopticEvaluator(index).update([0], [prediction(columns(), {})])
