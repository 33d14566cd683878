"""Signs in the log that a run could go better: waiting for data, a loss that stands still."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


LONG_WAIT = 0.2  # share of the time above which loading slows training down
_RECENT = 10  # entries whose waiting counts
_STILL_ENTRIES, _STILL_SHARE = 40, 0.2  # the latest entries whose halves are compared: at least so many, or this share
_STILL = 0.01  # relative change of the loss below which it stands still
_METRICS = ("ap", "mask_ap", "pq")


def find_signs(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the warnings about a run that is training.

    Args:
        entries: The entries of its log.
    """
    steps = [entry for entry in entries if entry.get("kind") == "step"]
    return [text for text in (_waiting(steps), _standing_still(steps, entries)) if text is not None]


def _waiting(steps: Sequence[Mapping[str, Any]]) -> str | None:
    shares = _numbers(steps[-_RECENT:], "loader_wait")
    if len(shares) < _RECENT or fmean(shares) <= LONG_WAIT:
        return None
    return (
        f"Training waits for images in {fmean(shares):.0%} of the time. Raise num_workers if there are cores left, or "
        "make the images smaller on disk."
    )


def _standing_still(steps: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the loss has not fallen for a while, unless an evaluation in this time was the best one."""
    recent = steps[-max(_STILL_ENTRIES, round(_STILL_SHARE * len(steps))) :]
    losses = _numbers(recent, "loss")
    if len(losses) < _STILL_ENTRIES:
        return None
    half = len(losses) // 2
    before, after = fmean(losses[:half]), fmean(losses[half:])
    if before <= 0 or after < (1 - _STILL) * before or _improved_since(recent[0].get("step"), entries):
        return None
    return (
        f"The loss has stood still since step {recent[0].get('step'):,}: {before:.4g} on average, then {after:.4g}. "
        "Near the end of a run this is normal; earlier, try other learning rates, or check the data (detr data check)."
    )


def _improved_since(step: Any, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a metric was at its best in an evaluation after `step`."""
    for name in _METRICS:
        scored = [
            (entry.get("step"), entry[name])
            for entry in entries
            if entry.get("kind") == "epoch" and isinstance(entry.get(name), int | float)
        ]
        if scored and max(scored, key=lambda one: one[1])[0] > step:
            return True
    return False


def _numbers(entries: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(entry[name]) for entry in entries if isinstance(entry.get(name), int | float)]
