"""The pictures of a run's predictions: of the best model, and of evaluations over time."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.atomic_output import discard, replaced_file, replaced_folder
from modeling_detr.training.run_folder import PICTURES, PREDICTIONS


BEST = "best"
MAX_EVALUATIONS = 16  # whose pictures are kept
_STEP = re.compile(r"step_(\d{1,12})")
_METRICS = {"pq": "PQ", "mask_ap": "mask AP", "ap": "AP"}


@dataclass(frozen=True)
class Pictures:
    """The pictures of an evaluation.

    Attributes:
        key: The step of the evaluation, or `BEST`.
        title: What it was, for people.
        files: The pictures.
    """

    key: str
    title: str
    files: Sequence[Path]

    @property
    def version(self) -> int:
        """Changes when a picture is written again."""
        return max(path.stat().st_mtime_ns for path in self.files)

    @property
    def names(self) -> list[str]:
        """The names of the images, without their numbers."""
        return [path.stem.partition("_")[2] for path in self.files]


def save_pictures(folder: Path, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write pictures, name → (H, W, 3), as JPEG files, each of which replaces the previous one.

    Raises:
        OutputError: One cannot be written.
    """
    for name, picture in pictures.items():
        with replaced_file(folder / f"{name}.jpg") as partial:
            Image.fromarray(picture).save(partial, format="JPEG", quality=90)


def keep_pictures(
    run_dir: Path, step: int, pictures: Mapping[str, NDArray[np.uint8]], most: int = MAX_EVALUATIONS
) -> None:
    """Write the pictures of an evaluation, and remove those of others if there are more than `most` evaluations.

    The first and the last evaluation stay, and those between them at about equal distances.

    Raises:
        OutputError: They cannot be written.
    """
    if pictures:
        with replaced_folder(run_dir / PICTURES / f"step_{step:08d}") as folder:
            for name, picture in pictures.items():
                Image.fromarray(picture).save(folder / f"{name}.jpg", quality=80)
    folders = _folders(run_dir)
    while len(folders) > most:
        steps = [*folders]
        inner = range(1, len(steps) - 1)  # all but the first and the last
        spare = min(inner, key=lambda index: steps[index + 1] - steps[index - 1], default=0)
        discard(folders.pop(steps[spare]))


def drop_later_pictures(run_dir: Path, step: int) -> None:
    """Remove the pictures of evaluations after `step`, which a run that continues from there will draw again."""
    for later, folder in _folders(run_dir).items():
        if later > step:
            discard(folder)


def find_pictures(run_dir: Path, entries: Iterable[Mapping[str, Any]] = ()) -> list[Pictures]:
    """The pictures of the evaluations of a run, the earliest first; of older runs, those of the best model.

    Args:
        run_dir: The folder of the run.
        entries: The entries of its log, whose metrics the titles have.
    """
    titles = {entry.get("step"): _title(entry) for entry in entries if entry.get("kind") == "epoch"}
    found = [
        Pictures(str(step), titles.get(step, f"step {step:,}"), files)
        for step, folder in _folders(run_dir).items()
        if (files := _files(folder))
    ]
    best = _files(run_dir / PREDICTIONS)
    return found or ([Pictures(BEST, "best model so far", best)] if best else [])


def _title(entry: Mapping[str, Any]) -> str:
    name, value = next(
        ((name, entry[key]) for key, name in _METRICS.items() if entry.get(key) is not None), ("", None)
    )
    metric = f", {name} {value:.3f}" if isinstance(value, float) else ""
    return f"step {entry.get('step')}, epoch {entry.get('epoch')}{metric}"


def _folders(run_dir: Path) -> dict[int, Path]:
    """Step → folder of its pictures, ascending."""
    folder = run_dir / PICTURES
    paths = folder.iterdir() if folder.is_dir() else ()
    steps = {int(match[1]): path for path in paths if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(steps.items()))


def _files(folder: Path) -> list[Path]:
    """The pictures in a folder that are files inside it, in order."""
    if not folder.is_dir():
        return []
    inside = folder.resolve()
    return [path for path in sorted(folder.glob("*.jpg")) if path.is_file() and path.resolve().parent == inside]
