"""The page at `/`: an image is dropped on it, and shown with its boxes."""

from pathlib import Path

from modeling_detr.pages import Live, Page, Section


def serve_page() -> str:
    """The page as HTML, without anything of the model: its script asks the server, and loads nothing else."""
    page = Page(
        "Find objects",
        [Section("Image", [Live("image")]), Section("Found", [Live("found")])],
        live_script=Path(__file__).with_name("serve.js").read_text(encoding="utf-8"),
    )
    return page.to_html()
