"""The documentation site: it builds without a warning, loads nothing from elsewhere, and describes what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, browser


pytest.importorskip("material", reason="needs the extra docs")

ROOT = Path(__file__).parents[2]
_SEARCH = """
    document.querySelector("[data-md-toggle=search]").click();
    const field = document.querySelector(".md-search__input");
    field.focus();
    field.value = "backbone_learning_rate";
    field.dispatchEvent(new Event("keyup"));
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")  # each broken link is a warning
    return folder


def test_no_page_loads_anything_from_elsewhere(site):
    loaded = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc="?(?:https?:)?//|<link(?![^>]*canonical)[^>]*//""")
    assert [page.name for page in site.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))] == []
    styles = (path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not any(re.search(r"url\([\"']?(?:https?:)?//|@import", style) for style in styles)


def test_the_guides_and_every_page_of_the_repository_are_pages(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "security", "changelog"}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_every_notebook_is_a_page_with_a_link_to_download_it(site):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        assert f'href="{notebook.name}"' in page or f"href={notebook.name}" in page
        assert (site / "notebooks" / notebook.name).read_bytes() == notebook.read_bytes()


def test_the_api_shows_signatures_shapes_and_sources(site):
    page = (site / "api/modeling_detr.loss_detr.html").read_text(encoding="utf-8")
    assert 'id="modeling_detr.loss_detr.HungarianMatcher"' in page
    assert "Source code in" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_search_works_from_a_file_without_network(site, tmp_path):
    with browser(tmp_path) as page:
        page.open(site / "index.html")
        page.evaluate(_SEARCH)
        found = (
            "[...document.querySelectorAll('.md-search-result__link')].some(a => a.href.includes('keys/optimizer'))"
        )
        assert page.wait_for(found, True)
        assert page.problems == []
