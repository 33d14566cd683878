"""Speed and memory of a run, and warnings if it goes wrong with a finite loss."""

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest
import torch

from modeling_detr.evaluation.evaluators.queries import QueryMetrics
from modeling_detr.training import monitoring
from modeling_detr.training.engine import StepResult
from modeling_detr.training.memory import peak_gib
from modeling_detr.training.monitoring import Pace, find_symptoms, is_due
from modeling_detr.training.trainer import Trainer


def evaluation(object_queries=3.0, spread=0.9, ap50=0.0, objects=4.0):
    results = {"queries": QueryMetrics(objects, object_queries, spread)}
    return SimpleNamespace(results=results, log_values=lambda: {"ap50": ap50})


def warnings(reports, due=True):
    seen = {}
    return [len(find_symptoms(report, seen, due)) for report in reports]


ILL, WELL, FINDS_NOTHING = evaluation(spread=0.01), evaluation(ap50=0.4), evaluation(object_queries=0.0)


def test_a_lasting_symptom_is_reported_once_and_again_when_it_returns():
    assert warnings([ILL, ILL, ILL, WELL, ILL, ILL]) == [0, 1, 0, 0, 0, 1]
    assert warnings([FINDS_NOTHING, ILL, FINDS_NOTHING, ILL]) == [0, 0, 0, 0]
    assert warnings([evaluation(object_queries=0.0, spread=0.01)] * 2) == [0, 2]


def test_at_the_start_of_a_run_symptoms_are_not_reported():
    assert warnings([ILL, ILL, FINDS_NOTHING, FINDS_NOTHING], due=False) == [0, 0, 0, 0]
    assert not is_due(5_000, total_steps=100_000, warmup_steps=0)
    assert is_due(10_000, total_steps=100_000, warmup_steps=0)
    assert not is_due(1_199, total_steps=5_200, warmup_steps=200)
    assert is_due(1_200, total_steps=5_200, warmup_steps=200)
    assert not is_due(150, total_steps=300, warmup_steps=0)


def test_a_model_that_had_learned_is_reported_also_at_the_start():
    assert warnings([WELL, FINDS_NOTHING, FINDS_NOTHING], due=False) == [0, 0, 1]
    accidental = evaluation(ap50=0.001)  # random weights are as often sure of a class as of nothing
    assert warnings([accidental, FINDS_NOTHING, FINDS_NOTHING], due=False) == [0, 0, 0]


def test_data_that_cannot_show_a_symptom_gives_no_warning():
    assert warnings([evaluation(spread=None)] * 3) == [0, 0, 0]  # one object an image
    assert warnings([evaluation(object_queries=0.0, objects=0.0)] * 3) == [0, 0, 0]  # none at all


@pytest.fixture
def stuck_recipe(tiny_recipe, monkeypatch):
    """A recipe whose run does not change the model, and checks for symptoms after a few steps."""
    monkeypatch.setattr(monitoring, "MIN_STEPS", 0)
    options = {"learning_rate": 0.0, "backbone_learning_rate": 0.0, "epochs": 3, "trackers": []}
    return tiny_recipe(**options, data="shapes?size=64&train=20&val=8")


def entries(recipe, kind):
    lines = (recipe.run_dir / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


@torch.no_grad()
def collapse(detector):
    detector.model.query_position_embeddings.weight[:] = detector.model.query_position_embeddings.weight[:1].clone()
    detector.bbox_predictor.layers[-1].weight.zero_()
    detector.class_labels_classifier.bias[-1] = 20.0


def test_a_collapsed_model_is_reported_once_in_print_and_log_also_across_a_resume(stuck_recipe, capsys):
    trainer = Trainer.from_recipe(dataclasses.replace(stuck_recipe, max_steps=5))
    collapse(trainer.run.weights.detector)
    trainer.train()
    assert entries(stuck_recipe, "warning") == []
    Trainer.from_recipe(dataclasses.replace(stuck_recipe, resume="auto")).train()
    nothing_found, collapsed = entries(stuck_recipe, "warning")
    assert nothing_found["step"] == collapsed["step"] == 10
    assert "the model predicts almost only 'no object'" in nothing_found["text"]
    assert "the queries have collapsed" in collapsed["text"]
    assert f"warning: {collapsed['text']}" in capsys.readouterr().out
    last = entries(stuck_recipe, "epoch")[-1]
    assert last["object_queries"] == 0
    assert last["query_spread"] < 1e-3


def test_a_model_with_diverse_queries_gives_no_warning(stuck_recipe):
    trainer = Trainer.from_recipe(stuck_recipe)
    with torch.no_grad():
        trainer.run.weights.detector.bbox_predictor.layers[-1].weight *= 30
        trainer.run.weights.detector.class_labels_classifier.bias[-1] = -20.0
    trainer.train()
    assert entries(stuck_recipe, "warning") == []
    assert entries(stuck_recipe, "epoch")[-1]["object_queries"] == 6


def step(num_images, loader_wait):
    return StepResult({}, 1.0, num_images, False, False, [loader_wait])


def test_speed_and_wait_cover_the_time_since_the_last_call(monkeypatch):
    now = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    pace = Pace(torch.device("cpu"))
    for _ in range(2):
        pace.add(step(8, 0.5))
    first = pace.take()
    assert (first["images_per_second"], first["loader_wait"]) == (4.0, 0.25)
    pace.add(step(8, 0.0))
    second = pace.take()
    assert (second["images_per_second"], second["loader_wait"]) == (4.0, 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_the_peak_of_its_tensors():
    device = torch.device("cuda", 0)
    torch.cuda.reset_peak_memory_stats(device)
    before = peak_gib(device)
    torch.ones(64, 2**20, device=device)
    assert peak_gib(device) >= before
    assert peak_gib(device) >= 0.25
