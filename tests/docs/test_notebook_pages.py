"""The pages of the notebooks: figures of an executed copy of the same cells, and formulas without a script."""

import base64
import importlib
import sys
from pathlib import Path

import pytest


pytest.importorskip("mkdocs", reason="needs the extra docs")
nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
v4 = nbformat.v4

ROOT = Path(__file__).parents[2]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def hook(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "docs/site"))
    module = importlib.import_module("hook")
    monkeypatch.setattr(module, "EXECUTED", tmp_path / "executed")
    yield module
    del sys.modules["hook"]


def write(path, source, outputs=()):
    path.parent.mkdir(exist_ok=True)
    cells = [v4.new_markdown_cell("# Title\n\nSee [data](../docs/data.md#splits)."), v4.new_code_cell(source)]
    cells[1].outputs = list(outputs)
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


OUTPUTS = [
    v4.new_output("stream", name="stderr", text="a progress bar"),
    v4.new_output("display_data", {"image/png": base64.b64encode(PNG).decode()}),
]


def test_a_page_shows_the_figures_of_the_executed_copy(hook, tmp_path):
    notebook = write(tmp_path / "notebooks/07_new.ipynb", "draw()")
    write(tmp_path / "executed/07_new.ipynb", "draw()", OUTPUTS)
    page = hook.notebook_page(notebook)
    (figure,) = page.keys() - {"07_new.md", "07_new.ipynb"}
    assert page[figure] == PNG
    assert f"]({figure})" in page["07_new.md"]
    assert "a progress bar" not in page["07_new.md"]
    assert "[data](../data.md#splits)" in page["07_new.md"]
    assert page["07_new.ipynb"] == notebook.read_bytes()


def test_a_page_does_not_show_the_outputs_of_other_cells(hook, tmp_path):
    notebook = write(tmp_path / "notebooks/07_new.ipynb", "draw(all=True)")
    write(tmp_path / "executed/07_new.ipynb", "draw()", OUTPUTS)
    page = hook.notebook_page(notebook)
    assert page.keys() == {"07_new.md", "07_new.ipynb"}
    assert "draw(all=True)" in page["07_new.md"]


def test_formulas_are_mathml(hook):
    content = r'<p>If <span class="arithmatex">\(a &lt; b\)</span>:</p><div class="arithmatex">\[\frac{1}{2}\]</div>'
    shown = hook.on_page_content(content)
    assert shown.count("<math") == 2
    assert "<mfrac>" in shown
    assert "arithmatex" not in shown
