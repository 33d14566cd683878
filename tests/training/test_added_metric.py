"""A metric from outside the package: one evaluator in the table, and report, log and model card show it."""

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from modeling_detr.evaluation.evaluators import EVALUATORS, EvaluatorEntry, default_evaluators
from modeling_detr.evaluation.metrics import Metric, Metrics
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class ConfidenceMetrics(Metrics):
    key: ClassVar[str] = "confidence"

    mean: float
    num_images: int

    def headline(self):
        return (Metric("mean_confidence", "mean confidence", self.mean),)


@dataclass(frozen=True, slots=True)
class DecisiveMetrics(ConfidenceMetrics):
    priority: ClassVar[int] = 10


class ConfidenceEvaluator:
    """The mean of the best score in each image."""

    needs = "boxes"
    metrics = ConfidenceMetrics

    def __init__(self, index):
        self.best_scores = {}

    def update(self, image_indices, results):
        self.best_scores |= {
            i: float(result["scores"].max()) for i, result in zip(image_indices, results, strict=True)
        }

    def gather(self, accelerator):
        pass  # the test has one process

    def compute(self):
        return self.metrics(sum(self.best_scores.values()) / len(self.best_scores), len(self.best_scores))


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(EVALUATORS, "confidence", EvaluatorEntry(ConfidenceEvaluator, ("detection",)))


def test_it_appears_in_report_log_and_model_card(added, tiny_recipe, capsys):
    recipe = tiny_recipe(epochs=1, trackers=[])
    report = Trainer.from_recipe(recipe).train()
    value = report.results["confidence"].mean
    assert 0 < value < 1
    assert report.primary_metric.name == "AP"

    read = {name: (recipe.run_dir / f"evaluation.{name}").read_text() for name in ("json", "md", "html")}
    assert json.loads(read["json"])["confidence"] == {"mean": pytest.approx(value), "num_images": 4}
    assert f"| mean confidence | {value:.3f} |" in read["md"]
    assert f"mean confidence {value:.3f}." in read["md"]  # the summary
    (row,) = re.findall("<tr><td>mean confidence</td>.*?</tr>", read["html"])
    assert f">{value:.3f}</td>" in row

    epoch = json.loads((recipe.run_dir / "log.jsonl").read_text().splitlines()[-1])
    assert epoch["mean_confidence"] == pytest.approx(value)
    assert f" · mean confidence {value:.3f} · " in capsys.readouterr().out
    assert "name: mean confidence" in (recipe.run_dir / "model" / "README.md").read_text()


def test_it_may_decide_which_model_is_best(added, tiny_recipe, monkeypatch):
    monkeypatch.setattr(ConfidenceEvaluator, "metrics", DecisiveMetrics)
    trainer = Trainer.from_recipe(tiny_recipe(epochs=1, trackers=[]))
    report = trainer.train()
    assert report.primary_metric.name == "mean confidence"
    assert trainer.state.best_ap == pytest.approx(report.primary_metric.value)


def test_a_task_builds_its_evaluators_in_the_order_of_the_table(added, tiny_recipe):
    index = prepare_run(tiny_recipe()).eval_index
    assert [type(one).__name__ for one in default_evaluators(index, "detection", skip=["queries"])] == [
        "CocoEvaluator",
        "ConfidenceEvaluator",
    ]
    with pytest.raises(ValueError, match="unknown evaluator 'query'; did you mean 'queries'"):
        default_evaluators(index, "detection", skip=["query"])


def test_two_evaluators_cannot_share_a_key(added, tiny_recipe, monkeypatch):
    monkeypatch.setattr(ConfidenceMetrics, "key", "metrics")
    with pytest.raises(ValueError, match="ConfidenceMetrics: the key 'metrics' is already used by another"):
        Trainer.from_recipe(tiny_recipe()).evaluate()


def test_an_evaluator_needs_a_known_kind_of_predictions(added, tiny_recipe, monkeypatch):
    monkeypatch.setattr(ConfidenceEvaluator, "needs", "box")
    with pytest.raises(ValueError, match="needs: got 'box', expected one of boxes, masks, segments, outputs"):
        Trainer.from_recipe(tiny_recipe()).evaluate()


def test_two_evaluators_cannot_log_the_same_name(monkeypatch, tiny_recipe):
    @dataclass(frozen=True, slots=True)
    class OtherAp(ConfidenceMetrics):
        def headline(self):
            return (Metric("ap", "AP", self.mean),)

    class OtherEvaluator(ConfidenceEvaluator):
        metrics = OtherAp

    monkeypatch.setitem(EVALUATORS, "other", EvaluatorEntry(OtherEvaluator, ("detection",)))
    with pytest.raises(ValueError, match="OtherAp: logs 'ap', which the evaluator 'metrics' logs already"):
        Trainer.from_recipe(tiny_recipe(epochs=1, trackers=[])).train()
