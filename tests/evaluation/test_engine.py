import dataclasses
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modeling_detr.data import open_dataset
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.evaluators.panoptic import PanopticEvaluator
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, batch_to_device, normalize
from modeling_detr.pages import Section, Text
from modeling_detr.structures_detr import (
    AnnotationTable,
    Category,
    DetectionBatch,
    DetectionIndex,
    ImageRecord,
)


BOXES_XYXY = [[10.0, 20, 50, 60], [0, 0, 100, 50], [5, 5, 25, 45]]


def shapes_index() -> DetectionIndex:
    return DetectionIndex(
        name="shapes",
        images=tuple(ImageRecord(10 + number, "", 100, 200) for number in range(3)),
        categories=(Category(1, "disc"), Category(5, "star")),
        annotations=AnnotationTable(
            image_index=np.arange(3),
            label=np.array([0, 1, 0]),
            boxes_xyxy=np.array(BOXES_XYXY),
            area=np.full(3, 2000.0),
            is_crowd=np.zeros(3, dtype=bool),
        ),
    )


def batch_of(positions: list[int], pixels: Tensor | None = None) -> DetectionBatch:
    corners = torch.tensor([BOXES_XYXY[position] for position in positions])[:, None]
    boxes = torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], -1)
    boxes = boxes / torch.tensor([200.0, 100, 200, 100])
    return {
        "pixel_values": torch.zeros(len(positions), 3, 8, 16) if pixels is None else pixels,
        "pixel_mask": torch.ones(len(positions), 8, 16, dtype=torch.int64),
        "labels": [
            {"class_labels": torch.tensor([position % 2]), "boxes": box, "image_index": torch.tensor(position)}
            for position, box in zip(positions, boxes, strict=True)
        ],
    }


