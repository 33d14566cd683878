"""The pages of the documentation site that are made from the code: commands, recipe keys, config keys and the API.

Each function returns Markdown. Nothing here imports mkdocs; `hook.py` adds the pages to the site.
"""

import argparse
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path

import modeling_detr
from modeling_detr import DetrConfig
from modeling_detr.commands import COMMANDS
from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.stock_detr import KEY_ALIASES
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_help import type_name
from modeling_detr.training.recipe_keys import Key, Resume, keys_of
from modeling_detr.training.recipe_parsing import builtin_recipes


SECTION_TITLES = {
    "data": "Data",
    "model": "Model",
    "augmentation": "Augmentation",
    "batches": "Batches",
    "schedule": "Schedule",
    "optimizer": "Optimizer",
    "aids": "Training aids",
    "hardware": "Precision, memory, speed",
    "run": "Run folder and checkpoints",
    "evaluation": "Evaluation",
    "logs": "Logs and uploads",
}

# Parts of the API, in the order of the navigation. The first is the flat files of the package.
_ROOMS = ("data", "evaluation", "explanation", "conversion", "visualization", "training", "pages", "commands")


# Commands


def command_pages() -> dict[str, str]:
    """The page of every command, sub-commands included, by its address."""
    pages = {"commands/train.md": _train_page()}
    for name, command in COMMANDS.items():
        module = importlib.import_module(command.module)
        if name == "train":
            continue
        parser: CommandParser = module.build_parser()
        if not parser.subcommands:
            pages[f"commands/{name}.md"] = _parser_page(parser, parser.description or "")
        for subcommand, of_subcommand in parser.subcommands.items():
            pages[f"commands/{name}_{subcommand}.md"] = _parser_page(of_subcommand, parser.description or "")
    return pages


def _parser_page(parser: CommandParser, description: str) -> str:
    parts = [f"# {parser.prog}", description.strip(), "## Usage", _code(_usage(parser), "text")]
    for group in parser._action_groups:
        rows = [_option_row(parser, action) for action in group._group_actions if action.dest != "help"]
        if rows:
            parts += [f"## {(group.title or '').capitalize()}", _table(("name", "explanation"), rows)]
    return "\n\n".join(parts) + "\n"


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=80)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    return formatter.format_help().removeprefix("usage: ").strip()


