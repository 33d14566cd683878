"""Reads recipes from YAML files and the command line.

`detr train bccd --data FOLDER --learning_rate 2e-4 --model_config.num_queries 50` reads the file, gives the
command line precedence, and rejects unknown keys. A recipe is given by its path or, if it is built in, by its name.
Everything about a key is in its declaration, see `recipe_keys`.
"""

import argparse
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from modeling_detr.errors_detr import (
    FileContentError,
    FileReadError,
    RecipeError,
    RecipeNotFoundError,
    did_you_mean,
    nearest_name,
)
from modeling_detr.input_files import parse_yaml, read_yaml
from modeling_detr.training.familiar_keys import Hint, familiar_key
from modeling_detr.training.recipe import DECIDED_BY_MINUTES, Recipe, recipe_class
from modeling_detr.training.recipe_help import explain, overview, type_name
from modeling_detr.training.recipe_keys import Key, keys_of, union_members


_PACKAGE = Path(__file__).parents[1]


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return builtin_files("*.yaml")


def builtin_files(pattern: str) -> dict[str, Path]:
    """The YAML files that come with the package and match a glob, by name.

    In a checkout they are in `configs/`, else in the package.
    """
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob(pattern))}


def find_recipe(name: str) -> Path:
    """The file of a recipe, given as a path or, where no such file exists, as the name of a built-in one.

    Raises:
        RecipeNotFoundError: `name` is neither.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = builtin_recipes()
    if name in recipes:
        return recipes[name]
    if Path(name).is_dir():
        raise RecipeNotFoundError(
            name, "a folder, expected a recipe", f"pass a dataset as in 'detr train small_dataset --data {name}'"
        )
    if Path(name).name != name or Path(name).suffix:
        stem = Path(name).stem
        remedy = f"use the built-in recipe '{stem}'" if stem in recipes else "expected a YAML file"
        raise RecipeNotFoundError(name, "no such file", remedy)
    raise RecipeNotFoundError(name, "no such file or built-in recipe", did_you_mean(name, recipes))


def parse_recipe(
    arguments: Sequence[str],
    program: str = "detr train",
    *,
    notes: list[str] | None = None,
) -> Recipe:
    """Parses a recipe from command line arguments: at most one recipe, and `--key value` pairs, which take precedence.

    Mappings are set key by key (`--model_config.num_queries 50`). Values are YAML: `1e-4`, `true`, `[480, 512]`.

    A file that describes a new model can also train an existing one: with `--model` on the command line and none in
    the file, the keys of the file that describe a new model are dropped.

    Args:
        arguments: The arguments after the name of the command.
        program: Name of the command in `--help`.
        notes: A list to which a sentence is added for each key of the file that is dropped.

    Raises:
        RecipeError: A key is unknown, or a value has the wrong type, is out of bounds or does not fit another key.
        RecipeNotFoundError: The recipe does not exist.
    """
    kind = recipe_class()
    keys = keys_of(kind)
    parsed = parse_arguments(arguments, program)
    values = {} if parsed.path is None else read_recipe_file(parsed.path)
    if values.get("model") is None and parsed.given.get("model") is not None:
        dropped = _drop_new_model(values, keys, parsed.given["model"])
        if notes is not None:
            notes += dropped
    values = with_given(values, parsed.given)
    if values.get("output_dir") is None and parsed.path is not None:
        values["output_dir"] = str(Path("runs", parsed.path.stem))
    return kind(**values)


class RecipeArguments(NamedTuple):
    """The arguments of `detr train`, checked.

    Attributes:
        path: The file of the recipe; None if none is named.
        given: The values of keys; `mapping.key` for those of a mapping that are set one by one.
    """

    path: Path | None
    given: dict[str, Any]


def parse_arguments(arguments: Sequence[str], program: str = "detr train") -> RecipeArguments:
    """Parses command line arguments without reading the recipe; see `parse_recipe`.

    Raises:
        RecipeError: A key is unknown, or a value has the wrong type or is out of bounds.
        RecipeNotFoundError: The recipe does not exist.
    """
    keys = keys_of(recipe_class())
    namespace, unknown = _argument_parser(program, arguments, keys).parse_known_args(list(arguments))
    for token in unknown:
        if token.startswith("-"):
            raise _unknown_option(token.split("=")[0], keys)
    for token in filter(None, [namespace.config, *unknown]):
        name, equals, value = token.partition("=")
        if equals and name.isidentifier() and not Path(token).exists():
            remedy = f"write --{name} {value}" if name in keys else _key_remedy(name, keys, prefix="--")
            raise RecipeError("command line", f"unexpected '{token}'", remedy)
    if unknown:
        raise RecipeError("command line", f"unexpected '{unknown[0]}'", "expected one recipe and --key value pairs")
    texts = vars(namespace)
    config = texts.pop("config")
    path = None if config is None else find_recipe(config)
    given = {
        name: _yaml_value(f"--{name}", text, "a value") if "." in name else _from_text(keys[name], text)
        for name, text in texts.items()
    }
    if given.get("minutes") is not None:
        for name in DECIDED_BY_MINUTES:
            if name in given:
                raise RecipeError(
                    f"--{name}", "cannot be combined with --minutes, which decides it", "drop one of them"
                )
    return RecipeArguments(path, given)


def with_given(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, overridden by those of the command line; see `RecipeArguments.given`."""
    merged = dict(values)
    for name, value in given.items():
        mapping, _, inner = name.partition(".")
        merged[mapping] = _merged(merged.get(mapping, {}), inner, value) if inner else value
    return merged


