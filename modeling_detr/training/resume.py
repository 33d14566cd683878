"""Resuming a run: which checkpoint it continues from, and what has changed since the checkpoint was written."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import CheckpointError, FileContentError, FileReadError, RecipeError
from modeling_detr.input_files import read_yaml
from modeling_detr.training.checkpointing import (
    CheckpointedRun,
    TrainingState,
    check_readable,
    load_checkpoint,
    newest_checkpoint,
)
from modeling_detr.training.recipe import DECIDED_BY_MINUTES, Recipe, ResumeChanges, compare_for_resume
from modeling_detr.training.run_folder import RECIPE, holds_run


# Keys that decide how much memory a step needs or may have.
_MEMORY_KEYS = ("max_pixels_per_batch", "max_memory_gb", "mixed_precision", "gradient_checkpointing")


def checkpoint_to_resume(recipe: Recipe) -> Path | None:
    """Return the checkpoint that a run continues from; None for a new run, whose folder must not contain another.

    Raises:
        ValueError: The folder contains a run that the recipe does not resume.
        CheckpointError: The checkpoint, or every checkpoint of the run, is damaged, or does not fit the recipe.
        FileNotFoundError: The checkpoint to resume does not exist.
    """
    run_dir = recipe.run_dir
    if os.path.isfile(run_dir):  # noqa: PTH113 (unlike `Path.is_file`, false for names that are too long)
        raise RecipeError("output_dir", f"{run_dir} is a file", "choose a folder for the run")
    if recipe.resume is None:
        if holds_run(run_dir):
            raise ValueError(f"{run_dir}: already contains a run; use --resume auto, or choose another --output_dir.")
        return None
    if recipe.resume == "auto":
        newest = newest_checkpoint(run_dir)
        if newest is not None:
            compare_recipes(newest, recipe)
        return newest
    folder = Path(recipe.resume)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such checkpoint, expected a folder checkpoints/step_…; use --resume auto for the newest."
        )
    if folder.resolve().parents[1] != run_dir.resolve() and holds_run(run_dir):
        raise ValueError(
            f"{run_dir}: already contains a run, and {folder} is a checkpoint of another; choose another --output_dir."
        )
    check_readable(folder)
    compare_recipes(folder, recipe)
    return folder


def compare_recipes(folder: Path, recipe: Recipe) -> ResumeChanges:
    """Return how a recipe differs from that of a checkpoint.

    Raises:
        CheckpointError: The checkpoint does not fit the recipe.
    """
    changes = compare_for_resume(recipe, _read_previous(folder))
    if changes.model:
        remedy = "undo this change, or start a new run with another output_dir"
        raise CheckpointError(folder, f"does not fit this recipe: {changes.model[0]}", remedy)
    return changes


def with_decided_steps(recipe: Recipe, folder: Path) -> tuple[Recipe, bool]:
    """Return a recipe that gives minutes with the steps that its run decided on, and whether they still hold.

    They do unless the minutes have changed.

    Raises:
        CheckpointError: The checkpoint does not fit the recipe.
    """
    previous = _read_previous(folder)
    if previous.get("minutes") is None:
        return recipe, False
    decided = {name: previous[name] for name in DECIDED_BY_MINUTES if name in previous}
    return dataclasses.replace(recipe, **decided), previous["minutes"] == recipe.minutes


def _read_previous(folder: Path) -> dict[str, Any]:
    """Read the recipe of a checkpoint."""
    try:
        previous = read_yaml(folder / RECIPE)
    except (FileReadError, FileContentError) as error:
        raise CheckpointError(error.where, error.problem, error.remedy) from error
    if not isinstance(previous, dict):
        raise CheckpointError(folder / RECIPE, f"got a {type(previous).__name__}, expected lines of 'key: value'")
    return previous


def resume(folder: Path, run: CheckpointedRun) -> list[str]:
    """Restore a run from a checkpoint. With an unchanged recipe it continues exactly.

    Args:
        folder: The folder of the checkpoint.
        run: What is restored. Its state describes the new start: processes, images per step, training images, classes.

    Returns:
        Notes for the plan.

    Raises:
        CheckpointError: The checkpoint is damaged, or does not fit the recipe, the model or the classes.
    """
    changes = compare_recipes(folder, run.recipe)
    current, state = dataclasses.replace(run.state), run.state
    load_checkpoint(folder, run, id2label=current.id2label)
    reordered = [*(change.name for change in changes.order), *_changed_images(state, current, run.recipe.batching)]
    notes = [*changes.sentences(), *_memory_note(state, changes)]
    if state.num_processes != current.num_processes:
        before = counted(state.num_processes, "process", "processes")
        note = f"trained with {before} so far, now with {current.num_processes}"
        same = "" if reordered else ": each step sees the same images, so the run continues where it stopped"
        notes.append(note + same)
    if reordered and state.step_in_epoch > 0:
        # the last epoch has no next one: skipping its rest would skip its evaluation and its checkpoint as well
        is_last = state.epoch + 1 >= run.recipe.epochs
        action = "repeats the last epoch" if is_last else "continues with the next epoch"
        notes.append(f"{action}, since {', '.join(reordered)} changed within this one")
        state.epoch, state.step_in_epoch = state.epoch + (0 if is_last else 1), 0
        state.epoch_averages.take()
    state.num_processes, state.step_size = current.num_processes, current.step_size
    state.num_images, state.packing_version = current.num_images, current.packing_version
    state.id2label = current.id2label  # older checkpoints have none
    return notes


def _memory_note(state: TrainingState, changes: ResumeChanges) -> list[str]:
    """Note the limit of pixels found before, or forget it if the recipe changes what a step needs or may have."""
    if state.max_pixels is None:
        return []
    if any(change.name in _MEMORY_KEYS for change in changes.free):
        state.max_pixels = None
        return []
    return [
        f"a step ran out of memory before, so at most {state.max_pixels:,} pixels pass through the model at once; "
        f"another max_pixels_per_batch replaces this limit"
    ]


def _changed_images(previous: TrainingState, current: TrainingState, batching: str) -> list[str]:
    """Describe what has changed about the images of an epoch or a step, other than by the recipe."""
    changes = []
    if previous.step_size != current.step_size:
        changes.append(f"the number of images per step (from {previous.step_size} to {current.step_size})")
    if previous.num_images != current.num_images:
        changes.append(f"the number of training images (from {previous.num_images:,} to {current.num_images:,})")
    if batching == "size" and previous.packing_version != current.packing_version:
        changes.append("the grouping of images by size (in this version of the package)")
    return changes
