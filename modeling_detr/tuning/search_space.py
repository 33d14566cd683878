"""The keys of a recipe that a search varies, and their ranges.

A range is written in the same way here and in a file of the user:

    learning_rate: {around: 5}                            # from a fifth of the recipe's value to five times it, log
    model_config.eos_coefficient: {low: 0.02, high: 0.5, log: true}
    denoising_groups: {low: 0, high: 5}                   # whole numbers, since the key is one
    transform: [light, strong]                            # one of these
    processor_config.size: {times: [0.75, 1, 1.25]}       # multiples of the recipe's value
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.errors_detr import FileContentError, FileReadError, RecipeError, SearchError, did_you_mean
from modeling_detr.input_files import read_yaml
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_keys import keys_of


# Key → its range. To search another key by default, add a line.
SPACE: dict[str, Any] = {
    "learning_rate": {"around": 5},
    "backbone_learning_rate": {"around": 10},
    "batch_size": {"times": [0.5, 1, 2]},
    "ema_decay": [0.0, 0.99, 0.998],
    "model_config.eos_coefficient": {"low": 0.02, "high": 0.5, "log": True},
    "model_config.num_queries": {"times": [0.5, 1, 2]},
    "processor_config.size": {"times": [0.75, 1, 1.25]},
    "transform": ["light", "strong"],
    "mosaic_probability": [0.0, 0.3, 0.6, 1.0],
    "close_mosaic_share": {"low": 0.05, "high": 0.5},
    "denoising_groups": {"low": 0, "high": 5},
    "anchored_matching": [0.0, 10.0],
}
# Key → another key without which it has no effect.
NEEDS = {"close_mosaic_share": "mosaic_probability"}
# Keys that decide what is scored, for how long, and where.
_FIXED = ("task", "data", "eval_split", "eval_fraction", "minutes", "output_dir", "resume", "push_to_hub")

_GRID = 16  # pixels: sizes of images are rounded to a multiple
_DIGITS = 3  # significant digits of a value that is drawn from a range
_UNKNOWN = object()


class _Obstacle(NamedTuple):
    """Why a key cannot be searched."""

    applies: Callable[[Recipe], bool]
    reason: str


_OBSTACLES = {
    "denoising_groups": _Obstacle(lambda recipe: recipe.freeze_detector, "freeze_detector excludes it"),
    "anchored_matching": _Obstacle(lambda recipe: not recipe.local_start, "it needs local_start"),
    "processor_config.size": _Obstacle(
        lambda recipe: "scales" in recipe.transform_options, "transform_options.scales decides the sizes"
    ),
}


@dataclass(frozen=True)
class Dimension:
    """A key and its range, as plain values.

    Attributes:
        key: The key of the recipe; those of mappings are dotted.
        base: The recipe's own value.
        choices: The values; empty for a range of numbers. Those of a mapping, such as a size, are multiples.
        low: Lower bound, inclusive.
        high: Upper bound, inclusive.
        log: Whether the logarithm is uniform.
        is_whole: Whether the numbers are whole.
    """

    key: str
    base: Any
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    is_whole: bool = False

    @property
    def start(self) -> Any:
        """What is drawn for the recipe's own value."""
        return 1.0 if isinstance(self.base, Mapping) else self.base

    def value(self, drawn: Any) -> Any:
        """The value of the key for what is drawn."""
        if isinstance(self.base, Mapping):
            return {name: _scaled(size, drawn) for name, size in self.base.items()}
        if self.choices or self.is_whole or drawn == self.base:
            return drawn
        return min(max(float(f"{drawn:.{_DIGITS}g}"), self.low), self.high)


def _scaled(size: int, factor: float) -> int:
    return size if factor == 1 else max(_GRID, _GRID * round(size * factor / _GRID))


class Space(NamedTuple):
    """The dimensions of a search, and a sentence for each key of the table that is not searched."""

    dimensions: tuple[Dimension, ...]
    notes: list[str]


def read_space(path: str | Path) -> dict[str, Any]:
    """Reads a file of ranges; see the module.

    Raises:
        SearchError: It does not exist, or is not a mapping.
    """
    try:
        loaded = read_yaml(path)
    except FileNotFoundError as error:
        raise SearchError(path, "no such file", "expected a YAML file of keys and ranges") from error
    except (FileReadError, FileContentError) as error:
        raise SearchError(error.where, error.problem, error.remedy) from error
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(key, str) for key in loaded):
        raise SearchError(path, f"got {loaded!r}, expected lines of 'key: range'")
    return loaded


