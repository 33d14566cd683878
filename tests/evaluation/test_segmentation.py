"""Masks from end to end: dataset → transform → batch → model → post-processing → metrics."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modeling_detr import DetrForSegmentation, DetrTorchvisionImageProcessor
from modeling_detr.data import DetectionDataset, DetrCollator, eval_transform, open_dataset
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.evaluators.panoptic import PanopticEvaluator
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.structures_detr import DetectionBatch, DetectionIndex


PROCESSOR = DetrTorchvisionImageProcessor()


def batches_of(index: DetectionIndex, batch_size: int, masks: bool = True) -> list[DetectionBatch]:
    """Make batches of the dataset; every other image has another size, so that there is padding."""
    plain = DetectionDataset(index, eval_transform(64, 64), masks=masks)
    larger = DetectionDataset(index, eval_transform(128, 128), masks=masks)
    collate = DetrCollator(len(index.categories))
    samples = [(plain, larger)[number % 2][number] for number in range(len(index))]
    return [collate(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)]


class Oracle(nn.Module):
    """Predicts its labels: a confident query for each object, and masks that are confident in every pixel."""

    def __init__(self, num_labels: int, stuff: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_labels, self.stuff = num_labels, stuff

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None, labels: Any, output_masks: bool = False) -> Any:
        height, width = pixel_values.shape[-2:]
        logits = torch.zeros(len(labels), 8, self.num_labels + 1)
        logits[:, :, -1] = 20
        boxes = torch.full((len(labels), 8, 4), 0.5)
        masks = torch.full((len(labels), 8, height, width), -20.0)
        for row, label in enumerate(labels):
            for query, (kind, box, mask) in enumerate(
                zip(label["class_labels"], label["boxes"], label["masks"], strict=True)
            ):
                logits[row, query, kind], boxes[row, query] = 40, box
                masks[row, query, : mask.shape[0], : mask.shape[1]][mask] = 20
        sizes = [label["masks"].shape[1:] for label in labels]
        return SimpleNamespace(
            loss=None,
            logits=logits,
            pred_boxes=boxes,
            pred_masks=masks if output_masks else None,
            image_sizes=torch.tensor(sizes),
            canvas_size=torch.tensor([height, width]),
            stuff_labels=torch.tensor(self.stuff, dtype=torch.int64),
        )

    def predict_masks(self, outputs: Any, keep: Tensor) -> Tensor:
        raise AssertionError("every mask is judged")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_oracle_has_perfect_masks_also_in_padded_batches(batch_size: int) -> None:
    index = open_dataset("shapes?size=64&train=4&val=0", task="panoptic")
    results = evaluate(Oracle(5, [4]), batches_of(index, batch_size), PROCESSOR, index).results

    assert results["metrics"].ap == pytest.approx(1)
    assert results["mask_metrics"].ap == pytest.approx(1)
    assert results["panoptic"].pq == 1


def test_by_default_everything_that_the_model_predicts_is_scored(
    tiny_segmenter: Callable[..., DetrForSegmentation],
) -> None:
    index = open_dataset("shapes?size=64&train=3&val=0", task="panoptic")
    model = tiny_segmenter(num_labels=5, stuff_labels=[4])
    report = evaluate(model, batches_of(index, 3), PROCESSOR, index)
    assert list(report.results) == ["metrics", "mask_metrics", "panoptic", "queries"]
    assert 0 <= report.results["panoptic"].pq <= 1
    assert {"loss", "loss_mask", "loss_dice"} <= {*report.losses}

    # Without masks in the labels there is no loss, but the predictions are scored.
    again = evaluate(model, batches_of(index, 3, masks=False), PROCESSOR, index)
    assert again.losses == {}
    assert again.results == report.results


def test_without_stuff_there_is_no_panoptic_quality_and_evaluators_can_be_chosen(
    tiny_segmenter: Callable[..., DetrForSegmentation],
) -> None:
    index = open_dataset("shapes?size=64&train=2&val=0", task="instance")
    batches = batches_of(index, 2)
    report = evaluate(Oracle(4, []), batches, PROCESSOR, index)
    assert "panoptic" not in report.results
    assert report.results["mask_metrics"].ap == pytest.approx(1)

    evaluators = default_evaluators(index, "detection")
    boxes = evaluate(tiny_segmenter(num_labels=4), batches, PROCESSOR, index, evaluators=evaluators)
    assert list(boxes.results) == ["metrics", "queries"]


def test_evaluators_keep_the_predictions(tmp_path: Any) -> None:
    index = open_dataset("shapes?size=64&train=2&val=0", task="panoptic")
    masks, panoptic = CocoEvaluator(index, masks=True), PanopticEvaluator(index, tmp_path / "panoptic")
    evaluate(Oracle(5, [4]), batches_of(index, 2), PROCESSOR, index, evaluators=[masks, panoptic])

    assert "segmentation" in masks.to_coco_results()[0]
    written = panoptic.to_coco_panoptic()["annotations"]
    assert [len(entry["segments_info"]) for entry in written] == [
        index.annotation_rows(image_index).stop - index.annotation_rows(image_index).start for image_index in range(2)
    ]


def test_panoptic_quality_needs_the_masks_of_a_few_queries_only(
    tiny_segmenter: Callable[..., DetrForSegmentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_dataset("shapes?size=64&train=3&val=0", task="panoptic")
    model = tiny_segmenter(num_labels=5, stuff_labels=[4])
    model.detr.class_labels_classifier.bias.data[4] = 9.0  # all is ground
    batches, with_masks = batches_of(index, 3), evaluate(model, batches_of(index, 3), PROCESSOR, index)

    def evaluate_without_masks() -> EvaluationReport:
        evaluators = default_evaluators(index, "panoptic", skip=["masks"])
        return evaluate(model, batches, PROCESSOR, index, evaluators=evaluators)

    asked = []
    monkeypatch.setattr(
        model, "forward", lambda output_masks, _forward=model.forward, **inputs: (
            asked.append(output_masks) or _forward(output_masks=output_masks, **inputs)
        )
    )  # fmt: skip
    report = evaluate_without_masks()
    assert asked == [False]
    assert "mask_metrics" not in report.results
    assert report.results["panoptic"] == with_masks.results["panoptic"]
    assert report.results["panoptic"].per_class["ground"].true_positives == 3

    model.detr.class_labels_classifier.bias.data[4] = -9.0  # nothing is found
    model.detr.class_labels_classifier.bias.data[5] = 9.0
    assert evaluate_without_masks().results["panoptic"].pq == 0


def test_a_detector_has_no_masks_to_score() -> None:
    index = open_dataset("shapes?size=64&train=1&val=0", task="instance")
    with pytest.raises(ValueError, match="Linear: predicts no masks to score, expected a DetrForSegmentation"):
        evaluate(nn.Linear(1, 1), [], PROCESSOR, index, evaluators=[CocoEvaluator(index, masks=True)])
