"""The page of a run that is being watched; `watch.js` keeps it up to date."""

from functools import cache
from pathlib import Path

from modeling_detr.pages import Curves, Live, Page, Section
from modeling_detr.visualization.curve_series import DEFAULT_SMOOTHING


def watch_page(run_dir: Path) -> Page:
    """The page, without anything of the run but its name: its script fetches the rest."""
    empty = Curves(panels=(), runs={}, axes=(), axis="steps", smoothing=DEFAULT_SMOOTHING)
    return Page(
        run_dir.resolve().name,
        [
            Section("Warnings", [Live("warnings")]),
            Section("Curves", [empty]),
            Section("Predictions", [Live("pictures")]),
            Section("Plan", [Live("plan")]),
            Section("Recipe", [Live("recipe")], folded=True),
        ],
        facts=[("folder", run_dir.resolve())],
        live_script=_script(),
    )


@cache
def _script() -> str:
    return Path(__file__).with_name("watch.js").read_text(encoding="utf-8")
