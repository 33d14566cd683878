"""What datasets say about an object besides class, box and mask: whether it is difficult, and how sure a model was.

Each tool writes these in its own way; here they get one name. Nothing in training or evaluation uses them, except that
`drop_difficult` leaves difficult objects out; they are kept so that a conversion does not lose them.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.contents import FLAGS, SCORE
from modeling_detr.data.formats.written_values import to_flag


ATTRIBUTES = (*FLAGS, SCORE)

_UNSET = ("__undefined__", "none", "None")  # the first of them in CVAT
_ALIASES = {"is_difficult": "difficult", "ignore": "difficult", "is_truncated": "truncated"}
_ALIASES |= {"istruncated": "truncated", "is_occluded": "occluded", "isoccluded": "occluded"}
_ALIASES |= {"confidence": SCORE, "conf": SCORE}


@functools.lru_cache(maxsize=1024)
def attribute_name(written: str) -> str | None:
    """The name of an attribute, in the spelling of any tool; None: it is not one of `ATTRIBUTES`."""
    name = written.strip().lower().replace(" ", "_").replace("-", "_")
    name = _ALIASES.get(name, name)
    return name if name in ATTRIBUTES else None


def attribute_value(name: str, written: Any) -> float:
    """The value of an attribute: 1 or 0, or a score; NaN if the dataset does not say, or writes nonsense."""
    if name != SCORE:
        if isinstance(written, int | float | str):
            return float(to_flag(written)) if not (isinstance(written, float) and math.isnan(written)) else math.nan
        return math.nan
    try:
        score = float(written)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return score if math.isfinite(score) and not isinstance(written, bool) else math.nan


def named_attributes(*written: object) -> dict[str, Any]:
    """The attributes in some mappings, by the names used here; earlier mappings come first, other keys are dropped."""
    named: dict[str, Any] = {}
    for entries in written:
        if isinstance(entries, Mapping):
            for key, value in entries.items():
                name = attribute_name(key) if isinstance(key, str) else None
                if name is not None:
                    named.setdefault(name, value)
    return named


def unused_attributes(written: Mapping[str, Any]) -> list[str]:
    """The names of those that are none of `ATTRIBUTES`, without those that are not set."""
    return [
        name
        for name, value in written.items()
        if attribute_name(name) is None and value not in _UNSET and to_flag(value)
    ]


def attribute_columns(written: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """The columns (A,) of the attributes that objects have, from what is written about each of them."""
    columns: dict[str, NDArray[np.float64]] = {}
    for name in ATTRIBUTES:
        if any(name in entry for entry in written):
            column = np.array([attribute_value(name, entry.get(name)) for entry in written], dtype=np.float64)
            if not np.isnan(column).all():
                columns[name] = column
    return columns
