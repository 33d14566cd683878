"""Accelerate's trackers: TensorBoard, Weights & Biases, MLflow and the others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from numpy.typing import NDArray

from modeling_detr.atomic_output import make_folder
from modeling_detr.errors_detr import RecipeError, did_you_mean
from modeling_detr.remote_addresses import arguments_without_credentials
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import TRACKERS


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist and are installed; Accelerate would ignore those that are not.

    Raises:
        RecipeError: A tracker does not exist or is not installed.
    """
    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    available = [kind.value for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise RecipeError("trackers", f"unknown tracker '{name}'", did_you_mean(name, known))
        if name not in available:
            remedy = f"run: pip install {name.replace('_', '-')} (installed: {', '.join(available)})"
            raise RecipeError("trackers", f"'{name}' is not installed", remedy)


def start_trackers(accelerator: Accelerator, recipe: Recipe, first_step: int) -> None:
    """Start the recipe's trackers. A run is named after its folder, the project after the parent folder.

    All but TensorBoard get the recipe as configuration; TensorBoard would show each start as an additional run.

    Raises:
        ValueError: A tracker does not start, for example because the user is not logged in.
    """
    run_dir = recipe.run_dir.resolve()
    files = run_dir / TRACKERS
    if recipe.trackers:
        make_folder(files)  # otherwise Weights & Biases writes elsewhere
    options = {
        "tensorboard": {"purge_step": first_step + 1},  # a viewer drops what was logged after the checkpoint
        "wandb": {"name": run_dir.name, "dir": str(files)},
        "mlflow": {"run_name": run_dir.name},
    }
    configuration = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "resume"}
    try:
        with arguments_without_credentials():
            accelerator.init_trackers(run_dir.parent.name or run_dir.name, init_kwargs=options)
        for tracker in accelerator.trackers:
            if tracker.name != "tensorboard":
                tracker.store_init_configuration(configuration)
    except OSError:
        raise
    except Exception as error:  # each tracker raises its own errors
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(
            f"trackers: one of {', '.join(recipe.trackers)} failed to start: {reason}. Fix this or leave the "
            f"tracker out, for example --trackers tensorboard."
        ) from error


def log_images(accelerator: Accelerator, images: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Send named images, (H, W, 3) each, to every tracker that supports images."""
    batches: dict[str, Any] = {name: image[None] for name, image in images.items()}  # (1, H, W, 3) each
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images(batches, step, dataformats="NHWC")
        elif tracker.name == "mlflow":  # supports images, but Accelerate does not pass them on
            import mlflow

            for name, image in images.items():
                mlflow.log_image(image, key=name, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images(batches, step)
