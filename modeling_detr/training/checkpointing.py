"""Checkpoints of a run, and the model that it leaves for use.

    runs/NAME/
      recipe.yaml               the resolved recipe
      log.jsonl                 one JSON object a line
      checkpoints/step_00001200/
        model.safetensors       weights, those of training-only supervision included
        ema.safetensors         the detector's averaged weights, if the run keeps them
        optimizer.pt            AdamW's moments, tensors and numbers only (read with `weights_only`)
        recipe.yaml
        state.json              where the run is, and size and checksum of the files beside it
      model/                    the best model so far: weights, processor, model card

Everything is written to a hidden folder first and then renamed, so that a folder with its own name is whole. Random
numbers need no file: those of a sample depend on seed, epoch and position, those of a step on seed, step, process and
image. Beside the newest checkpoints, that of the best model stays.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.utils import logging

from modeling_detr.conversion.sources import EXPORTED_MODEL as MODEL
from modeling_detr.errors_detr import CheckpointError
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.sharding import dealt_out, whole
from modeling_detr.training.symptoms import Symptom


CHECKPOINTS = "checkpoints"
RECIPE = "recipe.yaml"
_WEIGHTS = "model.safetensors"
_EMA = "ema.safetensors"
_MOMENTS = "optimizer.pt"
_STATE = "state.json"


class Savable(Protocol):
    """What writes itself into a folder: a model, an image processor."""

    def save_pretrained(self, save_directory: Path, /) -> Any:
        """Writes the files that `from_pretrained` reads."""


@dataclass
class Averages:
    """Running means of named numbers, which survive a checkpoint."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Adds one observation of each number."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self.count for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """The means so far; the next ones begin anew."""
        means = self.means()
        self.sums, self.count = {}, 0
        return means


