"""Which predictions count, and which score is written for them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor

from modeling_detr.errors_detr import ModelError, did_you_mean
from modeling_detr.evaluation.metrics import unique_names
from modeling_detr.prediction import OBJECT_THRESHOLD, SEGMENT_THRESHOLD
from modeling_detr.saved_thresholds import Calibration, load_thresholds
from modeling_detr.structures_detr import DetectionResult, PanopticResult, SegmentInfo


BEST: Final = "best"
OTHERS = ""  # in thresholds by class: all that are not named

Threshold = float | Mapping[str, float] | Literal["best"]
"""A score; a score for each class, by name, where `OTHERS` stands for the rest; or `best`, from `thresholds.json`."""


@dataclass(frozen=True)
class ScoreRules:
    """Which predictions of a model count.

    Attributes:
        by_label: (C,) the lowest score of each class; infinite for classes that are left out.
        calibration: What turns scores into shares of hits, after the thresholds; None: scores stay as they are.
    """

    by_label: Tensor
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        model: str,
        class_names: Sequence[str],
        *,
        threshold: Threshold | None = None,
        classes: Sequence[str] | str | None = None,
        calibrated: bool = False,
        is_panoptic: bool = False,
    ) -> "ScoreRules":
        """The rules that a user chooses.

        Args:
            model: What the user passed for the model, for its `thresholds.json`.
            class_names: The model's classes.
            threshold: The lowest score. None: .5, and .85 for panoptic segments.
            classes: Names of the classes that count, a list or a text with commas; None: all.
            calibrated: Calibrate scores by the model's `thresholds.json`.
            is_panoptic: Whether the model predicts segments.

        Raises:
            ModelError: The model has no `thresholds.json`, has no class of a name, or predicts segments, which have
                one threshold for all classes.
            ValueError: A threshold is not a number from 0 to 1.
        """
        names = unique_names(class_names)
        threshold = _checked(threshold)
        classes = listed_names(classes) if isinstance(classes, str) else classes
        if is_panoptic and (calibrated or not isinstance(threshold, float | None)):
            option = "calibrated scores" if calibrated else "thresholds by class"
            raise ModelError(model, f"predicts panoptic segments, for which there are no {option}", "drop that option")
        saved = load_thresholds(model) if threshold == BEST or calibrated else None
        lowest: float = SEGMENT_THRESHOLD if is_panoptic else OBJECT_THRESHOLD
        by_name: Mapping[str, float] = {}
        if threshold == BEST and saved is not None:
            by_name = saved.thresholds
        elif isinstance(threshold, Mapping):
            lowest = threshold.get(OTHERS, lowest)
            by_name = {name: score for name, score in threshold.items() if name != OTHERS}
            _check_names(model, by_name, names)
        elif isinstance(threshold, float):
            lowest = threshold
        if classes is not None:
            _check_names(model, classes, names)
        scores = [
            torch.inf if classes is not None and name not in classes else by_name.get(name, lowest) for name in names
        ]
        by_label = torch.tensor(scores, dtype=torch.float64)
        return cls(by_label, saved.calibration if saved is not None and calibrated else None)

    @property
    def lowest(self) -> float:
        """The lowest score of any class."""
        return float(self.by_label.min())

    def of_objects(self, objects: DetectionResult) -> DetectionResult:
        """The objects that count, with the scores to write."""
        keep = objects["scores"].double() >= self.by_label[objects["labels"]]
        kept: DetectionResult = {
            "scores": objects["scores"][keep],
            "labels": objects["labels"][keep],
            "boxes": objects["boxes"][keep],
        }
        if "masks" in objects:
            kept["masks"] = objects["masks"][keep]
        if self.calibration is not None:
            kept["scores"] = torch.from_numpy(self.calibration(kept["scores"].double().numpy())).float()
        return kept

    def of_segments(self, panoptic: PanopticResult) -> PanopticResult:
        """The segments of classes that are not left out, with the ids 1, 2, …; 0 stands for no segment."""
        infos = [info for info in panoptic["segments_info"] if self.by_label[info["label_id"]] < torch.inf]
        segmentation = torch.zeros_like(panoptic["segmentation"])
        for number, info in enumerate(infos, start=1):
            segmentation[panoptic["segmentation"] == info["id"]] = number
        numbered = [cast(SegmentInfo, {**info, "id": number}) for number, info in enumerate(infos, start=1)]
        return {"segmentation": segmentation, "segments_info": numbered}


def listed_names(text: str) -> list[str]:
    """The names in a list with commas, as on a command line or in a URL; a name with a comma is in double quotes.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        rows = [*csv.reader([text], skipinitialspace=True)]
    except csv.Error as error:
        raise ValueError(f"got '{text}', which is not a list of names ({error}).") from error
    return [name.strip() for row in rows for name in row if name.strip()]


def _checked(threshold: Any) -> dict[str, float] | float | Literal["best"] | None:
    """A threshold with plain numbers."""
    if isinstance(threshold, Mapping):
        return {name: _score(score, f"threshold of {name or 'other classes'}") for name, score in threshold.items()}
    if threshold is None:
        return None
    if isinstance(threshold, str) and threshold == BEST:
        return BEST
    return _score(threshold, "threshold")


def _score(value: Any, where: str) -> float:
    try:
        score = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise ValueError(f"{where}: got {value!r}, expected a score from 0 to 1, or {BEST!r} for all classes.")
    return score


def _check_names(model: str, names: Sequence[str] | Mapping[str, float], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            quotes = " A name with a comma is in double quotes." if any("," in other for other in known) else ""
            raise ModelError(model, f"has no class '{name}'", did_you_mean(str(name), known) + quotes)
