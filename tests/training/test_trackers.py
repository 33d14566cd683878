"""What trackers are told: the recipe, the curves, the pictures, each under its step."""

import os
import signal
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from modeling_detr.training.metric_logger import MetricLogger, read_log
from modeling_detr.training.signals import TrainingInterrupted
from modeling_detr.training.trainer import Trainer


@pytest.fixture
def installed(monkeypatch):
    """Has packages of trackers stand in for the real ones, and returns them."""

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
    """Sends this process a signal while it takes an optimizer step."""

    def arrange(step):
        with_signal = iter([False] * (step - 1) + [True])
        original = MetricLogger.advance

        def advance(self, *arguments):
            if next(with_signal, False):
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, *arguments)

        monkeypatch.setattr(MetricLogger, "advance", advance)

    return arrange


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_written(tiny_recipe, installed):
    installed("aim")
    recipe = tiny_recipe(trackers=["tensorboard", "comet_ml"])
    with pytest.raises(
        ValueError, match=r"comet_ml is not installed; wanted one of tensorboard, aim, .*: pip install comet-ml"
    ):
        Trainer(recipe)
    assert not recipe.run_dir.exists()


def test_a_tracker_that_does_not_start_leaves_no_run_behind(tiny_recipe, installed):
    installed("wandb").wandb.init.side_effect = RuntimeError("No API key configured.")
    recipe = tiny_recipe(trackers=["wandb"])
    with pytest.raises(ValueError, match=r"one does not start: RuntimeError: No API key configured\. Mend that"):
        Trainer(recipe).train()
    Trainer(tiny_recipe())  # would refuse a folder that holds a run


def test_trackers_get_the_recipe_the_curves_and_the_pictures_also_of_a_resumed_run(tiny_recipe, installed, stop_after):
    packages = installed("wandb", "mlflow")
    wandb, mlflow = packages.wandb, packages.mlflow
    mlflow.utils.validation.MAX_PARAM_VAL_LENGTH, mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 6000, 100
    mlflow.search_experiments.return_value = []
    recipe = tiny_recipe(trackers=["wandb", "tensorboard", "mlflow"], num_images_to_log=2, log_every_steps=1)
    stop_after(7)
    with pytest.raises(TrainingInterrupted):
        Trainer(recipe).train()
    Trainer(tiny_recipe(**{**vars(recipe), "resume": "auto"})).train()

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