@dataclass
class TrainingState:
    """Where a run is.

    Attributes:
        epoch: The epoch it is in, from 0.
        step_in_epoch: Optimizer steps taken in that epoch.
        step: Optimizer steps taken in all.
        best_ap: AP of the model in `model/`; None before the first evaluation.
        best_epoch: The epoch, from 1, after which that was measured.
        best_step: The optimizer steps after which that was measured.
        last_ap: AP of the last evaluation.
        stale_evaluations: Evaluations since the best one.
        closed_step: The optimizer steps after which an epoch was last closed: evaluated if that was due, and logged.
        seconds: Time spent so far, evaluations included.
        num_processes: How many processes trained.
        step_size: Images of an optimizer step, over all processes and accumulated batches.
        num_images: Training images.
        step_averages: Since the last log entry.
        epoch_averages: Since the beginning of the epoch.
        symptoms: What evaluations have shown of signs that training goes wrong.
        id2label: Names of the classes in the order of the class head's rows; empty in checkpoints of older versions.
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
    step_averages: Averages = field(default_factory=Averages)
    epoch_averages: Averages = field(default_factory=Averages)
    symptoms: dict[str, Symptom] = field(default_factory=dict)
    id2label: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingState":
        """The state that `dataclasses.asdict` turned into plain values."""
        averages = {name: Averages(**values[name]) for name in ("step_averages", "epoch_averages")}
        symptoms = {name: Symptom(**shown) for name, shown in values.get("symptoms", {}).items()}
        id2label = {int(label): name for label, name in values.get("id2label", {}).items()}
        return cls(**{**values, **averages, "symptoms": symptoms, "id2label": id2label})


def save_checkpoint(
    run_dir: Path,
    state: TrainingState,
    recipe: Recipe,
    model: nn.Module,
    optimizer: Optimizer,
    accelerator: Accelerator,
    ema: nn.Module | None = None,
) -> Path:
    """Writes `checkpoints/step_…` on the main process; then only the newest `keep_checkpoints` and the best stay.

    Args:
        run_dir: The run's folder.
        state: Where the run is.
        recipe: The resolved recipe.
        model: The model as prepared by `accelerator`.
        optimizer: The raw optimizer.
        accelerator: Its gradient scaler, if there is one, is saved too.
        ema: The detector with averaged weights, if the run keeps one.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It cannot be written, as on a full disk; earlier checkpoints are left as they are.
    """
    folder = run_dir / CHECKPOINTS / f"step_{state.step:08d}"

    weights = whole(accelerator.unwrap_model(model).state_dict())  # on all processes: some may hold only parts
    moments = whole(optimizer.state_dict())

    def write(temporary: Path) -> None:
        _save_weights(weights, temporary / _WEIGHTS)
        if ema is not None:
            _save_weights(ema.state_dict(), temporary / _EMA)
        with (temporary / _MOMENTS).open("wb") as file:  # a full disk then has a reason, see `_reason`
            torch.save(moments, file)
        (temporary / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        content = {
            "state": dataclasses.asdict(state),
            "gradient_scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "files": {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())},
        }
        (temporary / _STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")

    if accelerator.is_main_process:
        _write_folder(folder, write)
        for old in _checkpoint_folders(run_dir)[: -recipe.keep_checkpoints]:
            if _step_of(old) != state.best_step:
                _remove(old)
    accelerator.wait_for_everyone()
    return folder


def drop_later_checkpoints(run_dir: Path, step: int) -> None:
    """Removes checkpoints past `step`, which a run that goes on from there has left behind."""
    for folder in _checkpoint_folders(run_dir):
        if _step_of(folder) > step:
            _remove(folder)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The run's newest checkpoint that is whole; a damaged one is passed over with a warning. None: there is none."""
    folders = _checkpoint_folders(run_dir)
    for number, folder in reversed([*enumerate(folders)]):
        damage = find_damage(folder)
        if damage is None:
            return folder
        instead = "the checkpoint before it is taken" if number else "there is none before it, so the run begins anew"
        warnings.warn(f"{folder} is damaged ({damage}); {instead}.", stacklevel=2)
    return None


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if they are as they were written."""
    try:
        content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        TrainingState.from_dict(content["state"])
        files = content["files"]
        for name in {*files, _WEIGHTS, _MOMENTS, RECIPE}:
            fingerprint = files[name]
            if _fingerprint(folder / name) != fingerprint:
                return f"{name} is not what was written"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_STATE} is not readable"
    return None


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    accelerator: Accelerator,
    ema: nn.Module | None = None,
    *,
    id2label: Mapping[int, str] | None = None,
) -> TrainingState:
    """Puts model, optimizer, gradient scaler and averaged weights back to where `save_checkpoint` found them.

    Args:
        folder: A checkpoint's folder.
        model: The model as prepared by `accelerator`.
        optimizer: The raw optimizer.
        accelerator: Its gradient scaler, if there is one, is loaded too.
        ema: The detector with averaged weights; left as it is where the checkpoint has none, see `holds_average`.
        id2label: Names of the classes, which must be those of the checkpoint and in the same order; None: not checked.

    Returns:
        Where the run was.

    Raises:
        ValueError: The folder holds no whole checkpoint, or one of another model or of other classes.
    """
    damage = find_damage(folder)
    if damage is not None:
        raise ValueError(f"{folder}: no whole checkpoint ({damage}); give another one, or --resume auto.")
    content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    state = TrainingState.from_dict(content["state"])
    if id2label is not None and state.id2label:
        _check_classes(folder, state.id2label, id2label)
    try:
        _load_weights(accelerator.unwrap_model(model), folder / _WEIGHTS)
        if ema is not None and holds_average(folder):
            _load_weights(ema, folder / _EMA)
        _load_moments(optimizer, torch.load(folder / _MOMENTS, map_location="cpu", weights_only=True))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder}: a checkpoint of another model: {' '.join(str(error).split())}") from error
    if accelerator.scaler is not None and content["gradient_scaler"] is not None:
        accelerator.scaler.load_state_dict(content["gradient_scaler"])
    return state


def _check_classes(folder: Path, saved: Mapping[int, str], current: Mapping[int, str]) -> None:
    """Refuses a checkpoint whose class head has its rows in another order than the dataset's classes are in now."""
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


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _load_weights(module: nn.Module, path: Path) -> None:
    own = module.state_dict()
    weights = load_file(path)
    module.load_state_dict({name: dealt_out(weights[name], own.get(name, weights[name])) for name in weights})


