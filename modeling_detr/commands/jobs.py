"""`--jobs`: how many `detr train` processes a command runs at once, and where."""

import argparse
from typing import TYPE_CHECKING

from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import LaunchError


if TYPE_CHECKING:
    from modeling_detr.benchmarks.detr_process import Place


def add_jobs(parser: argparse.ArgumentParser, noun: str) -> None:
    """Adds the option; `noun` is what runs, such as "trials"."""
    parser.add_argument(
        "--jobs",
        default="1",
        metavar="N",
        help=f"{noun} at once, each on a GPU of its own or, without one, on its share of the cores; auto: as many as "
        "there are GPUs (default: 1)",
    )


def check_jobs(text: str) -> None:
    """Checks the value of the option.

    Raises:
        LaunchError: It is neither a number from 1 nor `auto`.
    """
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise LaunchError("--jobs", f"got '{text}'", "expected a number, such as 2, or auto")


def find_places(text: str, noun: str) -> "list[Place]":
    """Where the processes run that run at once; prints it if there are several.

    Args:
        text: The value of the option.
        noun: What runs, such as "trial".

    Raises:
        LaunchError: It is `auto`, and there is no GPU.
    """
    # These import PyTorch, which help and errors do not need
    from modeling_detr.benchmarks.detr_process import Place, places
    from modeling_detr.benchmarks.machine import gpu_names, num_cores

    if text == "1":
        return [Place()]
    gpus = gpu_names()
    if text == "auto" and not gpus:
        remedy = f"give a number; this machine has {counted(num_cores(), 'core')}"
        raise LaunchError("--jobs auto", "PyTorch sees no GPU here", remedy)
    count = len(gpus) if text == "auto" else int(text)
    kind = counted(len(gpus), "GPU") if gpus else counted(num_cores(), "core")
    print(f"at once   {counted(count, noun)} on {kind}", flush=True)
    return places(count, gpus)
