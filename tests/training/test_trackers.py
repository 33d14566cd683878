"""Trackers get the recipe, the curves and the pictures, each with its step."""

import io
import os
import signal
import sys
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from modeling_detr.training.metric_logger import MetricLogger, drop_later_entries, read_log
from modeling_detr.training.signals import TrainingInterrupted
from modeling_detr.training.trainer import Trainer


@pytest.fixture
def installed(monkeypatch):
    """Returns a function that installs stand-ins for packages of trackers and returns them."""

    def install(*names):
        available = [LoggerType.TENSORBOARD, *map(LoggerType, names)]
        monkeypatch.setattr(tracking, "_available_trackers", available)
        packages = {name: MagicMock(name=name) for name in names}
        for name, package in packages.items():
            monkeypatch.setitem(sys.modules, name, package)
        return SimpleNamespace(**packages)

    return install


@pytest.fixture
def stop_after(monkeypatch):
    """Returns a function that makes this process get a signal during an optimizer step."""

    def arrange(step):
        with_signal = iter([False] * (step - 1) + [True])
        original = MetricLogger.advance

        def advance(self, *arguments):
            if next(with_signal, False):
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, *arguments)

        monkeypatch.setattr(MetricLogger, "advance", advance)

    return arrange


def test_a_tracker_that_is_not_installed_is_reported_before_anything_is_written(tiny_recipe, installed):
    installed("aim")
    recipe = tiny_recipe(trackers=["tensorboard", "comet_ml"])
    with pytest.raises(
        ValueError, match=r"'comet_ml' is not installed; run: pip install comet-ml .installed: tensorboard, aim"
    ):
        Trainer.from_recipe(recipe)
    assert not recipe.run_dir.exists()


def test_a_tracker_that_fails_to_start_leaves_no_run_behind(tiny_recipe, installed):
    installed("wandb").wandb.init.side_effect = RuntimeError("No API key configured.")
    recipe = tiny_recipe(trackers=["wandb"])
    with pytest.raises(
        ValueError, match=r"one of wandb failed to start: RuntimeError: No API key configured\. Fix this"
    ):
        Trainer.from_recipe(recipe).train()
    Trainer.from_recipe(tiny_recipe())  # would refuse a folder that holds a run


def test_trackers_get_the_recipe_the_curves_and_the_pictures_also_of_a_resumed_run(tiny_recipe, installed, stop_after):
    packages = installed("wandb", "mlflow")
    wandb, mlflow = packages.wandb, packages.mlflow
    mlflow.utils.validation.MAX_PARAM_VAL_LENGTH, mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 6000, 100
    mlflow.search_experiments.return_value = []
    recipe = tiny_recipe(trackers=["wandb", "tensorboard", "mlflow"], num_images_to_log=2, log_every_steps=1)
    stop_after(7)
    with pytest.raises(TrainingInterrupted):
        Trainer.from_recipe(recipe).train()
    Trainer.from_recipe(tiny_recipe(**{**vars(recipe), "resume": "auto"})).train()

    folder = recipe.run_dir
    start = {"project": folder.parent.name, "name": folder.name, "dir": str(folder / "trackers")}
    assert [call.kwargs for call in wandb.init.call_args_list] == [start, start]
    for configuration in (wandb.config.update.call_args_list[0].args[0], mlflow.log_params.call_args_list[0].args[0]):
        assert configuration["learning_rate"] == 1e-3
        assert configuration["model_config"]["num_queries"] == 6
    assert mlflow.log_params.call_args_list[0] == mlflow.log_params.call_args_list[1]  # others would be refused
    assert mlflow.create_experiment.call_args.kwargs["name"] == folder.parent.name
    assert mlflow.start_run.call_args.kwargs["run_name"] == folder.name

    log = read_log(folder / "log.jsonl")
    losses = [(entry["step"], pytest.approx(entry["loss"], rel=1e-6)) for entry in log if entry["kind"] == "step"]
    scores = [(entry["step"], pytest.approx(entry["ap"], rel=1e-6)) for entry in log if entry["kind"] == "epoch"]
    assert [step for step, _ in losses] == [*range(1, 11)]
    for calls in (wandb.init.return_value.log.call_args_list, mlflow.log_metrics.call_args_list):
        logged = [(call.kwargs["step"], call.args[0]) for call in calls]
        assert [(step, values["train/loss"]) for step, values in logged if "train/loss" in values] == losses
        assert [(step, values["eval/ap"]) for step, values in logged if "eval/ap" in values] == scores
        steps = [step for step, _ in logged]
        assert steps == sorted(steps)  # Weights & Biases drops what comes with an earlier step
    drawn = [(f"predictions/{number}", step) for step in (5, 10) for number in (0, 1)]
    pictures = [
        call for call in wandb.init.return_value.log.call_args_list if "predictions" in next(iter(call.args[0]))
    ]
    assert [(*call.args[0], call.kwargs["step"]) for call in pictures] == drawn
    assert [(call.kwargs["key"], call.kwargs["step"]) for call in mlflow.log_image.call_args_list] == drawn
    for call in (*wandb.Image.call_args_list, *mlflow.log_image.call_args_list):
        assert call.args[0].shape[2] == 3  # height, width, colours
        assert call.args[0].std() > 0