def search_space(
    recipe: Recipe,
    given: Collection[str] = (),
    names: Sequence[str] | None = None,
    written: Mapping[str, Any] | None = None,
    where: str = "--space",
) -> Space:
    """The keys to search and their ranges.

    Args:
        recipe: The recipe that is searched around.
        given: Keys that have a fixed value.
        names: The keys to search; None: all of the table and of `written` that this recipe has.
        written: Ranges that add to those of the table, or replace them.
        where: The file of `written`, for messages.

    Raises:
        SearchError: A key or its range is not valid, does not contain the recipe's own value, or nothing is left.
    """
    written = written or {}
    ranges = {**SPACE, **written}
    for name in names or ():
        if name not in ranges:
            remedy = did_you_mean(name, ranges)
            raise SearchError("--keys", f"'{name}' has no range", f"{remedy.rstrip('.')} (or add it with --space)")
    dimensions, notes = [], []
    for key in ranges if names is None else dict.fromkeys(names):
        is_wanted = names is not None or key in written
        _check_key(key, where)
        reason = _obstacle(recipe, key, given, ranges if names is None else names)
        if reason is None:
            dimensions.append(_dimension(key, ranges[key], _base_value(recipe, key), where if key in written else ""))
        elif is_wanted:
            raise SearchError(key, f"cannot be searched: {reason}", "leave it out")
        else:
            notes.append(f"{key} is not searched: {reason}")
    if not dimensions:
        raise SearchError("--keys", "nothing is left to search", "leave a key of the table open, or add a range")
    return Space(tuple(sorted(dimensions, key=lambda one: one.key in NEEDS)), notes)


def _check_key(key: str, where: str) -> None:
    declared = keys_of(Recipe)
    mapping, _, inner = key.partition(".")
    if mapping not in declared:
        raise SearchError(where, f"unknown key '{key}'", did_you_mean(mapping, declared))
    if key in _FIXED:
        raise SearchError(where, f"'{key}' is the same for all trials", "remove it")
    if declared[mapping].is_mapping != bool(inner):
        expected = "a key of it, as in model_config.num_queries" if not inner else f"'{mapping}', which has no keys"
        raise SearchError(where, f"got '{key}', expected {expected}")
    if mapping == "model_config" and not hasattr(DetrConfig(), inner):
        raise SearchError(where, f"the model has no setting '{inner}'", did_you_mean(inner, vars(DetrConfig())))


def _obstacle(recipe: Recipe, key: str, given: Collection[str], searched: Collection[str]) -> str | None:
    """Why a key cannot be searched with this recipe; None if it can."""
    if any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in given):
        return "its value is given"
    if key in _OBSTACLES and _OBSTACLES[key].applies(recipe):
        return _OBSTACLES[key].reason
    needed = NEEDS.get(key)
    if needed is not None and not getattr(recipe, needed) and (needed not in searched or needed in given):
        return f"it has no effect without {needed}"
    base = _base_value(recipe, key)
    if base is _UNKNOWN:
        return "the recipe does not set it, and its default depends on the model"
    if key == "backbone_learning_rate" and base == 0:
        return "the backbone is frozen"
    return None


def _base_value(recipe: Recipe, key: str) -> Any:
    mapping, *inner = key.split(".")
    value: Any = getattr(recipe, mapping)
    for name in inner:
        if not isinstance(value, Mapping) or name not in value:
            is_default = recipe.model is None and mapping == "model_config" and len(inner) == 1
            return getattr(DetrConfig(), name) if is_default else _UNKNOWN
        value = value[name]
    return value


def _dimension(key: str, written: object, base: Any, where: str) -> Dimension:
    """Checks and completes a range; those of the table, for which `where` is empty, grow to contain the base."""
    place = f"{where}: {key}" if where else key
    if isinstance(written, dict) and [*written] == ["times"]:
        written = _multiples(place, written["times"], base)
    elif isinstance(base, Mapping):
        raise SearchError(place, f"got {json.dumps(written)}, expected {{times: [0.75, 1, 1.25]}}")
    if isinstance(written, list):
        dimension = _of_choices(place, key, written, base, grows=not where)
    elif isinstance(written, dict):
        dimension = _of_range(place, key, written, base, grows=not where)
    else:
        raise SearchError(place, f"got {written!r}, expected a list of values or {{low: …, high: …}}")
    _check_values(place, dimension)
    return dimension