class Oracle(nn.Module):
    """Predicts its labels: a confident query for the object, and one for "no object"."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)
        self.norm.eval()  # frozen: it is to stay in evaluation mode

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None, labels: Any = None) -> Any:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        logits = torch.zeros(len(labels), 2, 3)
        logits[:, 1, 2] = 9
        boxes = torch.full((len(labels), 2, 4), 0.5)
        for row, label in enumerate(labels):
            logits[row, 0, label["class_labels"]] = 9
            boxes[row, 0] = label["boxes"][0]
        loss = torch.tensor(float(len(labels)))
        return SimpleNamespace(logits=logits, pred_boxes=boxes, loss=loss, loss_dict={"loss_ce": loss * 2})


PROCESSOR = DetrTorchvisionImageProcessor()


def test_an_oracle_scores_ap_one() -> None:
    report = evaluate(Oracle(), [batch_of([2, 0]), batch_of([1])], PROCESSOR, shapes_index())
    assert report.results["metrics"].ap == pytest.approx(1)
    assert report.num_images == 3
    assert report.losses == pytest.approx({"loss": (2 * 2 + 1) / 3, "loss_ce": (4 * 2 + 2) / 3})
    assert report.seconds > 0
    assert report.images_per_second > 0


def test_the_mode_of_every_module_is_restored() -> None:
    model = Oracle()
    evaluate(model, [batch_of([0])], PROCESSOR, shapes_index())
    assert model.training
    assert not model.norm.training
    with pytest.raises(ValueError, match="image_index"):
        evaluate(model, [{**batch_of([0]), "labels": [{}]}], PROCESSOR, shapes_index())  # type: ignore[list-item, typeddict-item]
    assert model.training


def test_images_without_predictions_count_as_missed() -> None:
    assert evaluate(Oracle(), [batch_of([1])], PROCESSOR, shapes_index()).results["metrics"].ap == pytest.approx(0.5)


def test_an_evaluator_that_is_passed_in_keeps_the_predictions() -> None:
    evaluator = CocoEvaluator(shapes_index())
    evaluate(Oracle(), [batch_of([1])], PROCESSOR, shapes_index(), evaluators=[evaluator])
    best = max(evaluator.to_coco_results(), key=lambda row: row["score"])
    assert (best["image_id"], best["category_id"]) == (11, 5)
    assert best["bbox"] == pytest.approx([0, 0, 100, 50], abs=1e-4)


def test_results_are_gathered_from_all_processes(gather_with: Callable[..., None]) -> None:
    accelerator: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"), is_main_process=True)
    gather_with(lambda: evaluate(Oracle(), [batch_of([1])], PROCESSOR, shapes_index(), accelerator))
    report = evaluate(Oracle(), [batch_of([0, 2])], PROCESSOR, shapes_index(), accelerator)
    alone = evaluate(Oracle(), [batch_of([0, 2]), batch_of([1])], PROCESSOR, shapes_index())
    assert report.results == alone.results
    assert report.losses == pytest.approx(alone.losses)
    assert report.num_images == 3


def test_bytes_are_normalised_on_the_device_and_padding_is_zero() -> None:
    pixels = torch.randint(0, 256, (1, 3, 8, 16), dtype=torch.uint8)
    batch = batch_of([0], pixels)
    batch["pixel_mask"][:, :, 10:] = 0
    inputs = batch_to_device(batch, torch.device("cpu"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    expected = normalize(pixels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    torch.testing.assert_close(inputs["pixel_values"][..., :10], expected[..., :10])
    assert inputs["pixel_values"][..., 10:].eq(0).all()
    assert set(inputs["labels"][0]) == {"class_labels", "boxes", "image_index"}  # no key is lost


def test_the_pixel_mask_is_none_if_nothing_is_padded() -> None:
    batch = batch_of([0])
    inputs = batch_to_device(batch, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3)
    assert inputs["pixel_mask"] is None
    assert inputs["pixel_values"] is batch["pixel_values"]  # normalised already


# The report


def test_the_report_is_written_in_three_formats(tmp_path: Any) -> None:
    index = adopt_model_labels(shapes_index(), {0: "star", 1: "disc", 2: "<b>|"})
    report = evaluate(Oracle(), [{**batch_of([0, 1, 2]), "labels": batch_of([1, 0, 1])["labels"]}], PROCESSOR, index)
    written = report.save(tmp_path / "out")
    assert [path.name for path in written] == ["evaluation.json", "evaluation.md", "evaluation.html"]
    read = json.loads(written[0].read_text())
    assert read["metrics"]["ap"] == pytest.approx(report.results["metrics"].ap)
    assert read["metrics"]["per_class"]["<b>|"]["ap"] is None
    markdown = written[1].read_text()
    assert f"| AP        | {report.primary_metric.value:.3f} | .50:.95 |        all |        100 |" in markdown
    assert "| AP large  |     - | .50:.95 | area > 96² |        100 |" in markdown
    assert "loss_ce" in markdown
    page = written[2].read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "32² to 96²" in page
    assert "://" not in page
    assert page.count("<tr>") == page.count("</tr>") == 13 + 3 + 3


def test_the_page_has_plain_names_for_losses_and_folds_those_of_earlier_layers(tmp_path: Any) -> None:
    losses = {
        "loss": 2.0,
        "loss_ce": 0.5,
        "class_error": 25.0,
        "loss_ce_0": 0.75,
        "loss_ce_1": 0.625,
        "loss_me": 3.0,
    }
    boxes = CocoEvaluator(shapes_index()).compute()
    report = EvaluationReport("shapes", 3, {"metrics": boxes}, losses, 1.0, 3.0)
    page = report.to_html([("model", "runs/demo")], [Section("Pictures", [Text("none")])])
    shown, folded = page.split("<details>")
    for text in ("total", "classification (cross-entropy)", "matched objects with the wrong class, %", "loss_me"):
        assert f"<td>{text}</td>" in shown
    assert "runs/demo" in shown
    assert "<h2>Pictures</h2>" in shown
    assert "Losses of the earlier decoder layers" in folded
    assert re.search(
        r"layer 1.*layer 2.*<td>classification \(cross-entropy\)</td>.*0\.7500.*0\.6250", folded, re.DOTALL
    )
    assert "loss_ce_0" not in page
    assert "loss_ce_0" not in report.to_markdown()
    assert json.loads(report.to_json())["losses"] == losses


def test_masks_and_panoptic_quality_have_tables() -> None:
    index = open_dataset("shapes?size=48&train=4&val=0", task="panoptic")
    masks, panoptic = CocoEvaluator(index, masks=True), PanopticEvaluator(index)
    panoptic.update(range(4), [index.read_panoptic(position) for position in range(4)])
    boxes = CocoEvaluator(index)
    alone = EvaluationReport(index.name, 4, {"metrics": boxes.compute()}, {}, 1.0, 4.0)
    results = {metrics.key: metrics for metrics in (boxes.compute(), masks.compute(), panoptic.compute())}
    report = dataclasses.replace(alone, results=results)
    assert report.primary_metric.name == "PQ"
    assert report.summary().endswith("AP 0.000, AP50 0.000, mask AP 0.000, PQ 1.000.")
    assert "| stuff  | 1.000 | 1.000 | 1.000 |       1 |" in report.metrics_table()
    assert "Panoptic quality by class:" in report.metrics_table()
    assert "| ground   | stuff | 1.000 |" in report.to_markdown()
    assert "<h2>COCO, masks</h2>" in report.to_html()
    assert json.loads(report.to_json())["panoptic"]["per_class"]["ground"]["true_positives"] == 4
    assert "panoptic" not in alone.as_dict()
    assert alone.metrics_table().startswith("| metric")


def test_a_very_long_name_does_not_widen_the_tables() -> None:
    index = shapes_index()
    categories = (Category(1, "x" * 10_000), Category(2, "y"))
    index = DetectionIndex("shapes", index.images, categories, index.annotations)
    report = evaluate(Oracle(), [batch_of([0])], PROCESSOR, index)
    assert max(map(len, report.to_markdown().splitlines())) < 200
    assert "x" * 99 + "…" in report.to_markdown()


def test_names_are_escaped() -> None:
    index = shapes_index()
    index = DetectionIndex("a<b", index.images, (Category(1, "<i>|"), Category(2, "x")), index.annotations)
    report = evaluate(Oracle(), [batch_of([0])], PROCESSOR, index)
    assert "<td>&lt;i&gt;|</td>" in report.to_html()
    assert "Evaluation of a&lt;b" in report.to_html()
    assert r"| `<i>\|` |" in report.to_markdown()
