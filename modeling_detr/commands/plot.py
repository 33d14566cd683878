"""Plot the training curves of one or more runs.

    detr plot runs/first runs/second --output curves.png

The plot shows loss terms, class error and AP over the epochs, in one colour per run. It also reads log.txt, the log of
the original DETR.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backend_bases import FigureCanvasBase

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.errors_detr import OutputError, RunNotFoundError
from modeling_detr.output_errors import check_file
from modeling_detr.training.metric_logger import read_log, read_original_log
from modeling_detr.training.run_folder import LOG
from modeling_detr.visualization import plot_curves


ORIGINAL_LOG = "log.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = build_parser().parse_args(argv)
    _check_suffix(arguments.output)
    logs = [_log(run) for run in arguments.runs]
    output = arguments.output or logs[0].with_name("curves.png")
    check_file(output)
    print(plot_curves({name: _entries(log) for name, log in zip(run_names(logs), logs, strict=True)}, output))
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr plot", __doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="run",
        help=f"folder of a run, with {LOG} or the original's {ORIGINAL_LOG}, or the log itself",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="image file; its suffix sets the format (default: curves.png in the folder of the first run)",
    )
    return parser


def _check_suffix(output: Path | None) -> None:
    suffixes = sorted(FigureCanvasBase.get_supported_filetypes())
    if output is not None and output.suffix.removeprefix(".").lower() not in suffixes:
        raise OutputError(output, "unsupported image format", f"expected one of .{', .'.join(suffixes)}")


def _log(run: Path) -> Path:
    """The log of a run's folder, or `run` itself if it is a file."""
    for log in (run / LOG, run / ORIGINAL_LOG) if run.is_dir() else (run,):
        if log.is_file():
            return log
    problem = f"contains no {LOG} or {ORIGINAL_LOG}" if run.is_dir() else "no such file or folder"
    raise RunNotFoundError(run, problem, f"expected the folder of a run, or its {LOG} or {ORIGINAL_LOG}")


def _entries(log: Path) -> list[dict[str, Any]]:
    """The entries of a log with at least one finished epoch.

    Raises:
        RunNotFoundError: The file is not a log, or no epoch has finished.
    """
    entries = read_original_log(log) if log.name == ORIGINAL_LOG else read_log(log)
    is_log = bool(entries) and all(isinstance(entry, dict) for entry in entries)
    if not is_log and log.stat().st_size:
        raise RunNotFoundError(log, "not a log", f"expected {LOG} or {ORIGINAL_LOG}")
    if not any(entry.get("kind") == "epoch" for entry in entries):
        raise RunNotFoundError(log.parent, "no finished epoch yet", "plot the run after its first epoch")
    return entries


def run_names(logs: Sequence[Path]) -> list[str]:
    """A name for each run: its folder, with as many parent folders as needed to make the names unique."""
    folders = [log.resolve().parent for log in logs]
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]
