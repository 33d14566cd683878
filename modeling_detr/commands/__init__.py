"""The console command `detr`: one module per command, listed in `COMMANDS`. Plug-ins can add more."""

import importlib
import importlib.metadata
import os
import platform
import re
import select
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from modeling_detr import __version__
from modeling_detr.commands.terminal import printable_output
from modeling_detr.errors_detr import RAISED_ON, DetrError, PluginError, did_you_mean, printable, python_argument
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import fix_of
from modeling_detr.remote_addresses import without_credentials


PLUGINS = "modeling_detr.plugins"  # entry-point group of the packages that add to public tables


class Command(NamedTuple):
    """A command of `detr`.

    Attributes:
        summary: One line for `detr --help`.
        module: Name of the module, imported only to run the command. It must have `main(arguments) -> exit code or
            None`, and should have `build_parser() -> CommandParser` for its page of the documentation; if options of
            the command are named differently from the library's arguments, `OPTION_NAMES` maps arguments to options.
        has_subcommands: Whether the first argument is a sub-command.
    """

    summary: str
    module: str
    has_subcommands: bool = False


COMMANDS = {
    "train": Command("train a model from a recipe", "modeling_detr.commands.train"),
    "tune": Command("search for better values of a recipe's keys", "modeling_detr.commands.tune"),
    "evaluate": Command("compute AP and panoptic quality of a model on a dataset", "modeling_detr.commands.evaluate"),
    "compare": Command("compare models on the same images", "modeling_detr.commands.compare"),
    "predict": Command("detect objects in images and draw them", "modeling_detr.commands.predict"),
    "serve": Command("answer over HTTP: images in, objects as JSON out", "modeling_detr.commands.serve"),
    "explain": Command("show which parts of an image a detection depends on", "modeling_detr.commands.explain"),
    "slots": Command("show what each query slot predicts over a dataset", "modeling_detr.commands.slots"),
    "convert": Command(
        "convert models from and to the original DETR and Transformers", "modeling_detr.commands.convert"
    ),
    "export": Command("export a model to ONNX, OpenVINO or torch.export", "modeling_detr.commands.export"),
    "data": Command("check, convert or show a dataset", "modeling_detr.commands.data", has_subcommands=True),
    "benchmark": Command(
        "measure how fast a recipe learns, and speed", "modeling_detr.commands.benchmark", has_subcommands=True
    ),
    "watch": Command("watch a run while it trains, in the browser", "modeling_detr.commands.watch"),
    "plot": Command("plot the training curves of one or more runs", "modeling_detr.commands.plot"),
}
_FAMILIAR_COMMANDS = {  # commands of other tools
    "detect": "predict",
    "infer": "predict",
    "segment": "predict",
    "val": "evaluate",
    "test": "evaluate",
    "finetune": "train finetune",
    "check": "data check",
    "show": "data show",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `detr COMMAND …` and returns its exit code: 2, after one line on stderr, for an error the user can fix.

    With `DETR_TRACEBACK=1` in the environment, errors keep their traceback.

    Args:
        argv: The arguments; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, *rest = arguments or ["--help"]
    if name == "--version":
        print(_versions())
        return 0
    if name not in ("-h", "--help"):
        return run_command(name, rest)
    return (
        _report_errors("detr", load_plugins) or _report_errors("detr", lambda: print(_usage())) or 2 * (not arguments)
    )


def run_command(name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs one command, for `detr` and for the scripts; see `main`.

    Args:
        name: Name of the command.
        arguments: What follows the name; None: the arguments of the process.
    """
    code = _report_errors("detr", load_plugins)
    if code != 0:
        return code
    if name not in COMMANDS:
        meant = _FAMILIAR_COMMANDS.get(name)
        remedy = f"did you mean '{meant}'?" if meant else did_you_mean(name, COMMANDS)
        print(f"detr: unknown command '{printable(name)}'; {remedy}", file=sys.stderr)
        return 2
    module = COMMANDS[name].module
    argv = list(sys.argv[1:] if arguments is None else arguments)
    for place, (before, text) in enumerate(zip(["", *argv], list(argv), strict=False)):
        if name != "predict" or text.startswith("--") or before in ("--data", "--images"):  # its inputs may be cameras
            argv[place] = without_credentials(text)

    def run() -> int | None:
        with _interrupts_end(program):
            command = importlib.import_module(module)
        code: int | None = command.main(argv)
        return code

    def format_setting(setting: str, value: object) -> str:
        names: Mapping[str, str] = getattr(importlib.import_module(module), "OPTION_NAMES", {})
        return as_option(names.get(setting, setting), value)

    has_subcommand = COMMANDS[name].has_subcommands and argv and not argv[0].startswith("-")
    program = f"detr {name} {argv[0]}" if has_subcommand else f"detr {name}"
    return _report_errors(program, run, format_setting)


@contextmanager
def _interrupts_end(program: str) -> Iterator[None]:
    """Let Ctrl-C end the process at once: within an import, it can turn into any error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        os.write(2, f"{printable(program)}: interrupted\n".encode())
        os._exit(130)

    previous = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def load_plugins() -> None:
    """Imports the entry points of the group `modeling_detr.plugins`, which may add to any public table.

    Raises:
        PluginError: An entry point cannot be imported.
    """
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        try:
            entry.load()
        except Exception as error:  # a plug-in may raise anything
            package = entry.dist.name if entry.dist is not None else entry.value
            raise PluginError(
                f"plug-in '{entry.name}'",
                f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})",
                f"fix or uninstall the package {package}",
            ) from error


