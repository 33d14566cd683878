"""A `detr` command in a process of its own, which ends, with a checkpoint, when this one does."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.atomic_output import exits_on_sigterm
from modeling_detr.benchmarks.machine import share_of_cores


_SECONDS_TO_STOP = 120.0
_PACKAGE_PARENT = Path(__file__).parents[2]
# `detr`, which ends with this process even if that is killed (on Linux), with a checkpoint.
_DETR = (
    "import signal, sys\n"
    "if sys.platform == 'linux':\n"
    "    from modeling_detr.data.loader_processes import end_with_parent\n"
    "    end_with_parent(signal.SIGTERM)\n"
    "from modeling_detr.commands import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


@dataclass(frozen=True)
class Place:
    """Where a process runs.

    Attributes:
        slot: Its number among those that run at once, from 0.
        cores: The cores that it may use; None: all.
        gpu: The GPU that it may use, as `CUDA_VISIBLE_DEVICES` names it; None: whatever there is.
    """

    slot: int = 0
    cores: tuple[int, ...] | None = None
    gpu: str | None = None


def places(jobs: int, gpus: Sequence[str]) -> list[Place]:
    """Where processes run that run at once: each on a GPU of its own, or on its share of the cores.

    Args:
        jobs: Processes that run at once. More than there are GPUs share them.
        gpus: The GPUs; empty: processes run on the CPU.
    """
    if jobs == 1:
        return [Place()]
    if gpus:
        return [Place(slot, gpu=gpus[slot % len(gpus)]) for slot in range(jobs)]
    return [Place(slot, (*share_of_cores(slot, jobs),)) for slot in range(jobs)]


def start_detr(arguments: Sequence[str], output: Path, place: Place) -> "subprocess.Popen[bytes]":
    """Starts `detr ARGUMENTS`.

    Args:
        arguments: The command and its arguments.
        output: The file to which what it prints is appended.
        place: Where it runs.
    """
    paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if place.cores is not None:
        environment["OMP_NUM_THREADS"] = str(len(place.cores))
    if place.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place.gpu
    with output.open("ab") as file:
        command = [sys.executable, "-c", _DETR, *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if place.cores is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # it has ended already
            os.sched_setaffinity(process.pid, place.cores)
    return process


def failure_of(command: str, code: int, output: Path) -> str:
    """A sentence about a command that failed: its exit code or the signal that ended it, and its last line."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it printed nothing"
    how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    return f"detr {command} {how}: {last} ({output})"


def stop_all(processes: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Stops processes by SIGTERM, after which `detr train` writes a checkpoint; kills those that do not end."""
    stopped = [*processes]
    for process in stopped:
        process.terminate()
    for process in stopped:
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def stopped_at_the_end(running: "Callable[[], Iterable[subprocess.Popen[bytes]]]") -> Iterator[None]:
    """Stops the processes that run if the block is left early; also by SIGTERM."""

    try:
        with exits_on_sigterm():
            yield
    finally:
        stop_all(running())