def _multiples(place: str, factors: object, base: Any) -> list[Any]:
    if not isinstance(factors, list) or not all(_is_number(factor) and factor > 0 for factor in factors):
        raise SearchError(place, f"times: got {factors!r}, expected positive numbers such as [0.5, 1, 2]")
    if isinstance(base, Mapping):
        if not base or not all(type(size) is int for size in base.values()):
            raise SearchError(place, f"cannot multiply {json.dumps(base)}", "give a list of values")
        return [float(factor) for factor in factors]
    if not _is_number(base):
        raise SearchError(place, f"cannot multiply the recipe's value {base!r}", "give a list of values")
    products = [max(1, round(base * factor)) if type(base) is int else base * factor for factor in factors]
    return [*dict.fromkeys(products)]


def _of_choices(place: str, key: str, choices: list[Any], base: Any, grows: bool) -> Dimension:
    if not all(value is None or isinstance(value, bool | int | float | str) for value in choices):
        raise SearchError(place, f"got {json.dumps(choices)}, expected plain values")
    if isinstance(base, float):
        choices = [float(value) if _is_number(value) else value for value in choices]
    start = 1.0 if isinstance(base, Mapping) else base
    if start not in choices and grows:
        choices = [start, *choices]
    if start not in choices:
        raise _without_base(place, json.dumps(choices), start)
    if len(set(choices)) < 2 or len(set(choices)) < len(choices):
        raise SearchError(place, f"got {json.dumps(choices)}, expected at least two different values")
    return Dimension(key, base, tuple(choices))


def _of_range(place: str, key: str, written: dict[str, Any], base: Any, grows: bool) -> Dimension:
    if not _is_number(base):
        raise SearchError(place, f"the recipe's value is {base!r}, which is not a number", "give a list of values")
    for name in ("around", "times"):
        if name in written and len(written) > 1:
            others = ", ".join(other for other in written if other != name)
            raise SearchError(place, f"got {name} with {others}", f"use {name} alone, or low, high and log")
    if "around" in written:
        written = _around(place, written["around"], base)
    for name in written:
        if name not in ("low", "high", "log"):
            raise SearchError(place, f"unknown '{name}'", "expected low, high and log, or around, or times")
    low, high, log = written.get("low"), written.get("high"), written.get("log", False)
    if type(log) is not bool:
        raise SearchError(place, f"log: got {log!r}, expected true or false")
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise SearchError(place, f"got {json.dumps(written)}, expected low and high, low < high, such as 0.1 and 0.5")
    if log and low <= 0:
        raise SearchError(place, f"low: got {low}, expected a positive number with log: true")
    is_whole = type(base) is int
    if is_whole and (low != int(low) or high != int(high)):
        raise SearchError(place, f"got {low} and {high}, expected whole numbers")
    if grows:
        low, high = min(low, base), max(high, base)
        log = log and low > 0
    if not low <= base <= high:
        raise _without_base(place, f"{low:g} to {high:g}", base)
    kind = int if is_whole else float
    return Dimension(key, base, low=kind(low), high=kind(high), log=log, is_whole=is_whole)


def _around(place: str, factor: object, base: float) -> dict[str, Any]:
    if not _is_number(factor) or factor <= 1:
        raise SearchError(place, f"around: got {factor!r}, expected a factor above 1, such as 5")
    if base <= 0:
        raise SearchError(
            place, f"around: the recipe's value is {base:g}, expected a positive one", "use low and high"
        )
    low, high = base / factor, base * factor
    if type(base) is int:  # at least the neighbours, which a small factor would round away
        low, high = max(1, min(round(low), base - 1)), max(round(high), base + 1)
    return {"low": low, "high": high, "log": True}


def _without_base(place: str, text: str, base: object) -> SearchError:
    problem = f"{text} does not contain {json.dumps(base)}, the recipe's own value, which is the first trial"
    return SearchError(place, problem, "extend it, or search around a recipe with a value in it")


def _check_values(place: str, dimension: Dimension) -> None:
    """Checks the values against the declaration of the key."""
    declared = keys_of(Recipe).get(dimension.key)
    if declared is None:
        return
    for value in dimension.choices or (dimension.low, dimension.high):
        problem = None
        if isinstance(dimension.base, bool) != isinstance(value, bool) and value is not None:
            problem = (
                f"got {value!r}, expected {'true or false' if isinstance(dimension.base, bool) else 'no truth value'}"
            )
        elif type(dimension.base) is int and not isinstance(value, int) and value is not None:
            problem = f"got {value!r}, expected whole numbers"
        elif isinstance(dimension.base, float) and not _is_number(value) and value is not None:
            problem = f"got {value!r}, expected numbers"
        if problem is not None:
            raise SearchError(place, problem)
        try:
            declared.check(value, place)
        except RecipeError as error:
            raise SearchError(error.where, error.problem, error.remedy) from error


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
