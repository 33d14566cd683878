"""Choose the images to train on and to evaluate on: splits with the usual names, or a held-out share."""

import hashlib
import re
from typing import Literal

import numpy as np

from modeling_detr.data.crowds import CROWDS_REMEDY
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import DetectionIndex


Role = Literal["train", "eval"]

DEFAULT_SEED = 42  # of a recipe; training and `detr evaluate` then hold out the same images

_ROLE_NAMES: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "eval": ("val", "valid", "validation", "dev", "eval", "test"),
}
ALL = "all"  # in place of a split
_MAX_NOTES = 5  # repeated in an error
_HELD_OUT = 0.1  # the share that error messages suggest


def training_splits(
    index: DetectionIndex,
    train_split: str | None = None,
    eval_split: str | None = None,
    eval_fraction: float = 0.0,
    seed: int = 0,
    train_images: int | None = None,
) -> tuple[DetectionIndex, DetectionIndex]:
    """Choose the images to train on and those to evaluate on.

    Args:
        index: The whole dataset.
        train_split: Split to train on, or several joined by `+`; None: the one with a usual name.
        eval_split: Split to evaluate on, or several joined by `+`; None: the one with a usual name.
        eval_fraction: If above 0, this share of the training images is held out for evaluation instead.
        seed: Seed for choosing the held-out images and those to train on.
        train_images: Train on this many images, drawn at random; None: on all.

    Raises:
        DatasetError: A split does not exist, has no images or too few, or has no annotated objects.
    """
    if eval_fraction > 0:
        train, evaluation = hold_out_of_split(index, train_split, eval_fraction, seed)
    else:
        train = choose_split(index, train_split or find_split(index, "train"))
        evaluation = choose_split(index, eval_split or find_split(index, "eval"))
    if train_images is not None:
        train = draw_images(train, train_images, seed)
    for chosen, key in ((train, "train_split"), (evaluation, "eval_split")):
        if len(chosen) == 0:
            raise DatasetError(chosen.name, f"has no images{_reasons(index)}", f"choose another {key}")
        if len(chosen.annotations) == 0:
            raise DatasetError(chosen.name, f"has no annotated objects{_reasons(index)}", f"choose another {key}")
        if chosen.annotations.is_crowd.all():
            problem = f"has no objects, all {len(chosen.annotations):,} annotations are crowd regions (iscrowd)"
            raise DatasetError(chosen.name, problem, CROWDS_REMEDY, {"crowds": "as_objects"})
    return train, evaluation


def evaluation_images(
    index: DetectionIndex, split: str | None = None, eval_fraction: float = 0.0, seed: int = 0
) -> DetectionIndex:
    """Choose the images to evaluate on.

    Args:
        index: The whole dataset.
        split: Split, or several joined by `+`; None: the one with a usual name, or all images if there are no splits;
            `all`: all images, unless a split is called so.
        eval_fraction: If above 0, choose the share that a training on `split` with this `seed` holds out.
        seed: See `eval_fraction`.

    Raises:
        DatasetError: The split does not exist or has no images, or `eval_fraction` is out of range.
    """
    if not 0 <= eval_fraction < 1:
        raise DatasetError("eval_fraction", f"got {eval_fraction:g}, expected at least 0 and below 1")
    if eval_fraction > 0:
        chosen = hold_out_of_split(index, split, eval_fraction, seed)[1]
    elif (split is None and not index.has_splits) or (split == ALL and ALL not in index.splits):
        chosen = index
    else:
        chosen = choose_split(index, split or find_split(index, "eval"))
    if len(chosen) == 0:
        raise DatasetError(chosen.name, f"has no images{_reasons(index)}", "choose another split")
    return chosen


def choose_split(index: DetectionIndex, names: str) -> DetectionIndex:
    """Return the images of a split, or of several joined by `+`.

    Raises:
        DatasetError: A split does not exist.
    """
    missing = [name for name in names.split("+") if name not in index.splits]
    if missing:
        existing = ", ".join(sorted(index.splits)) or "none"
        problem = f"has no split '{missing[0]}'; its splits are: {existing}{_reasons(index)}"
        raise DatasetError(index.name, problem, "choose one of them")
    return index.split(names)


