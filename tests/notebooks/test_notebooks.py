"""The notebooks in the repository: each .ipynb is its .py, without outputs. `make notebooks-reduced` runs them."""

import re
from pathlib import Path

import pytest


jupytext = pytest.importorskip("jupytext", reason="needs the extra notebooks")
nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))


def cells_of(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_has_its_source_and_a_row_in_the_docs():
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in SOURCES]
    linked = re.findall(r"\]\(\.\./(notebooks/.+?)\)", (ROOT / "docs/notebooks.md").read_text(encoding="utf-8"))
    assert linked == [str(path.relative_to(ROOT)) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_its_source_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    source = jupytext.read(path.with_suffix(".py"))
    assert cells_of(notebook) == cells_of(source), "run: jupytext --sync notebooks/*.ipynb"
    for cell in notebook.cells:
        assert cell.metadata.keys() <= {"lines_to_next_cell"}  # jupytext's: ruff wants two lines before a function
        if cell.cell_type == "code":
            outputs = (cell.outputs, cell.execution_count)
            assert outputs == ([], None), "run: jupyter nbconvert --clear-output --inplace notebooks/*.ipynb"
    assert notebook.metadata.keys() - {"jupytext"} == {"kernelspec"}  # not the version and paths of one machine
    assert notebook.metadata.kernelspec.name == "python3"


def test_all_notebooks_install_the_package_in_the_same_way():
    notebooks = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    first = {next(cell.source for cell in notebook.cells if cell.cell_type == "code") for notebook in notebooks}
    assert len(first) == 1
    assert "find_spec" in first.pop()
