"""What a run says when it goes wrong though its loss is finite; in tiny runs that are made to."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from modeling_detr.evaluation.queries import QueryFigures
from modeling_detr.training import symptoms
from modeling_detr.training.symptoms import find_symptoms, is_due
from modeling_detr.training.trainer import Trainer


def evaluation(object_queries=3.0, spread=0.9, ap50=0.0, objects=4.0):
    return SimpleNamespace(queries=QueryFigures(objects, object_queries, spread), metrics=SimpleNamespace(ap50=ap50))


def warnings(reports, due=True):
    seen = {}
    return [len(find_symptoms(report, seen, due)) for report in reports]


ILL, WELL, FINDS_NOTHING = evaluation(spread=0.01), evaluation(ap50=0.4), evaluation(object_queries=0.0)


def test_a_sign_that_lasts_is_told_once_and_again_when_it_comes_back():
    assert warnings([ILL, ILL, ILL, WELL, ILL, ILL]) == [0, 1, 0, 0, 0, 1]
    assert warnings([FINDS_NOTHING, ILL, FINDS_NOTHING, ILL]) == [0, 0, 0, 0]
    assert warnings([evaluation(object_queries=0.0, spread=0.01)] * 2) == [0, 2]


def test_at_the_beginning_of_a_run_both_are_normal():
    assert warnings([ILL, ILL, FINDS_NOTHING, FINDS_NOTHING], due=False) == [0, 0, 0, 0]
    assert not is_due(5_000, total_steps=100_000, warmup_steps=0)
    assert is_due(10_000, total_steps=100_000, warmup_steps=0)
    assert not is_due(1_199, total_steps=5_200, warmup_steps=200)
    assert is_due(1_200, total_steps=5_200, warmup_steps=200)
    assert not is_due(150, total_steps=300, warmup_steps=0)


def test_but_not_for_a_model_that_had_learnt_something():
    assert warnings([WELL, FINDS_NOTHING, FINDS_NOTHING], due=False) == [0, 0, 1]
    accidental = evaluation(ap50=0.001)  # random weights are as often sure of a class as of nothing
    assert warnings([accidental, FINDS_NOTHING, FINDS_NOTHING], due=False) == [0, 0, 0]


def test_data_that_cannot_tell_give_no_warning():
    assert warnings([evaluation(spread=None)] * 3) == [0, 0, 0]  # one object an image
    assert warnings([evaluation(object_queries=0.0, objects=0.0)] * 3) == [0, 0, 0]  # none at all


@pytest.fixture
def stuck_recipe(tiny_recipe, monkeypatch):
    """A recipe of a run whose model stays as a test has made it, and is judged after a few steps."""
    monkeypatch.setattr(symptoms, "_FEWEST_STEPS", 0)
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


def test_a_collapsed_model_is_told_of_in_print_and_log_once_also_over_a_resume(stuck_recipe, capsys):
    trainer = Trainer(dataclasses.replace(stuck_recipe, max_steps=5))
    collapse(trainer.detector)
    trainer.train()
    assert entries(stuck_recipe, "warning") == []
    Trainer(dataclasses.replace(stuck_recipe, resume="auto")).train()
    nothing_found, collapsed = entries(stuck_recipe, "warning")
    assert nothing_found["step"] == collapsed["step"] == 10
    assert 'nothing but "no object" is predicted' in nothing_found["text"]
    assert "the queries have collapsed" in collapsed["text"]
    assert f"warning: {collapsed['text']}" in capsys.readouterr().out
    last = entries(stuck_recipe, "epoch")[-1]
    assert last["object_queries"] == 0
    assert last["query_spread"] < 1e-3


def test_a_model_whose_queries_differ_and_find_something_is_not_warned_of(stuck_recipe):
    trainer = Trainer(stuck_recipe)
    with torch.no_grad():
        trainer.detector.bbox_predictor.layers[-1].weight *= 30
        trainer.detector.class_labels_classifier.bias[-1] = -20.0
    trainer.train()
    assert entries(stuck_recipe, "warning") == []
    assert entries(stuck_recipe, "epoch")[-1]["object_queries"] == 6
