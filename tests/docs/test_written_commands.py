"""Each `detr` command in the documentation is one that the command accepts, option by option."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from modeling_detr.commands import COMMANDS
from modeling_detr.commands.launching import take_launch
from modeling_detr.training.familiar_keys import FAMILIAR_KEYS
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_keys import keys_of
from modeling_detr.training.recipe_parsing import parse_recipe


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_in(text):
    """The complete commands, without comments, of code blocks and of code within sentences."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    written = [*re.findall(r"^detr .+", blocks, flags=re.MULTILINE), *re.findall(r"`(detr [^`]+)`", sentences)]
    return [command for command in written if "…" not in command and "[" not in command]


COMMANDS_BY_PAGE = [
    (page.stem, command) for page in PAGES for command in commands_in(page.read_text(encoding="utf-8"))
]


def test_the_pages_have_commands():
    assert {"README", "get_started", "troubleshooting", "from_transformers"} <= {page for page, _ in COMMANDS_BY_PAGE}


@pytest.mark.parametrize(("page", "command"), COMMANDS_BY_PAGE)
def test_the_command_is_accepted(page, command):
    _, name, *arguments = shlex.split(command, comments=True)
    if name == "--version":
        return
    if name == "train":
        _, arguments = take_launch(arguments)
        if arguments and not {"--help", "--replay"} & {*arguments}:
            parse_recipe(arguments)
        return
    if len(arguments) > 1 and not arguments[0].startswith("-"):  # else a sentence names the command or its option
        importlib.import_module(COMMANDS[name].module).build_parser().parse_args(arguments)


def test_arguments_of_trainer_lead_to_the_keys_that_the_page_names():
    page = (ROOT / "docs/from_transformers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`(?:,.*)? \|$", page.partition("## Arguments of Trainer")[2], flags=re.M)
    assert len(rows) > 15
    for argument, key in rows:
        assert key in keys_of(Recipe)
        assert FAMILIAR_KEYS.get(argument, argument) == key
