"""The declaration of recipe keys: default, help, bounds and the effect on a resume, in one place.

    epochs: int = key(300, "Passes over the training images.", at_least=1)

The parser, `--help`, the checks and the comparison on resume all read these declarations.
"""

import copy
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from modeling_detr.errors_detr import RecipeError, did_you_mean


_Value = TypeVar("_Value")


class Resume(enum.Enum):
    """The effect of a changed key on a run that resumes from a checkpoint."""

    MODEL = "the checkpoint does not fit; the resume is refused"
    ORDER = "the images of the steps change; the run continues with the next epoch"
    FREE = "the new value is used from the resumed step on"
    START = "no effect: the key is used only when a run starts"
    LAUNCH = "not compared: the key is about this launch, not about the run"


@dataclass(frozen=True)
class Key:
    """The declaration of a recipe key.

    Attributes:
        name: Its name, in Python, in YAML and on the command line.
        type: Its type annotation, resolved.
        default: Its value if it is not set.
        help: What it does, for `--help`.
        at_least: Inclusive lower bound.
        below: Exclusive upper bound.
        at_most: Inclusive upper bound.
        choices: Allowed values; None: any. It may be a table that plug-ins add to.
        examples: Values that `--help` lists although others are allowed too. It may be such a table as well.
        resume: Effect of a changed value on a resume, or a function of the current and the previous value.
        describes_new_model: Whether a file's value is dropped when the command line gives an existing model.
        section: Section of `--help` that lists it.
    """

    name: str
    type: Any
    default: Any
    help: str
    at_least: float | None
    below: float | None
    at_most: float | None
    choices: Collection[str] | None
    examples: Collection[str]
    resume: Resume | Callable[[Any, Any], Resume]
    describes_new_model: bool
    section: str

    @property
    def is_mapping(self) -> bool:
        """Whether it holds a mapping, which is set key by key."""
        return typing.get_origin(self.type) is dict

    def check(self, value: object, where: str | None = None) -> None:
        """Checks the bounds and choices of a value that has the right type.

        Args:
            value: The value.
            where: Location for the error message; None: the key.

        Raises:
            RecipeError: The value is out of bounds or not one of the choices.
        """
        if value is None:
            return
        if isinstance(value, int | float):
            # `not >=` also refuses NaN
            too_small = self.at_least is not None and not value >= self.at_least
            too_large = self.below is not None and not value < self.below
            too_large = too_large or (self.at_most is not None and not value <= self.at_most)
            if too_small or too_large:
                bounds = [] if self.at_least is None else [f"at least {self.at_least:g}"]
                bounds += [] if self.below is None else [f"below {self.below:g}"]
                bounds += [] if self.at_most is None else [f"at most {self.at_most:g}"]
                raise RecipeError(where or self.name, f"got {value}, expected {' and '.join(bounds)}")
        if self.choices is not None and isinstance(value, str) and value not in self.choices:
            raise RecipeError(where or self.name, f"got '{value}'", did_you_mean(value, self.choices))

    def resume_rule(self, value: object, previous: object) -> Resume:
        """The effect of a change from `previous` to `value` on a resume."""
        return self.resume if isinstance(self.resume, Resume) else self.resume(value, previous)


def key(
    default: _Value,
    help: str,  # noqa: A002 (the word that users know)
    *,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Collection[str] | None = None,
    examples: Collection[str] = (),
    resume: Resume | Callable[[Any, Any], Resume] = Resume.FREE,
    describes_new_model: bool = False,
    section: str | None = None,
) -> _Value:
    """Declares a key of a recipe, as a field of its dataclass; see `Key` for the arguments.

    With `section`, a section of `--help` starts; without, the key belongs to the section of the one before.
    """
    declaration = {
        "help": help,
        "at_least": at_least,
        "below": below,
        "at_most": at_most,
        "choices": choices,
        "examples": examples,
        "resume": resume,
        "describes_new_model": describes_new_model,
        "section": section,
    }
    if isinstance(default, list | dict):
        return field(default_factory=functools.partial(copy.deepcopy, default), metadata=declaration)
    return field(default=default, metadata=declaration)


def keys_of(recipe: type) -> Mapping[str, Key]:
    """The keys that a recipe class declares, inherited ones included, by name.

    Raises:
        TypeError: A field of the class is not declared with `key`.
    """
    annotations = typing.get_type_hints(recipe)
    keys: dict[str, Key] = {}
    section = "other"
    for one in dataclasses.fields(recipe):
        if "resume" not in one.metadata:
            raise TypeError(f"{recipe.__name__}.{one.name}: not declared as a key; use key(default, help).")
        default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        section = one.metadata["section"] or section
        declaration = {**one.metadata, "section": section}
        declared = Key(name=one.name, type=annotations[one.name], default=default, **declaration)
        if declared.choices is None:
            declared = dataclasses.replace(declared, choices=_literal_values(declared.type))
        keys[one.name] = declared
    return types.MappingProxyType(keys)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that `annotation` is."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


def _literal_values(annotation: Any) -> tuple[str, ...] | None:
    literals = [option for option in union_members(annotation) if typing.get_origin(option) is Literal]
    return tuple(value for literal in literals for value in typing.get_args(literal)) or None
