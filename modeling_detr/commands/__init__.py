"""The console command `detr`: one module a command, each telling one story."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path


_COMMANDS = {
    "train": "train a detector as a recipe says",
    "evaluate": "measure COCO AP of a model on a dataset",
    "predict": "draw the detections of a model on images",
    "convert": "turn a checkpoint of one kind into one of another",
    "data": "check, convert or show a dataset",
    "plot": "draw the curves of one run or compare several",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `detr COMMAND …` and returns its exit code; a user's error is one line on stderr and the code 2.

    With `DETR_TRACEBACK=1` in the environment, errors show where they come from.

    Args:
        argv: The arguments; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in _COMMANDS:
        print(f"detr: there is no command '{name}'; wanted one of {', '.join(_COMMANDS)}.", file=sys.stderr)
        return 2
    return run_command(name, rest)


def run_command(name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs one command, for `detr` and for the scripts; see `main`.

    Args:
        name: Name of the command.
        arguments: What follows its name; None: the arguments of the process.
    """
    try:
        module = importlib.import_module(f"modeling_detr.commands.{name}")
        code: int | None = module.main(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print(f"detr {name}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("DETR_TRACEBACK") == "1" or not _is_for_the_user(error):
            raise
        print(f"detr {name}: {_message(error)}", file=sys.stderr)
        return 2
    return code or 0


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message is enough: something with a file or the network, or an error that this package raised."""
    if isinstance(error, OSError):
        return True
    if _from_loader_worker(error):
        raised_in = re.findall(r'^ *File "(.+?)", line', str(error), flags=re.MULTILINE)[-1]
    else:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(__file__).parents[1])


def _from_loader_worker(error: Exception) -> re.Match[str] | None:
    """An error that a loader process had comes out with the text of its traceback as message."""
    return re.match(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback", str(error))


def _message(error: Exception) -> str:
    """What went wrong, without the traceback that PyTorch puts around an error of a loader process."""
    caught = _from_loader_worker(error)
    if caught is None:
        return str(error)
    # The last line of the traceback is the error, and the message may go on over further lines.
    said = re.split(rf"^(?:\w+\.)*{caught[1]}: ", str(error), flags=re.MULTILINE)[-1]
    return " ".join(said.split())


def _usage() -> str:
    lines = [f"  {name:<10}{what}" for name, what in _COMMANDS.items()]
    return "\n".join(
        ["usage: detr COMMAND …", "", *lines, "", "detr COMMAND --help explains a command and its options."]
    )
