"""Checkpoints: their contents, and how they are saved, checked and loaded.

    checkpoints/step_00001200/
      model.safetensors       weights of the training model, training aids included
      ema.safetensors         averaged weights of the detector, if the run keeps them
      optimizer.pt            AdamW's moments: tensors and numbers only, read with `weights_only`
      recipe.yaml             the resolved recipe
      state.json              progress of the run, and size and checksum of the other files

`CHECKPOINT_PARTS` lists the parts; to add one, add an entry. Random numbers need no file: those of a sample depend
on seed, epoch and index, those of a step on seed, step, process and image. A checkpoint is written under a hidden name
first, so one with its final name is complete. The newest checkpoints and that of the best model are kept.
"""

import dataclasses
import json
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from modeling_detr.atomic_output import discard, replaced_folder, restore_interrupted
from modeling_detr.errors_detr import CheckpointError, CheckpointVersionError, FileReadError, printable
from modeling_detr.input_files import MAX_TEXT_BYTES, is_file, read_json, read_text
from modeling_detr.training.distributed import gather_full, in_main_process, shard_like
from modeling_detr.training.monitoring import Symptom
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import (
    CHECKPOINTS,
    MODEL,
    RECIPE,
    checkpoint_folder,
    checkpoint_folders,
    step_of,
)


STATE = "state.json"
STATE_VERSION = 1  # increase it when a checkpoint can no longer be read by older versions of this package
AVERAGE = "ema.safetensors"


# Progress of a run


