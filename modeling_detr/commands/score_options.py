"""The options that choose which predictions count: a threshold, classes, calibration."""

import argparse
import math

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.predicting.score_rules import BEST, OTHERS, Threshold, listed_names
from modeling_detr.prediction import OBJECT_THRESHOLD, SEGMENT_THRESHOLD
from modeling_detr.saved_thresholds import THRESHOLDS


def add_score_options(parser: CommandParser) -> None:
    """Adds `--threshold`, `--classes` and `--calibrated`."""
    parser.add_argument(
        "--threshold",
        help=f"lowest score to keep (default: {OBJECT_THRESHOLD}, for panoptic segments {SEGMENT_THRESHOLD}); one for "
        f"some classes, as .5,cat=.3,dog=.7; or {BEST}: that of each class in the model's {THRESHOLDS}, which "
        f"'detr evaluate --save_thresholds' writes",
    )
    parser.add_argument(
        "--classes",
        help="names of the classes to keep, separated by commas (default: all); a name with a comma in double quotes: "
        "'\"light, red\",cat'",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help=f"write calibrated scores, by the model's {THRESHOLDS}: of objects with score .8, about 80%% are hits; "
        "thresholds apply to the scores before calibration",
    )


def parse_score_options(arguments: argparse.Namespace) -> None:
    """Replaces the texts of `threshold` and `classes` by what they mean.

    Raises:
        ValueError: One of them is invalid.
    """
    if arguments.threshold is not None:
        arguments.threshold = _threshold(arguments.threshold)
    if arguments.classes is not None:
        arguments.classes = _names("classes", arguments.classes)
        if not arguments.classes:
            raise ValueError("--classes: got no name, expected names of classes, separated by commas.")


def _threshold(text: str) -> Threshold:
    """The value of `--threshold`: a score, scores by class, or `best`."""
    if text == BEST:
        return BEST
    by_class = {}
    for part in _names("threshold", text):
        name, _, score = part.rpartition("=")
        name = name.strip() or OTHERS
        if name in by_class:
            raise ValueError(f"--threshold: got '{text}', which has two scores for {name or 'all other classes'}.")
        by_class[name] = _score(score)
    if not by_class:
        raise ValueError(f"--threshold: got '{text}', expected a score from 0 to 1, or {BEST}.")
    return by_class[OTHERS] if by_class.keys() == {OTHERS} else by_class


def _names(option: str, text: str) -> list[str]:
    try:
        return listed_names(text)
    except ValueError as error:
        raise ValueError(f"--{option}: {error}") from error


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"--threshold: got {text or 'no score'}, expected a score from 0 to 1, or {BEST}.")
    return value