def _option_row(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    formatter = parser._get_formatter()
    default = action.dest.upper() if action.option_strings else action.dest
    value = "" if action.nargs == 0 else formatter._format_args(action, default)
    if not action.option_strings:
        return f"`{value}`", _prose(formatter._expand_help(action))
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    return f"{names} `{value}`" if value else names, _prose(formatter._expand_help(action))


def _train_page() -> str:
    module = importlib.import_module(COMMANDS["train"].module)
    keys = keys_of(Recipe)
    recipes = [(f"[`{name}`](../recipes/{name}.md)", _prose(_purpose(path))) for name, path in _recipes().items()]
    sections = [
        (
            f"[{SECTION_TITLES.get(section, section.capitalize())}](../keys/{section}.md)",
            ", ".join(f"[`{key.name}`](../keys/{section}.md#{key.name})" for key in of_section),
        )
        for section, of_section in _sections(keys).items()
    ]
    parts = [
        "# detr train",
        (module.__doc__ or "").strip(),
        "## Usage",
        _code("detr train [RECIPE] [--KEY VALUE …]\ndetr train --help [SECTION | KEY | RECIPE | all]", "text"),
        "Values are written as in YAML; mappings are set key by key (`--model_config.num_queries 50`).",
        "## Recipes",
        _table(("recipe", "for"), recipes),
        "## Keys",
        _table(("section", "keys"), sections),
    ]
    return "\n\n".join(parts) + "\n"


# Recipes and their keys


def recipe_pages() -> dict[str, str]:
    """The page of every built-in recipe, by its address."""
    return {f"recipes/{name}.md": _recipe_page(name, path) for name, path in _recipes().items()}


def _recipe_page(name: str, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    intro = f"`detr train {name}` reads this file. [All keys](../commands/train.md#keys)"
    return f"# {name}\n\n{intro}\n\n{_code(text.rstrip(), 'yaml')}\n"


def key_pages() -> dict[str, str]:
    """The page of every section of recipe keys, by its address."""
    return {
        f"keys/{section}.md": "\n\n".join(
            [
                f"# {SECTION_TITLES.get(section, section.capitalize())}",
                f"Recipe keys; `detr train --help {section}` prints them in the terminal.",
                *map(_described_key, keys),
            ]
        )
        + "\n"
        for section, keys in _sections(keys_of(Recipe)).items()
    }


def _described_key(key: Key) -> str:
    option = f"--{key.name}.KEY VALUE" if key.is_mapping else f"--{key.name} VALUE"
    facts = [
        f"`{option}`: {_values(key)}",
        f"Default: `{_default(key.default)}`",
        f"Changed on a resume: {_prose(_resume_effect(key))}",
    ]
    if key.describes_new_model:
        facts.append("With `--model` on the command line, the value in the recipe's file is dropped")
    if key.name == "model_config":
        facts.append("Keys of the mapping: those of [DetrConfig](../config.md)")
    return f"## {key.name} {{ #{key.name} }}\n\n{_prose(key.help)}\n\n{_listed(facts)}"


def _values(key: Key) -> str:
    if key.choices is not None:
        names = ", ".join(f"`{choice}`" for choice in key.choices)
        return f"{names} or `none`" if key.default is None else names
    bounds = [] if key.at_least is None else [f"at least {key.at_least:g}"]
    bounds += [] if key.below is None else [f"below {key.below:g}"]
    examples = [", ".join(f"`{example}`" for example in key.examples) + ", …"] if key.examples else []
    return ", ".join([_prose(type_name(key.type)), *bounds, *examples])


def _resume_effect(key: Key) -> str:
    if isinstance(key.resume, Resume):
        return key.resume.value
    return " ".join((inspect.getdoc(key.resume) or "it depends on the values").split())


def _sections(keys: Mapping[str, Key]) -> dict[str, list[Key]]:
    sections: dict[str, list[Key]] = {}
    for key in keys.values():
        sections.setdefault(key.section, []).append(key)
    return sections


def _recipes() -> dict[str, Path]:
    return builtin_recipes()


def _purpose(recipe: Path) -> str:
    return recipe.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


# Config keys


def config_page() -> str:
    """The page of the keys of `config.json` that the docstring of `DetrConfig` describes."""
    described = attributes_of(DetrConfig)
    parts = [
        "# Config keys",
        "The keys of `config.json`, which are arguments of `DetrConfig`. In a recipe they belong to "
        "[`model_config`](keys/model.md#model_config): `--model_config.num_queries 50`.",
    ]
    for field in dataclasses.fields(DetrConfig):
        if field.name not in described:
            continue  # the library's
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        facts = _listed([f"Type: `{kind}`", f"Default: `{_field_default(field)!r}`"])
        parts.append(f"## {field.name} {{ #{field.name} }}\n\n{described[field.name]}\n\n{facts}")
    aliases = ", ".join(f"`{alias}` ({name})" for alias, name in KEY_ALIASES.items())
    parts += [
        "## Keys of Transformers",
        "`id2label`, `label2id` and `num_labels` name and count the classes, as in every model of Transformers. Its "
        f"general names are accepted too: {aliases}.",
    ]
    return "\n\n".join(parts) + "\n"


def attributes_of(documented: type) -> dict[str, str]:
    """The section `Attributes` of a Google-style docstring, as one line of text for each name."""
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)+)", (inspect.getdoc(documented) or "") + "\n", flags=re.M)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1], flags=re.M) if section else []
    return {name: " ".join(text.split()) for name, text in entries}


def _field_default(field: "dataclasses.Field[object]") -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


# API


def api_pages() -> dict[str, str]:
    """The page of every public module, by its address: `mkdocstrings` replaces the directive by the documentation."""
    return {f"api/{name}.md": f"---\ntitle: {name}\n---\n\n::: {name}\n" for name in public_modules()}


def public_modules() -> list[str]:
    """The names of the public modules, the flat files first."""
    found = pkgutil.walk_packages(modeling_detr.__path__, "modeling_detr.")
    names = [module.name for module in found if "._" not in module.name]
    return sorted(names, key=lambda name: (_room(name), name))


def _room(module: str) -> int:
    room = module.split(".")[1]
    return 1 + _ROOMS.index(room) if room in _ROOMS else 0


def api_navigation() -> list[dict[str, list[dict[str, str]]]]:
    """The modules by part of the package, as a part of the navigation."""
    titles = ("models and files of the package", *_ROOMS)
    parts: dict[str, list[dict[str, str]]] = {title: [] for title in titles}
    for name in public_modules():
        parts[titles[_room(name)]].append({name.removeprefix("modeling_detr."): f"api/{name}.md"})
    return [{title: pages} for title, pages in parts.items()]


# Markdown


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {first} | {second} |" for first, second in (head, ("---", "---"), *rows))


def _listed(facts: list[str]) -> str:
    return "\n".join(f"- {fact}" for fact in facts)


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _prose(text: str) -> str:
    """Help text as Markdown: nothing in it but code in backquotes is markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|\[\]])", r"\\\1", part) for part in parts)


def _default(default: object) -> str:
    if default in ([], {}):
        return "empty"
    if isinstance(default, list):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else "none" if default is None else str(default)