def test_tensorboard_shows_each_step_once_after_a_file_was_truncated(tiny_recipe, stop_after):
    keys = {"trackers": ["tensorboard"], "log_every_steps": 1, "encoder_supervision": True}
    recipe = tiny_recipe(**keys, num_images_to_log=2)
    stop_after(7)
    with pytest.raises(TrainingInterrupted):
        Trainer.from_recipe(recipe).train()
    (torn,) = recipe.run_dir.rglob("events.out.tfevents.*")
    with torn.open("ab") as file:  # as if a kill had come later, in the middle of writing the ninth step
        for step in (8, 9):
            value = Summary.Value(tag="train/loss", simple_value=99.0)
            RecordWriter(file).write(Event(step=step, summary=Summary(value=[value])).SerializeToString())
    os.truncate(torn, torn.stat().st_size - 9)
    Trainer.from_recipe(tiny_recipe(**{**vars(recipe), "resume": "auto"})).train()

    files = sorted(recipe.run_dir.rglob("events.out.tfevents.*"), key=lambda path: int(path.suffix[1:]))
    assert len(files) == 2
    steps = defaultdict(list)
    for path in files:
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                steps[value.tag].append(event.step)
    decoder_layers = [
        f"train/loss_{term}{layer}" for term in ("ce", "bbox", "giou") for layer in ("", "_0", "_encoder")
    ]
    figures = ("loss", "class_error", "learning_rate", "backbone_learning_rate", "grad_norm", "images_per_second")
    for tag in (*decoder_layers, *(f"train/{name}" for name in (*figures, "loader_wait", "memory_gib"))):
        assert steps[tag] == [*range(1, 11)], tag
    for tag in ("eval/ap", "eval/ap50", "eval/eval_loss", "predictions/0", "predictions/1"):
        assert steps[tag] == [5, 10], tag

    shown = EventAccumulator(str(files[0].parent), size_guidance={"images": 0}).Reload()
    log = read_log(recipe.run_dir / "log.jsonl")
    losses = [entry["loss"] for entry in log if entry["kind"] == "step"]
    assert [event.value for event in shown.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    picture = np.asarray(Image.open(io.BytesIO(shown.Images("predictions/1")[-1].encoded_image_string)))
    assert picture.shape[2] == 3
    assert picture.std() > 0


@pytest.mark.parametrize("tail", [bytes(64), b"\x04" + bytes(63), b"\xff" * 20], ids=["zeros", "length", "garbage"])
def test_garbage_at_the_end_of_a_tensorboard_file_is_ignored(tmp_path, tail):
    path = tmp_path / "trackers" / "events.out.tfevents.1"
    path.parent.mkdir()
    with path.open("wb") as file:
        value = Summary.Value(tag="train/loss", simple_value=1.0)
        RecordWriter(file).write(Event(step=3, summary=Summary(value=[value])).SerializeToString())
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    drop_later_entries(tmp_path, step=3, closed_step=0)
    assert path.read_bytes() == whole