def _report_errors(
    program: str, run: Callable[[], int | None], format_setting: Callable[[str, object], str] = python_argument
) -> int:
    """Returns the exit code of `run`. An error that the user can fix is printed as one line."""
    with printable_output():
        return _exit_code(program, run, format_setting)


def _exit_code(program: str, run: Callable[[], int | None], format_setting: Callable[[str, object], str]) -> int:
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except (DetrError, ValueError, OSError, ArithmeticError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads_stdout():
            return 128 + signal.SIGPIPE
        if os.environ.get("DETR_TRACEBACK") == "1" or not _is_for_the_user(error):
            raise
        message = error.to_text(format_setting) if isinstance(error, DetrError) else _message_of(error)
        line = f"{program}: {printable(_without_worker_traceback(message))}{_rank_note(error)}"
        print(fitted(line, indent=2, stream=sys.stderr), file=sys.stderr)
        return 2


def _rank_note(error: Exception) -> str:
    """On which rank an error was raised, if it was another one than this; see `distributed.raise_in_all`."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(RAISED_ON)]
    return f" ({notes[0]})" if notes else ""


def _message_of(error: Exception) -> str:
    """The message of an error of Python or the system, which Python starts with its number."""
    if not isinstance(error, OSError) or error.errno is None or not error.strerror:
        return str(error)
    where = "the output" if error.filename is None else str(error.filename)
    return "; ".join(filter(None, [f"{where}: {error.strerror}", fix_of(error)])) + "."


def _nobody_reads_stdout() -> bool:
    """Whether stdout is a closed pipe, as in `detr data check DATA | head`; what is left to print is then dropped."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    if not stdout.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of Python
    return True


def as_option(name: str, value: object) -> str:
    """A setting as a command-line option: `--data_format coco`."""
    if value is True:
        return f"--{name}"
    if value is None or value is False:
        return f"--{name} {str(value).lower()}"
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"--{name} {shlex.quote(text)}"


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message is enough without a traceback: a file or network error, or one that this package raised."""
    if isinstance(error, DetrError | OSError):
        return True
    if _from_loader_worker(str(error)):
        raised_in = re.findall(r'^ *File "(.+?)", line', str(error), flags=re.MULTILINE)[-1]
    else:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(__file__).parents[1])


def _from_loader_worker(message: str) -> re.Match[str] | None:
    """Matches an error from a data loader process, which PyTorch re-raises with the text of its traceback."""
    return re.match(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback", message)


def _without_worker_traceback(message: str) -> str:
    caught = _from_loader_worker(message)
    if caught is None:
        return message
    # the last line of the traceback is the error; its message may span further lines
    original = re.split(rf"^(?:\w+\.)*{caught[1]}: ", message, flags=re.MULTILINE)[-1]
    return " ".join(original.split())


def _versions() -> str:
    """The versions to quote in a bug report."""
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "timm")]
    return f"detr {__version__} ({', '.join([*parts, f'Python {platform.python_version()}'])})"


def _usage() -> str:
    width = 2 + max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    more = ["options of a command: detr COMMAND --help", "versions:             detr --version"]
    return "\n".join(["usage: detr COMMAND …", "", *lines, "", *more])