def _drop_new_model(values: dict[str, Any], keys: Mapping[str, Key], model: str) -> list[str]:
    """Drops the keys of a file that describe a new model; returns a sentence for each that had a value."""
    dropped = {
        name: values.pop(name) for name, declared in keys.items() if declared.describes_new_model and name in values
    }
    reason = f"it describes a new model, and {model} already exists"
    return [
        f"{name} of the recipe, {_in_one_line(value)}, is ignored: {reason}"
        for name, value in dropped.items()
        if value  # {}, none and false set nothing
    ]


def _in_one_line(value: object) -> str:
    return textwrap.shorten(json.dumps(value), 80, placeholder=" …")


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """Reads and checks the keys that a YAML file sets, without the defaults of the others.

    Raises:
        RecipeError: The file is not a YAML mapping, or a key is unknown, repeated, or has a value that is not allowed.
        RecipeNotFoundError: The file does not exist.
    """
    try:
        loaded = read_yaml(path)
    except FileNotFoundError as error:
        raise RecipeNotFoundError(path, "no such file", "expected a YAML file") from error
    except (FileReadError, FileContentError) as error:
        raise RecipeError(error.where, error.problem, error.remedy) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise RecipeError(path, f"got a {type(loaded).__name__}, expected lines of 'key: value'")
    keys = keys_of(recipe_class())
    values = {}
    for name, value in loaded.items():
        if name not in keys:
            raise _unknown_key(path, str(name), keys)
        values[name] = _checked(keys[name], value, f"{path}: {name}")
    return values


def _unknown_key(where: str | Path, name: str, keys: Mapping[str, Key]) -> RecipeError:
    """The error of an unknown key of a file."""
    return RecipeError(where, f"unknown key '{name}'", _key_remedy(name, keys))


def _unknown_option(option: str, keys: Mapping[str, Key]) -> RecipeError:
    """The error of an unknown option of the command line, such as `--lr`."""
    return RecipeError(option, "unknown option", _key_remedy(option.lstrip("-"), keys, prefix="--"))


def _key_remedy(name: str, keys: Mapping[str, Key], prefix: str = "") -> str:
    mapping, _, inner = name.partition(".")
    if inner and mapping in keys:
        mappings = ", ".join(declared.name for declared in keys.values() if declared.is_mapping)
        return f"'{mapping}' is a single value; keys that hold a mapping: {mappings}"
    underscored = name.replace("-", "_")
    meant = familiar_key(underscored) or nearest_name(underscored, keys)
    if meant is None:
        return "detr train --help lists all keys"
    if isinstance(meant, Hint):
        return meant
    return f"did you mean {prefix}{meant}?" if prefix else f"did you mean '{meant}'?"