@dataclass
class Averages:
    """Running means of named numbers, saved in checkpoints."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add one observation of each number."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means so far."""
        return {name: total / self.count for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """Return the means so far, and start over."""
        means = self.means()
        self.sums, self.count = {}, 0
        return means


@dataclass
class TrainingState:
    """The progress of a run.

    Attributes:
        epoch: Current epoch, from 0.
        step_in_epoch: Optimizer steps taken in the current epoch.
        step: Optimizer steps taken so far.
        best_ap: Primary metric of the model in `model/`; None before the first evaluation.
        best_epoch: Epoch of that evaluation, from 1.
        best_step: Optimizer steps before that evaluation.
        last_ap: Primary metric of the last evaluation.
        stale_evaluations: Evaluations since the best one.
        closed_step: Optimizer steps taken when an epoch was last completed, that is, evaluated (if due) and logged.
        seconds: Duration so far, including evaluations.
        num_processes: Number of processes.
        step_size: Images in an optimizer step, over all processes and accumulated batches.
        num_images: Number of training images.
        packing_version: `PACKING_VERSION` of the sampler; 0 in checkpoints of older versions.
        step_averages: Means since the last log entry.
        epoch_averages: Means since the start of the epoch.
        symptoms: Signs in the evaluations that training is going wrong.
        id2label: Names of the classes in the order of the class head's rows; empty in checkpoints of older versions.
        max_pixels: Limit of the pixels in one forward pass, found when a step ran out of memory; None if none did.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_ap: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    last_ap: float | None = None
    stale_evaluations: int = 0
    closed_step: int = 0
    seconds: float = 0.0
    num_processes: int = 1
    step_size: int = 0
    num_images: int = 0
    packing_version: int = 0
    step_averages: Averages = field(default_factory=Averages)
    epoch_averages: Averages = field(default_factory=Averages)
    symptoms: dict[str, Symptom] = field(default_factory=dict)
    id2label: dict[int, str] = field(default_factory=dict)
    max_pixels: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingState":
        """Rebuild a state from the plain values of `dataclasses.asdict`.

        Raises:
            ValueError: A value is missing or has another type.
        """
        try:
            averages = {name: Averages(**values[name]) for name in ("step_averages", "epoch_averages")}
            symptoms = {name: Symptom.from_dict(history) for name, history in values.get("symptoms", {}).items()}
            id2label = {int(label): str(name) for label, name in values.get("id2label", {}).items()}
            state = cls(**{**values, **averages, "symptoms": symptoms, "id2label": id2label})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a state: {error!r}") from error
        parts: list[TrainingState | Averages | Symptom] = [state, *averages.values(), *symptoms.values()]
        for part in parts:
            _check_numbers(part)
        if not all(_is_number(total) for part in averages.values() for total in part.sums.values()):
            raise ValueError("averages: expected numbers")
        return state


def _check_numbers(part: "TrainingState | Averages | Symptom") -> None:
    """Raise a ValueError if a field of type int, float or bool has a value of another type, or a count is negative."""
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        is_count = _is_number(value) and isinstance(value, int) and value >= 0
        fits: dict[Any, bool] = {
            bool: isinstance(value, bool),
            int: is_count,
            float: _is_number(value),
            int | None: value is None or is_count,
            float | None: value is None or _is_number(value),
        }
        if not fits.get(item.type, True):
            raise ValueError(f"{item.name}: got {value!r}")


def _is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number, and no integer of thousands of digits."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


@dataclass(frozen=True)
class CheckpointedRun:
    """Everything a checkpoint saves and restores.

    Attributes:
        model: The training model as prepared by `accelerator`.
        optimizer: The raw optimizer.
        accelerator: Its gradient scaler, if it has one, is part of the checkpoint.
        recipe: The resolved recipe.
        state: The progress of the run. Restoring a checkpoint changes it in place.
        average: The detector with averaged weights; None if the run keeps no average.
    """

    model: nn.Module
    optimizer: Optimizer
    accelerator: Accelerator
    recipe: Recipe
    state: TrainingState
    average: nn.Module | None = None


# The parts of a checkpoint


@dataclass(frozen=True)
class FileFormat:
    """How a part is stored in its own file: `write(value, path)` and `read(path)`."""

    write: Callable[[Any, Path], None]
    read: Callable[[Path], Any]


@dataclass(frozen=True)
class CheckpointPart:
    """One part of a checkpoint.

    Attributes:
        collect: Returns the value to save, or None if the run has no such part. All processes call it together, since
            each may hold only a shard; the main process saves the value.
        restore: Puts a saved value back into a run.
        file: How the part is stored in a separate file; None: as JSON in `state.json`.
        required: Whether a checkpoint without this part is damaged. Keep it False for a part that checkpoints of older
            versions do not have.
    """

    collect: Callable[[CheckpointedRun], Any]
    restore: Callable[[CheckpointedRun, Any], None]
    file: FileFormat | None = None
    required: bool = False


def _write_tensors(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _write_torch(value: Any, path: Path) -> None:
    with path.open("wb") as file:  # a failed write then raises an OSError with the reason
        torch.save(value, file)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


SAFETENSORS = FileFormat(_write_tensors, load_file)
TORCH = FileFormat(_write_torch, lambda path: torch.load(path, map_location="cpu", weights_only=True))
TEXT = FileFormat(_write_text, read_text)


def _collect_weights(run: CheckpointedRun) -> Any:
    return gather_full(run.accelerator.unwrap_model(run.model).state_dict())


def _restore_weights(run: CheckpointedRun, weights: Mapping[str, Tensor]) -> None:
    module = run.accelerator.unwrap_model(run.model)
    current = module.state_dict()
    module.load_state_dict({name: shard_like(value, current.get(name, value)) for name, value in weights.items()})


def _collect_average(run: CheckpointedRun) -> Any:
    return None if run.average is None else run.average.state_dict()


def _restore_average(run: CheckpointedRun, weights: Mapping[str, Tensor]) -> None:
    if run.average is not None:
        run.average.load_state_dict(weights)


def _collect_moments(run: CheckpointedRun) -> Any:
    return gather_full(run.optimizer.state_dict())


def _restore_moments(run: CheckpointedRun, moments: dict[str, Any]) -> None:
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    for index, values in moments["state"].items():
        for name, value in values.items():
            if value.shape == parameters[index].shape:  # the step count is a scalar
                values[name] = shard_like(value, parameters[index])
    run.optimizer.load_state_dict(moments)


def _restore_state(run: CheckpointedRun, values: dict[str, Any]) -> None:
    vars(run.state).update(vars(TrainingState.from_dict(values)))


def _collect_scaler(run: CheckpointedRun) -> Any:
    return None if run.accelerator.scaler is None else run.accelerator.scaler.state_dict()


def _restore_scaler(run: CheckpointedRun, values: dict[str, Any]) -> None:
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(values)


def _keep_current_recipe(run: CheckpointedRun, text: str) -> None:
    """The recipe of a resumed run is the current one; `resume` compares it with the saved one."""


# File name, or key in state.json → part. They are restored in this order.
CHECKPOINT_PARTS: dict[str, CheckpointPart] = {
    "model.safetensors": CheckpointPart(_collect_weights, _restore_weights, SAFETENSORS, required=True),
    AVERAGE: CheckpointPart(_collect_average, _restore_average, SAFETENSORS),
    "optimizer.pt": CheckpointPart(_collect_moments, _restore_moments, TORCH, required=True),
    RECIPE: CheckpointPart(lambda run: run.recipe.to_yaml(), _keep_current_recipe, TEXT, required=True),
    "state": CheckpointPart(lambda run: dataclasses.asdict(run.state), _restore_state, required=True),
    "gradient_scaler": CheckpointPart(_collect_scaler, _restore_scaler),
}


# Saving, checking, loading


def save_checkpoint(run_dir: Path, run: CheckpointedRun) -> Path:
    """Write `checkpoints/step_…` on the main process, and remove all but the newest checkpoints and the best one.

    All processes call it together.

    Args:
        run_dir: The folder of the run.
        run: What is saved.

    Returns:
        The folder of the checkpoint.

    Raises:
        OutputError: It cannot be written, for example because the disk is full; earlier checkpoints are unchanged.
            Raised in all processes.
    """
    folder = checkpoint_folder(run_dir, run.state.step)
    values = {name: part.collect(run) for name, part in CHECKPOINT_PARTS.items()}

    with in_main_process(run.accelerator) as is_main:
        if is_main:
            _write(folder, values)
            prune_checkpoints(run_dir, run.recipe.keep_checkpoints, run.state.best_step)
    return folder


def _write(folder: Path, values: Mapping[str, Any]) -> None:
    with replaced_folder(folder) as hidden:
        content: dict[str, Any] = {"version": STATE_VERSION}
        for name, part in CHECKPOINT_PARTS.items():
            if part.file is None:
                content[name] = values[name]
            elif values[name] is not None:
                part.file.write(values[name], hidden / name)
        content["files"] = {path.name: _fingerprint(path) for path in sorted(hidden.iterdir())}
        (hidden / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def prune_checkpoints(run_dir: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and that of the best model, and what a kill has left of others.

    Raises:
        OSError: Something cannot be removed.
    """
    restore_interrupted(run_dir / CHECKPOINTS)
    for old in checkpoint_folders(run_dir)[:-keep]:
        if step_of(old) != best_step:
            discard(old)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there are no checkpoints.

    Damaged ones that are newer are skipped with a warning.

    Raises:
        CheckpointVersionError: A newer version of this package has written the newest checkpoint.
        CheckpointError: All checkpoints are damaged.
    """
    damaged: dict[str, str] = {}
    for folder in reversed(checkpoint_folders(run_dir)):
        damage = find_damage(folder)
        if damage is None:
            for name, reason in damaged.items():
                text = f"{folder.with_name(name)}: damaged checkpoint ({reason}); skipped."
                warnings.warn(printable(text), stacklevel=2)
            return folder
        damaged[folder.name] = damage
    if damaged:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in damaged.items())
        raise CheckpointError(
            run_dir / CHECKPOINTS,
            f"all checkpoints are damaged: {reasons}",
            "restore one of them, or start a new run with another output_dir; nothing has been changed",
        )
    return None


def set_aside_unreadable(run_dir: Path, step: int) -> None:
    """Rename the checkpoints after `step` that cannot be read to `unreadable_step_…`, so that they are not removed."""
    for folder in checkpoint_folders(run_dir):
        if step_of(folder) > step and not _is_readable(folder):
            name = f"unreadable_{folder.name.strip('.').removesuffix('.previous')}"
            target, number = folder.with_name(name), 2
            while os.path.lexists(target):
                target, number = folder.with_name(f"{name}_{number}"), number + 1
            folder.rename(target)


def _is_readable(folder: Path) -> bool:
    try:
        return find_damage(folder) is None
    except CheckpointVersionError:
        return False


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, or None if they are unchanged.

    Raises:
        CheckpointVersionError: A newer version of this package has written it.
    """
    try:
        content = _read_state(folder)
        TrainingState.from_dict(content["state"])
        fingerprints = content["files"]
        required = {name for name, part in CHECKPOINT_PARTS.items() if part.required}
        if any(CHECKPOINT_PARTS[name].file is None and name not in content for name in required):
            return f"{STATE} is incomplete"
        files = {name for name in required if CHECKPOINT_PARTS[name].file is not None}
        for name in sorted({*fingerprints, *files}):
            if name not in fingerprints or Path(name).name != name or not is_file(folder / name):
                return f"{name} is missing"
            if _fingerprint(folder / name) != fingerprints[name]:
                return f"{name} has changed since it was written"
    except CheckpointVersionError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{Path(error.filename or STATE).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, FileReadError):
        return f"{STATE} is not readable"
    return None


def _read_state(folder: Path) -> dict[str, Any]:
    """Read `state.json`.

    Raises:
        ValueError: It is not JSON.
        CheckpointVersionError: A newer version of this package has written it.
    """
    content: dict[str, Any] = read_json(folder / STATE, MAX_TEXT_BYTES)
    version = content.get("version", 0)  # older versions did not write it
    unknown = sorted(content["state"].keys() - {item.name for item in dataclasses.fields(TrainingState)})
    if version > STATE_VERSION or unknown:
        keys = f", with the unknown keys {', '.join(unknown)}" if unknown else ""
        raise CheckpointVersionError(
            folder,
            f"written by another version of modeling_detr ({STATE} version {version}{keys}; this one reads up to "
            f"version {STATE_VERSION})",
            "update modeling_detr, or start a new run with another output_dir; nothing has been changed",
        )
    return content


def load_checkpoint(folder: Path, run: CheckpointedRun, *, id2label: Mapping[int, str] | None = None) -> None:
    """Restore a run to where `save_checkpoint` saved it. Parts that the checkpoint lacks stay as they are.

    Args:
        folder: The folder of a checkpoint.
        run: What is restored, in place.
        id2label: Names of the classes, which must be those of the checkpoint in the same order; None: not checked.

    Raises:
        CheckpointError: The checkpoint is damaged, or belongs to another model or to other classes, or another version
            of this package has written it.
    """
    check_readable(folder)
    content = _read_state(folder)
    saved_id2label = TrainingState.from_dict(content["state"]).id2label or _exported_classes(folder)
    if id2label is not None and saved_id2label:
        _check_classes(folder, saved_id2label, id2label)
    try:
        for name, part in CHECKPOINT_PARTS.items():
            if part.file is not None and holds_part(folder, name):
                part.restore(run, part.file.read(folder / name))
            elif part.file is None and content.get(name) is not None:
                part.restore(run, content[name])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            folder, f"does not fit this model: {' '.join(str(error).split()).rstrip('.')}"
        ) from error


