"""Draw the curves of one training run, or of several in one picture.

    detr plot runs/first runs/second --output curves.png

The picture shows loss terms, class error and AP over the epochs, one colour a run. A run of the original,
whose folder holds its log.txt and no log.jsonl, is drawn beside ours.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_detr.training.metric_logger import read_log, read_original_log
from modeling_detr.training.run_folder import LOG
from modeling_detr.visualization import plot_curves


ORIGINAL_LOG = "log.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="run",
        help=f"a run's folder, ours or the original's, or its {LOG} or {ORIGINAL_LOG}",
    )
    parser.add_argument(
        "--output", type=Path, help="the picture; its suffix is its format (default: curves.png in the first run)"
    )
    arguments = parser.parse_args(argv)
    logs = [_log(run) for run in arguments.runs]
    output = arguments.output or logs[0].with_name("curves.png")
    print(plot_curves({name: _entries(log) for name, log in zip(run_names(logs), logs, strict=True)}, output))
    return 0


def _log(run: Path) -> Path:
    """The log that a run's folder holds, ours before the original's; or the file itself."""
    for log in (run / LOG, run / ORIGINAL_LOG) if run.is_dir() else (run,):
        if log.is_file():
            return log
    raise FileNotFoundError(
        f"{run}: no such run; wanted a folder with {LOG}, or with the original's {ORIGINAL_LOG}, or that file itself."
    )


def _entries(log: Path) -> list[dict[str, Any]]:
    return read_original_log(log) if log.name == ORIGINAL_LOG else read_log(log)


def run_names(logs: Sequence[Path]) -> list[str]:
    """What each run is called: its folder, with as many of the folders above as tell them apart."""
    folders = [log.resolve().parent for log in logs]
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]
