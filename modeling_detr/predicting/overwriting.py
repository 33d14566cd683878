"""Check that the results of a run do not take the place of its inputs, before anything is written."""

from collections.abc import Iterable
from pathlib import Path

from modeling_detr.errors_detr import OutputError


def check_inputs_are_kept(folder: Path, written: Iterable[str], sources: Iterable[str]) -> None:
    """Checks that no file that will be written is an input, also by way of a link.

    Args:
        folder: The folder of the results.
        written: Names of files that will be written to it.
        sources: Paths of the inputs; URLs and the like are ignored.

    Raises:
        OutputError: An input would be overwritten.
    """
    places = {}
    for name in written:
        if (identity := _identity(folder / name)) is not None:
            places[identity] = folder / name
    if not places:  # as in a new folder
        return
    for source in sources:
        if (identity := _identity(source)) in places:
            raise OutputError(places[identity], f"would overwrite the input {source}", "choose another --output_dir")


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from all others; None: there is no such file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # a path may be too long, or a URL
        return None
    return status.st_dev, status.st_ino