def check_readable(folder: Path) -> None:
    """Raise a CheckpointError if a checkpoint is damaged, or written by a newer version of this package."""
    damage = find_damage(folder)
    if damage is not None:
        raise CheckpointError(folder, f"damaged checkpoint ({damage})", "use another one, or --resume auto")


def holds_part(folder: Path, name: str) -> bool:
    """Whether a checkpoint has the file of a part, such as `AVERAGE`."""
    return (folder / name).is_file()


def _exported_classes(folder: Path) -> dict[int, str]:
    """Names of the classes in the model that the run has exported; checkpoints of older versions do not have them."""
    try:
        config = read_json(folder.resolve().parents[1] / MODEL / "config.json", MAX_TEXT_BYTES)
        return {int(label): name for label, name in config["id2label"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _check_classes(folder: Path, saved: Mapping[int, str], current: Mapping[int, str]) -> None:
    """Refuse a checkpoint whose class head has other classes, or another order of classes, than the dataset."""
    if saved == current:
        return
    different = next(label for label in sorted({*saved, *current}) if saved.get(label) != current.get(label))
    before, now = (f"'{names[different]}'" if different in names else "no class" for names in (saved, current))
    raise CheckpointError(
        folder,
        f"the classes have changed since it was written: label {different} was {before} and is now {now}, so the rows "
        f"of the class head would get wrong names",
        "restore the dataset's classes and their order, or start a new run with another output_dir",
    )


def _fingerprint(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return {"size": path.stat().st_size, "crc32": checksum}
