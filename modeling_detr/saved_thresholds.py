"""Score thresholds of classes, and what calibrates its scores: `thresholds.json` in the folder of a model.

`detr evaluate --save_thresholds` writes it; `detr predict --threshold best` and `--calibrated` read it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.utils.hub import cached_file

from modeling_detr.atomic_output import replace_text
from modeling_detr.errors_detr import ModelError
from modeling_detr.input_files import read_json
from modeling_detr.model_folder_detr import model_folder


THRESHOLDS = "thresholds.json"
_HOW_TO_MAKE = "detr evaluate MODEL DATA --save_thresholds writes one"
_LARGEST = 1e6  # of the numbers that calibrate
_LEAST, _MOST = 1e-6, 1 - 1e-6  # scores whose log-odds are finite


class Calibration(NamedTuple):
    """What turns scores into shares of hits: Platt scaling (Guo et al., arXiv 1706.04599).

    temperature: the log-odds of a score are divided by it; above 1, scores move towards each other. shift: is added
    to the log-odds; below 0, all scores become lower.
    """

    temperature: float = 1.0
    shift: float = 0.0

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrates scores (K,). Their order, and so AP, stays the same."""
        clipped = np.clip(scores, _LEAST, _MOST)
        odds = np.log(clipped / (1 - clipped)) / self.temperature + self.shift
        return np.asarray(1 / (1 + np.exp(-odds)))


@dataclass(frozen=True)
class SavedThresholds:
    """What `thresholds.json` holds.

    Attributes:
        thresholds: Class name → the lowest score that counts.
        calibration: What turns the scores into shares of hits.
        criterion: What the thresholds were chosen for, such as "best F1".
        data: Name of the images that they were chosen on.
    """

    thresholds: Mapping[str, float]
    calibration: Calibration
    criterion: str
    data: str

    def save(self, folder: Path) -> Path:
        """Writes the file into the folder of a model, and returns its path.

        Raises:
            OutputError: It cannot be written.
        """
        content = {
            "thresholds": dict(self.thresholds),
            "calibration": self.calibration._asdict(),
            "criterion": self.criterion,
            "data": self.data,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        replace_text(folder / THRESHOLDS, text)
        return folder / THRESHOLDS


def load_thresholds(model: str) -> SavedThresholds:
    """Reads the thresholds of a model.

    Args:
        model: The folder of a model or of a run, or a Hub id.

    Raises:
        ModelError: There is no such file, or it is malformed.
    """
    folder = Path(model) if (Path(model) / THRESHOLDS).is_file() else Path(model_folder(model))
    path = folder / THRESHOLDS
    if not path.is_file():
        found = None if folder.is_dir() else _on_hub(model)
        if found is None:
            raise ModelError(model, f"has no {THRESHOLDS}", _HOW_TO_MAKE)
        path = Path(found)
    content = read_json(path)
    if not isinstance(content, dict) or not _is_valid(content):
        raise ModelError(path, "is malformed, expected class names with scores from 0 to 1", _HOW_TO_MAKE)
    return SavedThresholds(
        content["thresholds"],
        Calibration(**content["calibration"]),
        str(content.get("criterion", "")),
        str(content.get("data", "")),
    )


@functools.cache  # a server asks for each request
def _on_hub(model: str) -> str | None:
    """Downloads the file of a Hub id; None if it has none. Without a connection, this takes many seconds."""
    path: str | None = cached_file(model, THRESHOLDS, _raise_exceptions_for_missing_entries=False)
    return path


def _is_valid(content: Mapping[str, object]) -> bool:
    thresholds, calibration = content.get("thresholds"), content.get("calibration")
    return (
        isinstance(thresholds, dict)
        and all(isinstance(score, int | float) and 0 <= score <= 1 for score in thresholds.values())
        and isinstance(calibration, dict)
        and calibration.keys() == {*Calibration._fields}
        and all(isinstance(value, int | float) and abs(value) < _LARGEST for value in calibration.values())
        and calibration["temperature"] > 0
    )
