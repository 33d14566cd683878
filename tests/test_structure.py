"""The shape of the package: imports run one way, files and functions stay short, and messages are plain English."""

import ast
import importlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_detr"
MODULES = sorted(PACKAGE.rglob("*.py"))
HUB_FILES = sorted(PACKAGE.glob("*_detr.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]

HUB_LINES, WORKSHOP_LINES, FUNCTION_LINES = 750, 600, 60

# Phrases that a native speaker has to read twice, and what to write instead.
STIFF = {
    r"; wanted|, wanted |\bwanted (one|a|at|an)\b": "expected …",
    r"\bhas not (a|an|the|its|what|enough)\b": "has no …, does not have …",
    r"\bas you say|\bas it says|\bwhat .{1,20} says\b": "as configured, the value of …",
    r"\bmeans nothing|\bbegins anew|\bgoes on with\b|\bgoes on where\b": "has no effect; starts over; continues",
    r"\bof that name\b|\bof its own accord\b": "name it",
    r"\bfor who\b|\bwho (has|have|wants|wishes) not\b": "for those who …",
    r"\bthere is none (before|of)\b|\bis there already\b": "no … exists; already exists",
    r"\btells (whether|how|which|that|what)\b|\bis told (by|before|after|that|whether)\b": "reports, returns whether",
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def length(function: ast.FunctionDef) -> int:
    """The number of a function's lines, without its docstring."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_module_imports_itself_by_way_of_others():
    graph = grimp.build_graph("modeling_detr", cache_dir=None)  # with the imports of functions and of TYPE_CHECKING
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


@pytest.mark.parametrize("path", HUB_FILES, ids=relative)
def test_hub_files_import_from_their_siblings_only(path):
    """Transformers copies a hub file's siblings along only if they are imported as `from .sibling import name`."""
    siblings = {sibling.stem for sibling in HUB_FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "modeling_detr"]
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "modeling_detr" or node.level == 1, ast.unparse(node)
            assert node.level == 0 or (node.level == 1 and node.module in siblings), ast.unparse(node)


def test_files_and_functions_are_short_enough_to_read():
    long = [
        f"{relative(path)}: {count} lines"
        for path in MODULES
        if (count := len(path.read_text().splitlines())) > (HUB_LINES if path in HUB_FILES else WORKSHOP_LINES)
    ]
    long += [
        f"{relative(path)}: {function.name}, {length(function)} lines"
        for path in MODULES
        for function in functions(path)
        if length(function) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_no_file_is_a_drawer():
    assert not {path.stem for path in MODULES} & {"utils", "misc", "common", "helpers"}


def test_every_module_is_reached_from_a_test():
    graph = grimp.build_graph("modeling_detr", cache_dir=None)
    texts = "\n".join(path.read_text() for path in TESTS)
    reached: set[str] = set()
    for name in sorted(graph.modules):
        room, _, module = name.rpartition(".")
        if re.search(rf"{name}\b|from {room} import .*\b{module}\b", texts):
            reached |= {name, *graph.find_upstream_modules(name)}
    assert not graph.modules - reached


def test_tests_use_public_names_only():
    private = {
        name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        for name in [getattr(node, "name", None) or getattr(node, "attr", None) or getattr(node, "id", None)]
        if isinstance(node, ast.FunctionDef | ast.ClassDef) or isinstance(getattr(node, "ctx", None), ast.Store)
        if isinstance(name, str) and re.match(r"_[A-Za-z]", name)
    }
    used = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            used += [f"{relative(path)}:{node.lineno}: {name}" for name in names if name in private]
    assert not used, "\n".join(used)


def test_what_people_read_is_plain_english():
    stiff = [
        f"{relative(path)}:{number}: {line.strip()} (better: {better})"
        for path in [*MODULES, *TEXTS]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        for pattern, better in STIFF.items()
        if re.search(pattern, line)
    ]
    assert not stiff, "\n".join(stiff)


def test_contributing_names_the_tables_of_each_kind():
    rows = re.findall(
        r"^\| a?n? ?[\w ]+\| .*modeling_detr.*$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE
    )
    tables = [
        (name, path)
        for row in rows
        for name in re.findall(r"`([A-Z_]{4,})`", row)
        for path in re.findall(r"`(modeling_detr/[\w/]+)(?:\.py|/)`", row)[-1:]
    ]
    assert len(rows) == 18
    assert len(tables) == 16
    for name, path in tables:
        assert isinstance(getattr(importlib.import_module(path.replace("/", ".")), name), dict), f"{name} in {path}"
