"""Watch a run while it trains, on a page in the browser.

    detr watch runs/mine
    detr watch runs/mine --port 8765 --open

The page shows where the run is and how long it will take, its curves, predictions on the same evaluation images over
time, warnings, and the plan. It updates itself every two seconds. The folder may not exist yet; the command also shows
runs that have ended. It listens on this machine only (127.0.0.1), reads the run's folder and writes nothing, so
stopping it (Ctrl-C) leaves the run alone. To watch a run on another machine, forward the port:

    ssh -L 8765:127.0.0.1:8765 HOST detr watch runs/mine --port 8765
"""

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.errors_detr import RunNotFoundError, printable
from modeling_detr.listening import LAST_PORT
from modeling_detr.watching.server import WatchServer


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C, and returns the exit code."""
    arguments = _parse_arguments(argv)
    with WatchServer(arguments.run, arguments.port) as server:
        print(f"watching {printable(arguments.run)} at {server.url} (Ctrl-C ends)", flush=True)
        if arguments.open and not webbrowser.open(server.url):
            print("no browser found; open the address yourself", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped watching; the run is not affected", flush=True)
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr watch", __doc__)
    parser.add_argument("run", type=Path, help="folder of the run, which may not exist yet")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: 0, one that is free)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    if not 0 <= arguments.port <= LAST_PORT:
        raise ValueError(f"--port: got {arguments.port}, expected 0 to {LAST_PORT}.")
    if arguments.run.exists() and not arguments.run.is_dir():
        raise RunNotFoundError(arguments.run, "is a file", "expected the folder of a run")
    return arguments