def _merged(mapping: object, dotted: str, value: object) -> dict[str, Any]:
    """`mapping` with the key `dotted` (`a.b`: key `b` of the mapping `a`) set to `value`."""
    first, _, rest = dotted.partition(".")
    merged = dict(mapping) if isinstance(mapping, dict) else {}
    return {**merged, first: _merged(merged.get(first), rest, value) if rest else value}


# Values and their types


def _from_text(key: Key, text: str) -> Any:
    """The value of a key that the command line gives as text."""
    where, options = f"--{key.name}", union_members(key.type)
    if types.NoneType in options and text.lower() in ("none", "null", "~"):
        return None
    if any(_is_text(option) for option in options):
        return _checked(key, text, where)
    is_list = typing.get_origin(key.type) is list
    if is_list and not text.startswith("["):
        if key.type == list[str]:  # YAML would read the * of a glob as an alias
            return [item.strip() for item in text.split(",") if item.strip()]
        text = f"[{text}]"
    return _checked(key, _yaml_value(where, text, type_name(key.type)), where)


def _yaml_value(where: str, text: str, expected: str) -> Any:
    try:
        return parse_yaml(where, text)
    except FileContentError as error:
        raise RecipeError(where, f"got '{text}', which is not valid YAML, expected {expected}") from error


def _checked(key: Key, value: object, where: str) -> Any:
    """`value` with the type of the key, with integers converted where floats are expected.

    Raises:
        RecipeError: It has another type, is out of bounds, or is not one of the choices.
    """
    typed = _typed(where, value, key.type)
    key.check(typed, where)
    return typed


def _is_text(option: Any) -> bool:
    return option is str or typing.get_origin(option) is Literal


def _typed(where: str, value: Any, expected: Any) -> Any:
    for option in union_members(expected):
        if option is Any or (option is types.NoneType and value is None):
            return value
        origin, members = typing.get_origin(option), typing.get_args(option)
        if _is_text(option) and isinstance(value, str):
            return value
        if origin is list and isinstance(value, list):
            return [_typed(f"{where}[{index}]", item, members[0]) for index, item in enumerate(value)]
        if origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return value
        if type(value) is int and abs(value) >= 2**63:  # more than a float or tensor can hold
            continue
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is None and type(value) is option:
            return value
    raise RecipeError(where, f"got {value!r} ({type(value).__name__}), expected {type_name(expected)}")


# The command line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, for the command to print on one line."""

    def error(self, message: str) -> NoReturn:
        """Raises argparse's error."""
        option = re.fullmatch(r"argument (--\S+): expected one argument", message)
        if option is not None:
            raise RecipeError(option[1], "expected a value", f"see 'detr train --help {option[1].removeprefix('--')}'")
        raise RecipeError("command line", message)


class _Help(argparse.Action):
    """Prints the overview, or what is known about the topic that follows `--help`."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, topic: Any, _option: object = None
    ) -> None:
        keys = keys_of(recipe_class())
        print(explain(topic, builtin_recipes(), keys) if topic else overview(parser.prog, builtin_recipes(), keys))
        parser.exit()


def _argument_parser(program: str, arguments: Sequence[str], keys: Mapping[str, Key]) -> _Parser:
    """A parser for every key of the recipe, and for the keys of mappings that occur in `arguments`."""
    parser = _Parser(prog=program, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", nargs="?", const="", action=_Help)
    parser.add_argument("config", nargs="?", default=None)
    for declared in keys.values():
        if declared.type is bool:
            parser.add_argument(f"--{declared.name}", nargs="?", const="true")
        else:
            parser.add_argument(f"--{declared.name}")
    for name in sorted({token.removeprefix("--").split("=")[0] for token in arguments if token.startswith("--")}):
        mapping, _, inner = name.partition(".")
        if inner and mapping in keys and keys[mapping].is_mapping:
            parser.add_argument(f"--{name}", dest=name)
    return parser