def _reasons(index: DetectionIndex) -> str:
    """What the reader left out, which may be the reason why something is not there."""
    if not index.notes:
        return ""
    more = f" (and {len(index.notes) - _MAX_NOTES} more)" if len(index.notes) > _MAX_NOTES else ""
    return f". Notes of the reader: {' '.join(index.notes[:_MAX_NOTES])[:-1]}{more}"


def find_split(index: DetectionIndex, role: Role) -> str:
    """Find the split to train on or to evaluate on by its usual name: train, train2017 / val, valid, test, ….

    Raises:
        DatasetError: No split has such a name, or several have; the message lists the splits.
    """
    key = f"{role}_split"
    for name in _ROLE_NAMES[role]:
        matching = [split for split in index.splits if _pattern(name).fullmatch(split)]
        exact = [split for split in matching if split.lower() == name]
        if len(exact or matching) == 1:
            return (exact or matching)[0]
        if matching:
            matching.sort()
            problem = f"has several splits to {'train' if role == 'train' else 'evaluate'} on, {', '.join(matching)}"
            raise DatasetError(index.name, problem, "choose one", {key: matching[0]})
    if not index.has_splits:
        raise DatasetError(
            index.name,
            f"has no splits{_reasons(index)}",
            "hold out some images for evaluation",
            {"eval_fraction": _HELD_OUT},
        )
    splits, usual = sorted(index.splits), ", ".join(_ROLE_NAMES[role])
    choices = [split for split in splits if role == "train" or not has_role(split, "train")]
    problem = f"has no split with a usual name for {'training' if role == 'train' else 'evaluation'} ({usual})"
    problem += f"; its splits are: {', '.join(splits)}{_reasons(index)}"
    if role == "train":
        raise DatasetError(index.name, problem, "choose one", {key: choices[0]})
    if not choices:
        raise DatasetError(index.name, problem, "hold out some images for evaluation", {"eval_fraction": _HELD_OUT})
    raise DatasetError(
        index.name, problem, "choose one, or hold out some images", {key: choices[0], "eval_fraction": _HELD_OUT}
    )


def has_role(split: str, role: Role) -> bool:
    """Whether `split` has one of the usual names for `role`."""
    return any(_pattern(name).fullmatch(split) for name in _ROLE_NAMES[role])


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"{name}[-_]?\d*", re.IGNORECASE)


def hold_out_of_split(
    index: DetectionIndex, split: str | None, fraction: float, seed: int
) -> tuple[DetectionIndex, DetectionIndex]:
    """Hold out a share of the training images for evaluation; see `hold_out`.

    Args:
        index: The whole dataset.
        split: The split to train on; None: the one with a usual name, or all images if there are no splits.
        fraction: Share of the images to hold out, above 0 and below 1.
        seed: Seed for choosing the held-out images.

    Returns:
        The images to train on, and the held-out images.

    Raises:
        DatasetError: The split does not exist.
    """
    if split is not None or index.has_splits:
        index = choose_split(index, split or find_split(index, "train"))
    return hold_out(index, fraction, seed)


def draw_images(index: DetectionIndex, count: int, seed: int) -> DetectionIndex:
    """Draw images at random; the images of a smaller `count` with the same seed are among those of a larger one.

    Raises:
        DatasetError: There are fewer images.
    """
    if count > len(index):
        problem = f"has {len(index):,} images to train on, expected at least {count:,}"
        raise DatasetError(index.name, problem, "lower train_images", {"train_images": len(index)})
    chosen = _random_order(index, f"{seed}/train_images")[:count]
    return index.select(np.sort(np.asarray(chosen)), f"{count:,} images of {index.name}")


def _random_order(index: DetectionIndex, seed: object) -> list[int]:
    """The indices of all images in an order that depends on their ids and the seed only."""
    keys = [hashlib.sha256(f"{seed}/{image.id}".encode(errors="surrogatepass")).digest() for image in index.images]
    return sorted(range(len(keys)), key=keys.__getitem__)


def hold_out(index: DetectionIndex, fraction: float, seed: int) -> tuple[DetectionIndex, DetectionIndex]:
    """Divide the images into those to train on and a held-out share, which depends on their ids and the seed only."""
    order = _random_order(index, seed)
    num_held_out = min(len(index) - 1, max(1, round(fraction * len(index))))
    held_out, rest = order[:num_held_out], order[num_held_out:]
    return (
        index.select(np.sort(np.asarray(rest)), f"{index.name} without held-out images"),
        index.select(np.sort(np.asarray(held_out)), f"held-out images of {index.name}"),
    )
