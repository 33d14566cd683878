"""Plot the training curves of one or more runs.

    detr plot runs/first runs/second --output curves.html
    detr plot runs/mine --x minutes --smooth 0.9

The curves are losses, learning rates, gradient norm, AP, and the share of the time spent waiting for data, in one
colour per run. A picture shows them at once. On a page (.html), hovering shows values, runs can be switched off, and
the axis and the smoothing can be chosen; it is one file that needs no network. The command also reads log.txt, the log
of the original DETR, which has one entry per epoch, and the logs of runs that are still training; `detr watch` follows
one of those.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from matplotlib.backend_bases import FigureCanvasBase

from modeling_detr.atomic_output import replace_text
from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.commands.results import link_to
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import OutputError, RunNotFoundError
from modeling_detr.output_errors import check_file
from modeling_detr.pages import Page, Section
from modeling_detr.provenance import command_line, provenance
from modeling_detr.training.metric_logger import read_log, read_original_log
from modeling_detr.training.run_folder import LOG
from modeling_detr.visualization import curve_block, plot_curves
from modeling_detr.visualization.curve_series import DEFAULT_SMOOTHING, Axis


ORIGINAL_LOG = "log.txt"
OPTION_NAMES = {"axis": "x"}
_PAGE = ".html"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse_arguments(argv)
    logs = [_log(run) for run in arguments.runs]
    output = arguments.output or logs[0].with_name("curves.png")
    check_file(output)
    runs = {name: _entries(log) for name, log in zip(run_names(logs), logs, strict=True)}
    if output.suffix.lower() == _PAGE:
        command = command_line("detr plot", sys.argv[1:] if argv is None else argv)
        replace_text(output, _page(runs, arguments.x, arguments.smooth, command).to_html())
        print(link_to(output))
    else:
        print(plot_curves(runs, output, arguments.x, arguments.smooth))
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
        help="image or .html page; its suffix sets the format (default: curves.png in the folder of the first run)",
    )
    parser.add_argument(
        "--x", choices=get_args(Axis), help="what to plot over (default: steps, or epochs if a log has no steps)"
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=DEFAULT_SMOOTHING,
        metavar="WEIGHT",
        help="weight of the past in the smoothed lines, from 0 (no smoothing) to less than 1; the values themselves "
        "are drawn behind them (default: %(default)s)",
    )
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    if not 0 <= arguments.smooth < 1:
        raise ValueError(f"--smooth: got {arguments.smooth:g}, expected at least 0 and less than 1.")
    suffixes = sorted([*FigureCanvasBase.get_supported_filetypes(), _PAGE.removeprefix(".")])
    output = arguments.output
    if output is not None and output.suffix.removeprefix(".").lower() not in suffixes:
        raise OutputError(output, "unsupported image format", f"expected one of .{', .'.join(suffixes)}")
    return arguments


def _page(runs: Mapping[str, Sequence[Mapping[str, Any]]], axis: Axis | None, smoothing: float, command: str) -> Page:
    title = (
        f"Training curves of {next(iter(runs))}"
        if len(runs) == 1
        else f"Training curves of {counted(len(runs), 'run')}"
    )
    curves = curve_block(runs, axis, smoothing)
    return Page(title, [Section("Curves", [curves])], facts=provenance(command))


def _log(run: Path) -> Path:
    """The log of a run's folder, or `run` itself if it is a file."""
    for log in (run / LOG, run / ORIGINAL_LOG) if run.is_dir() else (run,):
        if log.is_file():
            return log
    problem = f"contains no {LOG} or {ORIGINAL_LOG}" if run.is_dir() else "no such file or folder"
    raise RunNotFoundError(run, problem, f"expected the folder of a run, or its {LOG} or {ORIGINAL_LOG}")


def _entries(log: Path) -> list[dict[str, Any]]:
    """The entries of a log, of which at least one is of a step or an epoch.

    Raises:
        RunNotFoundError: The file is not a log, or has no such entry yet.
    """
    entries = read_original_log(log) if log.name == ORIGINAL_LOG else read_log(log)
    is_log = bool(entries) and all(isinstance(entry, dict) for entry in entries)
    if not is_log and log.stat().st_size:
        raise RunNotFoundError(log, "not a log", f"expected {LOG} or {ORIGINAL_LOG}")
    if not any(entry.get("kind") in ("step", "epoch") for entry in entries):
        raise RunNotFoundError(log.parent, "no log entries yet", "plot the run after its first steps")
    return entries


def run_names(logs: Sequence[Path]) -> list[str]:
    """A name for each run: its folder, with as many parent folders as needed to make the names unique."""
    folders = [log.resolve().parent for log in logs]
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]
