"""The hook of mkdocs (see `mkdocs.yml`): adds the pages made from the code and the notebooks, and turns links between
files into links between pages, and formulas into MathML.

The pages in `docs/` are written to be read on GitHub too, so they link to files outside `docs/`. On the site, a link
to a module leads to its page of the API, and one to a file that the site does not have becomes plain text.
"""

import html
import posixpath
import re
from pathlib import Path

import nbformat
import reference_pages
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor


ROOT = Path(__file__).parents[2]

# Files at the top of the repository that are pages of the site
TOP_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "build/notebooks"  # from `make notebooks`

# Folders that a page of the site describes
FOLDERS = {"configs": "commands/train.md#recipes"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the parts of the navigation that are made from the code."""
    made: dict[str, list[object]] = {
        "COMMANDS": [_titled(page) for page in reference_pages.command_pages()],
        "RECIPES": [_titled(page) for page in reference_pages.recipe_pages()],
        "KEYS": [_titled(page) for page in reference_pages.key_pages()],
        "NOTEBOOKS": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS],
        "API": [*reference_pages.api_navigation()],
    }
    config.nav = _filled(config.nav, made)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages made from the code and those at the top of the repository."""
    pages = {
        **reference_pages.command_pages(),
        **reference_pages.recipe_pages(),
        **reference_pages.key_pages(),
        "config.md": reference_pages.config_page(),
        **reference_pages.api_pages(),
    }
    for name, address in TOP_PAGES.items():
        pages[address] = relinked((ROOT / name).read_text(encoding="utf-8"), "")
    for address, text in pages.items():
        files.append(File.generated(config, address, content=text))
    for path in NOTEBOOKS:
        for address, content in notebook_page(path).items():
            files.append(File.generated(config, f"notebooks/{address}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns the links of a page in `docs/` into links of the site."""
    is_written = (ROOT / "docs" / page.file.src_uri).is_file()
    return relinked(markdown, "docs") if is_written else markdown


def on_page_content(content: str, **_: object) -> str:
    """Turns formulas into MathML, which browsers show without a script."""

    def in_mathml(match: re.Match[str]) -> str:
        element, latex = match.groups()
        formula: str = convert(html.unescape(latex), display="block" if element == "div" else "inline")
        return formula

    formulas = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(formulas, in_mathml, content, flags=re.DOTALL)


def notebook_page(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook, its figures, and the notebook itself, by their names.

    Outputs are those of the executed copy, if that has the same cells.
    """
    notebook = nbformat.read(path, as_version=4)
    executed = EXECUTED / path.name
    if executed.is_file():
        copy = nbformat.read(executed, as_version=4)
        if [cell.source for cell in copy.cells] == [cell.source for cell in notebook.cells]:
            notebook = copy
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, "notebooks", to_top="../")
        elif cell.cell_type == "code":  # stderr has progress bars, and warnings of other libraries
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    names = {"unique_key": path.stem, "output_files_dir": path.stem}
    text, resources = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor]).from_notebook_node(notebook, names)
    figures: dict[str, bytes] = resources["outputs"]
    download = f"[Download this notebook]({path.name}){{ download }}"
    return {f"{path.stem}.md": f"{text}\n\n{download}\n", path.name: path.read_bytes(), **figures}


def relinked(text: str, folder: str, to_top: str = "") -> str:
    """The text of a page with its links to files of the repository as links of the site.

    Args:
        text: The page.
        folder: Folder of the page in the repository.
        to_top: Path from the page to the top of the site.
    """

    def replaced(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        file, _, anchor = target.partition("#")
        address = site_address(posixpath.normpath(posixpath.join(folder, file))) if file else ""
        if address is None:
            return words
        if file:
            address = to_top + address
        return f"{image}[{words}]({address}{f'#{anchor}' if anchor else ''})"

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)  # every second one is a block of code
    parts[::2] = (re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)\s]+)\)", replaced, part) for part in parts[::2])
    return "".join(parts)


def site_address(file: str) -> str | None:
    """The page of a file of the repository, or None if the site has none."""
    if file in TOP_PAGES:
        return TOP_PAGES[file]
    if file in FOLDERS:
        return FOLDERS[file]
    if file.startswith("docs/") and (ROOT / file).is_file():
        return file.removeprefix("docs/")
    if file.startswith("notebooks/") and (ROOT / file) in NOTEBOOKS:
        return str(Path(file).with_suffix(".md"))
    if file.startswith("modeling_detr/") and file.endswith(".py"):
        return f"api/{file.removesuffix('.py').replace('/', '.')}.md"
    return None


def _titled(address: str) -> dict[str, str]:
    name = Path(address).stem
    title = {"commands": f"detr {name.replace('_', ' ')}", "keys": reference_pages.SECTION_TITLES.get(name, name)}
    return {title.get(Path(address).parent.name, name): address}


def _filled(entries: object, made: dict[str, list[object]]) -> object:
    """The navigation with each placeholder replaced by the pages made from the code."""
    if isinstance(entries, list):
        filled = [_filled(entry, made) for entry in entries]
        return [page for entry in filled for page in (entry if isinstance(entry, list) else [entry])]
    if isinstance(entries, dict):
        return {title: _filled(entry, made) for title, entry in entries.items()}
    return made.get(entries, entries) if isinstance(entries, str) else entries
