"""The text of `detr train --help`: an overview of the keys by section, and the explanation of a section or a key."""

import shutil
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path

from modeling_detr.errors_detr import RecipeError, did_you_mean
from modeling_detr.training.familiar_keys import familiar_key
from modeling_detr.training.recipe_keys import Key, union_members


_INDENT = " " * 6


def overview(program: str, recipes: Mapping[str, Path], keys: Mapping[str, Key]) -> str:
    """What `--help` prints: the recipes, and the names of all keys by section.

    Args:
        program: The command, such as `detr train`.
        recipes: The built-in recipes' files by name.
        keys: The keys of a recipe.
    """
    width = max(map(len, [*recipes, *_sections(keys)]))
    introduction = (
        "Train a DETR from a recipe: a YAML file, or the name of a built-in one. Every key can also be set on the "
        "command line, which takes precedence. Values are written as in YAML; mappings are set key by key "
        "(--model_config.num_queries 50)."
    )
    described = [_entry(name, _purpose(file), width) for name, file in recipes.items()]
    listed = [_entry(section, ", ".join(names), width) for section, names in _sections(keys).items()]
    more = [
        ("--help SECTION", "explain the keys of a section"),
        ("--help KEY", "explain one key"),
        ("--help RECIPE", "show a built-in recipe"),
        ("--help all", "explain all keys"),
        ("--gpus N|auto", "train on N GPUs or on all (also --cpu_processes, --nodes)"),
        ("--replay FILE", "repeat a training step whose loss was not finite"),
    ]
    options = [_entry(option, explanation, 14) for option, explanation in more]
    parts = [
        [f"usage: {program} [RECIPE] [--KEY VALUE …]"],
        [_filled(introduction)],
        ["recipes:", *described],
        ["keys, by section:", *listed],
        ["more:", *options],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def explain(topic: str, recipes: Mapping[str, Path], keys: Mapping[str, Key]) -> str:
    """What `--help TOPIC` prints.

    Args:
        topic: A section, a key, a built-in recipe, or `all`.
        recipes: The built-in recipes' files by name.
        keys: The keys of a recipe.

    Raises:
        RecipeError: There is no such topic.
    """
    sections, name = _sections(keys), topic.removeprefix("--").partition(".")[0].replace("-", "_")
    if name in keys:
        return _explained(keys[name])
    if topic in recipes:
        return recipes[topic].read_text(encoding="utf-8").rstrip()
    if topic != "all" and topic not in sections:
        meant = familiar_key(name)
        remedy = (
            f"did you mean '{meant}'?" if meant in keys else did_you_mean(topic, ["all", *sections, *keys, *recipes])
        )
        raise RecipeError("--help", f"no section, key or recipe '{topic}'", remedy)
    shown = sections if topic == "all" else {topic: sections[topic]}
    blocks = [[f"{section}:", *(_explained(keys[name]) for name in names)] for section, names in shown.items()]
    return "\n\n".join("\n".join(block) for block in blocks)


def type_name(expected: object) -> str:
    """The values of a type annotation in words: `int | None` is "an integer or none"."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    containers = {list: "a list", dict: "a mapping"}
    words = []
    for option in union_members(expected):
        origin = typing.get_origin(option)
        if origin is typing.Literal:
            words += [f"'{member}'" for member in typing.get_args(option)]
        else:
            words.append(containers[origin] if origin in containers else names[option])
    return " or ".join(words)


def _sections(keys: Mapping[str, Key]) -> dict[str, list[str]]:
    """The names of the keys by section, in the order of their declaration."""
    sections: dict[str, list[str]] = {}
    for declared in keys.values():
        sections.setdefault(declared.section, []).append(declared.name)
    return sections


def _explained(key: Key) -> str:
    option = f"--{key.name}.KEY VALUE" if key.is_mapping else f"--{key.name} {_value_name(key)}"
    return f"  {option}\n{_filled(f'{key.help} (default: {_shown_default(key.default)})', _INDENT)}"


def _value_name(key: Key) -> str:
    if key.choices is not None:
        return "{" + ",".join(key.choices) + "}"
    if key.examples:
        return "{" + ",".join([*key.examples, "…"]) + "}"
    if typing.get_origin(key.type) is list:
        return "A,B"
    return {int: "N", float: "X", bool: "BOOL"}.get(union_members(key.type)[0], "TEXT")


def _shown_default(default: object) -> str:
    if default in ([], {}):
        return "empty"
    if isinstance(default, list):
        return ",".join(map(str, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def _purpose(recipe: Path) -> str:
    """The comment in the first line of a recipe, which says what it is for."""
    with recipe.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _entry(name: str, explanation: str, width: int) -> str:
    return _filled(f"  {name:<{width}}  {explanation}", following=" " * (width + 4))


def _filled(text: str, indent: str = "", following: str | None = None) -> str:
    """The text wrapped to the width of the terminal."""
    return textwrap.fill(
        text,
        min(shutil.get_terminal_size().columns, 100),
        initial_indent=indent,
        subsequent_indent=indent if following is None else following,
        break_on_hyphens=False,
        break_long_words=False,
    )
