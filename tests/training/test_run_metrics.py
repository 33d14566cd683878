"""What a run reports to Prometheus, and the board that shows it."""

import json
import re
import types
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from modeling_detr.training.engine import StepResult
from modeling_detr.training.run_metrics import RunMetrics


BOARD = Path(__file__).parents[2] / "docs/cluster/grafana.json"


def read(metrics):
    """Name and labels → value."""
    families = text_string_to_metric_families(metrics.to_text().decode())
    return {(sample.name, *sample.labels.values()): sample.value for one in families for sample in one.samples}


@pytest.fixture
def metrics(monkeypatch):
    """Those of a run on a GPU, after a step, an entry of the log and an evaluation."""
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**29)
    metrics = RunMetrics({"run": 'a "run"'}, lambda: 12.5, types.SimpleNamespace(type="cuda"))
    metrics.note("last_step", 100)
    metrics.note("last_epoch", 10)
    for step in (31, 32):
        metrics.note_step(3, step, StepResult({"loss": 2.0}, 0.5, 16, False, False, [0.25, 1.5]))
    metrics.note_logged(
        {"loss": 2.0, "loss_ce": 0.5, "class_error": 9.0, "learning_rate": 1e-4, "backbone_learning_rate": 1e-5}
        | {"grad_norm": 0.5, "images_per_second": 40.0, "loader_wait": 0.25, "memory_gib": 1.0, "seconds": 60.0}
    )
    metrics.note_evaluation({"ap": 0.25, "ap50": None, "by_class": {"disc": 0.5}}, 0.5)
    return metrics


def test_values_of_a_run(metrics):
    values = read(metrics)
    assert (values["detr_train_step",], values["detr_train_epoch",]) == (32, 4)
    assert values["detr_train_images_total",] == 32
    assert values["detr_train_loader_wait_seconds_total", "1"] == 3.0
    assert (values["detr_train_images_per_second",], values["detr_train_loader_wait_ratio",]) == (40.0, 0.25)
    assert (values["detr_train_loss", "loss"], values["detr_train_loss", "loss_ce"]) == (2.0, 0.5)
    assert values["detr_train_learning_rate", "backbone"] == 1e-5
    assert (values["detr_train_metric", "ap"], values["detr_train_best_score",]) == (0.25, 0.5)
    assert values["detr_train_checkpoint_age_seconds",] == 12.5
    assert (values["detr_train_device_use_ratio",], values["detr_train_memory_peak_bytes",]) == (0.87, 2**29)
    assert not {name for name in values if "ap50" in name or "by_class" in name}


def test_what_is_not_known_is_left_out():
    names = {name for name, *_ in read(RunMetrics({}, lambda: 0.0, torch.device("cpu")))}
    assert {"detr_train_checkpoint_age_seconds", "detr_train_memory_peak_bytes", "detr_train_info"} <= names
    assert not {"detr_train_step", "detr_train_best_score", "detr_train_device_use_ratio"} & names


def test_use_of_a_gpu_that_cannot_be_asked_is_left_out(metrics, monkeypatch):
    def missing(device):
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert ("detr_train_device_use_ratio",) not in read(metrics)


def test_each_query_of_the_board_names_values_and_labels_that_exist(metrics):
    families = text_string_to_metric_families(metrics.to_text().decode())
    labels = {sample.name: {*sample.labels, "instance"} for one in families for sample in one.samples}
    board = json.loads(BOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert len(queries) >= len(board["panels"]) > 10
    shown = set()
    for query in queries:
        used = re.findall(r"\b([a-z_]+)\{([^}]*)\}", query)
        assert used, query
        for name, selectors in used:
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selectors)) <= labels[name], query
            shown.add(name)
        assert not re.findall(r"\b(?:detr|process)_\w+\b(?!\{)", query), query
    assert re.findall(r"\((\w+), instance\)", *variables) == ["detr_train_info"]
    own = {name for name in labels if name.startswith("detr_train_")}
    in_the_log_too = {"detr_train_images_per_second", "detr_train_loader_wait_ratio", "detr_train_last_epoch"}
    assert own - shown == in_the_log_too


def test_the_board_can_be_imported():
    board = json.loads(BOARD.read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= board.keys()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in board["panels"])
    ]
    assert sum(map(len, places)) == len(set().union(*places))  # none covers another
    assert max(x for x, _ in set().union(*places)) < 24  # columns of a board
