"""The pages that are made from the code have each command, option, recipe key, config key and module."""

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path

import pytest

from modeling_detr import DetrConfig
from modeling_detr.commands import COMMANDS
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_keys import Resume, key, keys_of
from modeling_detr.training.recipe_parsing import builtin_recipes


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "docs/site"))
    try:
        yield importlib.import_module("reference_pages")
    finally:
        sys.path.remove(str(ROOT / "docs/site"))


def test_each_command_and_sub_command_has_a_page_with_its_options(pages):
    made = pages.command_pages()
    assert len(made) >= len(COMMANDS)
    for name, command in COMMANDS.items():
        if name == "train":
            continue
        parser = importlib.import_module(command.module).build_parser()
        for address, one in {f"commands/{name}.md": parser, **subcommands(name, parser)}.items():
            options = [option for option in one.format_help().split() if option.startswith("[--")]
            for option in options if address in made else []:
                assert f"`{option.strip('[]')}`" in made[address], (address, option)


def subcommands(name, parser):
    return {f"commands/{name}_{subcommand}.md": one for subcommand, one in parser.subcommands.items()}


def test_an_option_that_is_added_to_a_command_is_on_its_page(pages, monkeypatch):
    plot = importlib.import_module(COMMANDS["plot"].module)
    parser = plot.build_parser()
    parser.add_argument("--my_option", help="adds 100% *more* (default: %(default)s)".replace("100%", "100%%"))
    monkeypatch.setattr(plot, "build_parser", lambda: parser)
    assert (
        r"`--my_option` `MY_OPTION` | adds 100% \*more\* (default: None)" in pages.command_pages()["commands/plot.md"]
    )


def test_each_recipe_key_is_described_once_with_default_bounds_and_effect_on_a_resume(pages):
    text = "\n".join(pages.key_pages().values())
    for name, declared in keys_of(Recipe).items():
        assert text.count(f"## {name} {{ #{name} }}") == 1
        (block,) = [block for block in text.split("\n## ") if block.startswith(f"{name} {{")]
        assert "Default: `" in block
        assert not isinstance(declared.resume, Resume) or declared.resume.value in block
        assert declared.at_least is None or f"at least {declared.at_least:g}" in block
        assert all(f"`{choice}`" in block for choice in declared.choices or ())
        assert f"](../keys/{declared.section}.md#{name})" in pages.command_pages()["commands/train.md"]


def test_a_key_that_is_added_to_the_recipe_is_on_its_page(pages, monkeypatch):
    added = dataclasses.make_dataclass(
        "Added", [("my_key", int, key(3, "Does it.", at_least=2))], bases=(Recipe,), frozen=True
    )
    monkeypatch.setattr(pages, "Recipe", added)
    assert "- `--my_key VALUE`: an integer, at least 2\n- Default: `3`" in "\n".join(pages.key_pages().values())


def test_each_key_of_the_config_is_described_with_its_default(pages):
    own = {name for name in inspect.get_annotations(DetrConfig) if name != "is_encoder_decoder"}
    described = pages.attributes_of(DetrConfig)
    assert own == described.keys()
    page = pages.config_page()
    for name in own:
        assert f"## {name} {{ #{name} }}\n\n{described[name]}\n\n- Type: `" in page
    assert "## num_queries { #num_queries }" in page
    assert "Default: `100`" in page


def test_each_recipe_and_each_module_has_a_page(pages):
    assert pages.recipe_pages().keys() == {f"recipes/{name}.md" for name in builtin_recipes()}
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "modeling_detr").rglob("*.py")
    }
    assert {
        f"api/{name}.md" for name in modules - {"modeling_detr", "modeling_detr.__main__"}
    } == pages.api_pages().keys()
    shown = [
        next(iter(page.values())) for part in pages.api_navigation() for of_part in part.values() for page in of_part
    ]
    assert sorted(shown) == sorted(pages.api_pages())
