"""The folder of a run: the names of its files, its checkpoints' folders, and tidying it after a kill.

    runs/NAME/
      recipe.yaml         the resolved recipe
      log.jsonl           one JSON object per line, see `metric_logger`
      trackers/           files of Accelerate's trackers, such as TensorBoard's
      checkpoints/        step_00001200/ …, see `checkpointing`
      model/              the best model so far, see `export`
      evaluation.*        metrics of that model
      predictions/        pictures of its predictions on evaluation images
      predictions_by_step/  those of several evaluations, see `picture_history`
      status.json         how long the run will be, its plan, and how it ended, see `run_status`
      nonfinite/          steps whose loss was not finite, see `replay`
      teacher.safetensors what the model that teaches predicts in the training images, see `teacher_predictions`
      .lock               locked while the run trains; holds the host and process id of its main process

Everything is written under a hidden name and then renamed, so anything with its final name is complete; see
`atomic_output`.
"""

import contextlib
import os
import re
from pathlib import Path

from modeling_detr import folder_lock
from modeling_detr.atomic_output import discard, previous_path, restore_interrupted
from modeling_detr.errors_detr import RunInUseError
from modeling_detr.evaluation.report import REPORT_FILES
from modeling_detr.model_folder_detr import EXPORTED_MODEL
from modeling_detr.output_errors import check_folder, check_model_path


RECIPE = "recipe.yaml"
LOG = "log.jsonl"
TRACKERS = "trackers"
CHECKPOINTS = "checkpoints"
MODEL = EXPORTED_MODEL
PREDICTIONS = "predictions"
PICTURES = "predictions_by_step"
STATUS = "status.json"
NONFINITE = "nonfinite"
TEACHER = "teacher.safetensors"
LOCK = ".lock"

_CHECKPOINT_NAME = re.compile(r"step_(\d+)|\.step_(\d+)\.previous")


def holds_run(run_dir: Path) -> bool:
    """Whether a folder contains files of a run."""
    names = (RECIPE, LOG, CHECKPOINTS, MODEL, previous_path(MODEL).name)
    return any(os.path.lexists(run_dir / name) for name in names)


def check_run_folder(run_dir: Path) -> None:
    """Check, before any work, that a run can write its files.

    Raises:
        OutputError: The folder, or something in it, cannot be written, or could not be read again.
    """
    check_model_path(run_dir)
    folders = [CHECKPOINTS, TRACKERS, PREDICTIONS, PICTURES, NONFINITE]
    check_folder(run_dir, files=[RECIPE, LOG, STATUS, LOCK, TEACHER, *REPORT_FILES], folders=folders)


def locked(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the folder of a run while it trains, so that two runs cannot overwrite each other's files.

    Raises:
        RunInUseError: Another process holds the lock.
        OutputError: The file of the lock cannot be written.
    """
    remedy = "stop it, or choose another output_dir"
    return folder_lock.locked(
        run_dir / LOCK, lambda holder: RunInUseError(run_dir, f"{holder} is training in it", remedy)
    )


def lock_holder(run_dir: Path) -> tuple[str, int] | None:
    """The host and the number of the process that has locked a run's folder last; it may have ended since.

    None if no process has, or it has not written its number yet.
    """
    return folder_lock.lock_holder(run_dir / LOCK)


def tidy_after_kill(run_dir: Path) -> None:
    """Remove half-written files and folders, and restore folders that were being replaced."""
    for folder in (run_dir, run_dir / CHECKPOINTS, run_dir / PICTURES):
        restore_interrupted(folder)
        for leftover in folder.glob(".*.writing"):  # of older versions
            discard(leftover)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimizer steps."""
    return run_dir / CHECKPOINTS / f"step_{step:08d}"


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """All checkpoint folders, oldest first; one whose replacement was interrupted has its hidden name."""
    folders = [path for path in (run_dir / CHECKPOINTS).glob("*") if _CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(
        (path for path in folders if not path.name.startswith(".") or path.with_name(path.name[1:-9]) not in folders),
        key=step_of,
    )


def drop_later_checkpoints(run_dir: Path, step: int) -> None:
    """Remove checkpoints after `step`, which a run that continues from there will write again."""
    for folder in checkpoint_folders(run_dir):
        if step_of(folder) > step:
            discard(folder)


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from the name of its folder; -1 for other names."""
    match = _CHECKPOINT_NAME.fullmatch(folder.name)
    return int(match[1] or match[2]) if match else -1
