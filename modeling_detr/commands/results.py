"""Where a command writes its results by default, and the line that leads to them."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.output_errors import explained_output


RUNS = Path("runs")


def add_output_dir(parser: CommandParser, command: str, contents: str) -> None:
    """Add the option `--output_dir`; without it, the value is None, and `new_results_folder` finds a folder."""
    default = RUNS / command
    parser.add_argument(
        "--output_dir", type=Path, help=f"folder for {contents} (default: {default}, {default}-2 and so on)"
    )


def new_results_folder(command: str) -> Path:
    """The first of `runs/COMMAND`, `runs/COMMAND-2`, `runs/COMMAND-3`, … that does not exist."""
    folders = itertools.chain([RUNS / command], (RUNS / f"{command}-{number}" for number in itertools.count(2)))
    return next(folder for folder in folders if not folder.exists())


@contextlib.contextmanager
def claimed_results_folder(command: str) -> Iterator[Path]:
    """The same, created at once, so that no command that starts now chooses it too; removed if it stays empty.

    Raises:
        OutputError: It cannot be created.
    """
    while True:
        folder = new_results_folder(command)
        with explained_output(folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def link_to(path: Path) -> str:
    """A line with the address of a file or folder, which terminals open with a click."""
    return f"see {path.absolute().as_uri()}"
