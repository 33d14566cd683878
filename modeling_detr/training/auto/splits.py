"""What `detr train auto` evaluates on: the validation split, or images that it holds out where there is none."""

from typing import NamedTuple

from modeling_detr.data.findings import counted
from modeling_detr.data.splits import find_split, has_role
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import DetectionIndex


_SMALL_SHARE, _LARGE_SHARE = 0.1, 0.2
_FEW_IMAGES = 200


class EvalImages(NamedTuple):
    """The images to evaluate on.

    Attributes:
        key: The recipe key.
        value: The name of the split, or the share of the images to hold out.
        reason: Why, for the user.
    """

    key: str
    value: str | float
    reason: str


def choose_eval_images(index: DetectionIndex, train_split: str | None) -> EvalImages:
    """Chooses what to evaluate on, if the user has not.

    Args:
        index: The whole dataset.
        train_split: The split to train on, if the user names one.

    Raises:
        DatasetError: The dataset has several splits to choose from, or too few images to hold one out.
    """
    usable = [split for split in index.splits if has_role(split, "eval") and len(index.splits[split])]
    if index.has_splits and usable:
        name = find_split(index, "eval")
        if name.lower().startswith("test"):
            reason = "the only one to evaluate on; it also chooses the best epoch, so its score is optimistic"
            return EvalImages("eval_split", name, reason)
        return EvalImages("eval_split", name, "the usual name; it chooses the best epoch")
    split = train_split or (find_split(index, "train") if index.has_splits else None)
    number = len(index) if split is None else len(index.split(split))
    if number < 2:
        problem = f"has {counted(number, 'image')} to train on, expected at least 2: one is held out for evaluation"
        raise DatasetError(index.name, problem, "add images")
    share = _LARGE_SHARE if number < _FEW_IMAGES else _SMALL_SHARE
    held_out = min(number - 1, max(1, round(share * number)))
    return EvalImages(
        "eval_fraction", share, f"there is no validation split: {held_out} of {counted(number, 'image')} held out"
    )