def _load_moments(optimizer: Optimizer, moments: dict[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in moments["state"].items():
        for name, value in values.items():
            if value.shape == parameters[number].shape:  # the number of steps is a scalar
                values[name] = dealt_out(value, parameters[number])
    optimizer.load_state_dict(moments)


def holds_average(folder: Path) -> bool:
    """Whether a checkpoint has averaged weights too."""
    return (folder / _EMA).is_file()


def export_model(run_dir: Path, detector: Savable, processor: Savable, model_card: str) -> Path:
    """Writes `model/`: weights and config, processor, model card. What was there before is replaced as a whole.

    Returns:
        The folder, for `from_pretrained`.
    """

    def write(temporary: Path) -> None:
        with _no_progress_bars():
            detector.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card, encoding="utf-8")

    return _write_folder(run_dir / MODEL, write)


def _remove(folder: Path) -> None:
    """Also what only has a checkpoint's name: a file, or a link."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink()


def tidy_after_kill(run_dir: Path) -> None:
    """Removes what a kill has left half written, and brings back what it caught while it was being replaced."""
    for leftover in [*run_dir.glob(".*.writing"), *run_dir.glob(f"{CHECKPOINTS}/.*.writing")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for previous in [*run_dir.glob(".*.previous"), *run_dir.glob(f"{CHECKPOINTS}/.*.previous")]:
        folder = previous.with_name(previous.name.removeprefix(".").removesuffix(".previous"))
        if folder.exists():
            shutil.rmtree(previous)
        else:
            previous.rename(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all: a full disk or a kill leaves the one that was there.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({_reason(error)}); what was there is left as it was.") from error


def holds_run(run_dir: Path) -> bool:
    """Whether a run has already left something in the folder."""
    names = (RECIPE, "log.jsonl", CHECKPOINTS, MODEL, _previous(Path(MODEL)).name)
    return any((run_dir / name).exists() for name in names)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Transformers draws a bar for each file it writes, in the middle of the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Lets `write` fill a hidden folder and gives it its name; a folder of that name is replaced."""
    temporary, previous = folder.with_name(f".{folder.name}.writing"), _previous(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError) or isinstance(error.__context__, OSError):
            raise OSError(
                f"{folder} cannot be written ({_reason(error)}). Everything written before is left as it was: make "
                f"room, and go on from the last checkpoint with the same command and --resume auto."
            ) from error
        raise
    shutil.rmtree(previous, ignore_errors=True)
    return folder


def _reason(error: BaseException) -> str:
    """What the system says of a failed write; `torch.save` has it in the context of its own error."""
    if not isinstance(error, OSError) and isinstance(error.__context__, OSError):
        error = error.__context__
    return error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


_CHECKPOINT_NAME = re.compile(r"step_(\d+)|\.step_(\d+)\.previous")


def _checkpoint_folders(run_dir: Path) -> list[Path]:
    """All checkpoints, the oldest first; one that a kill caught while it was being replaced under its hidden name."""
    folders = [path for path in (run_dir / CHECKPOINTS).glob("*") if _CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(
        (path for path in folders if not path.name.startswith(".") or path.with_name(path.name[1:-9]) not in folders),
        key=_step_of,
    )


def _step_of(folder: Path) -> int:
    found = _CHECKPOINT_NAME.fullmatch(folder.name)
    return int(found[1] or found[2]) if found else -1


def _fingerprint(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return {"size": path.stat().st_size, "crc32": checksum}
