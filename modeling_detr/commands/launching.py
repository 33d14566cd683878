"""Starts a command in several processes: one for each GPU, or several on the CPU, on one machine or more.

PyTorch's launcher (`torch.distributed.launcher`) does the work, as it does for torchrun and `accelerate launch`.
Unlike them, a command that starts itself keeps its exit code, needs no free port to be named, and is refused if there
are fewer GPUs than it asks for.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from modeling_detr.errors_detr import LaunchError


_LIMITS_ITS_THREADS = ("train",)  # on a CPU, where it leaves cores to its loaders
_SECONDS_TO_SPEAK = 2.0
_PORT = 29500  # torchrun's default
_LAUNCHER_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    *(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)),
)
_SECONDS_TO_MEET = 600  # for all machines to start the command, which a queue may not do at once


@dataclass(frozen=True)
class Launch:
    """How to start a command.

    Attributes:
        gpus: Processes on this machine, one for each GPU; "auto": all GPUs; None: none are asked for.
        cpu_processes: Processes on this machine, on its CPU.
        nodes: Number of machines.
        main_address: `HOST` or `HOST:PORT` of one of them, at which they meet.
    """

    gpus: str | None = None
    cpu_processes: int | None = None
    nodes: int = 1
    main_address: str | None = None

    def run(self, command: str, arguments: Sequence[str]) -> int | None:
        """Runs `detr COMMAND ARGUMENTS` in as many processes as asked for, and waits for them.

        Returns:
            The exit code; None if this process is enough.

        Raises:
            LaunchError: The options contradict each other or what is there, or the machines do not meet.
        """
        from modeling_detr.benchmarks.machine import num_cores  # imports PyTorch, which help and errors do not need

        count = self._count()
        if count == 1 and self.nodes == 1:
            return None
        if self.gpus is None:
            os.environ["ACCELERATE_USE_CPU"] = "true"
        if self.gpus is not None or command not in _LIMITS_ITS_THREADS:  # else each process would use all cores
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // count)))
        return start_processes(count, self.nodes, self.main_address, ["-m", "modeling_detr", command, *arguments])

    def _count(self) -> int:
        """Returns the number of processes on this machine."""
        if "RANK" in os.environ:
            option = "--cpu_processes" if self.gpus is None else "--gpus"
            raise LaunchError(option, "a launcher has started this command already", f"drop {option} or the launcher")
        if self.nodes < 1:
            raise LaunchError("--nodes", f"got {self.nodes}", "expected the number of machines, such as 2")
        if self.nodes > 1 and self.main_address is None:
            remedy = "give the name or address of one of the machines, the same on all: --main_address 10.0.0.1"
            raise LaunchError("--nodes", "the machines need a place to meet", remedy)
        if self.nodes == 1 and self.main_address is not None:
            raise LaunchError("--main_address", "is for several machines", "add --nodes 2, or drop it")
        if self.gpus is not None and self.cpu_processes is not None:
            raise LaunchError("--gpus", "cannot be combined with --cpu_processes", "drop one of them")
        if self.gpus is not None:
            return _gpus_to_use(self.gpus)
        if self.cpu_processes is None:
            raise LaunchError("--nodes", "says nothing about each machine", "add --gpus auto or --cpu_processes 1")
        if self.cpu_processes < 1:
            raise LaunchError("--cpu_processes", f"got {self.cpu_processes}", "expected a number, such as 2")
        return self.cpu_processes


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser, which shows them in its help; `take_launch` handles them."""
    parser.add_argument("--gpus", metavar="N", help="start a process for each of N GPUs, or of all (auto)")
    parser.add_argument("--cpu_processes", type=int, metavar="N", help="start N processes on the CPU instead")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of machines; start the same command on each"
    )
    parser.add_argument("--main_address", metavar="HOST", help="one of the machines, as HOST or HOST:PORT")


class _LaunchParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError("command line", message, "see --help")


def take_launch(arguments: Sequence[str] | None) -> tuple[Launch | None, list[str]]:
    """Separates the options about processes from the others.

    Args:
        arguments: Those of a command; None: of this process.

    Returns:
        How to start the command, or None if none of the options is given; and the other arguments.

    Raises:
        LaunchError: A value is missing or not a number.
    """
    parser = _LaunchParser(add_help=False, allow_abbrev=False)
    add_launch_options(parser)
    values, rest = parser.parse_known_args(list(sys.argv[1:] if arguments is None else arguments))
    launch = Launch(**vars(values))
    return (None if launch == Launch() else launch), rest


def launched(
    command: str, arguments: Sequence[str] | None, check: Callable[[Sequence[str]], object]
) -> tuple[list[str], int | None]:
    """Runs a command in several processes if its arguments say so.

    Args:
        command: The command of `detr`.
        arguments: Its arguments; None: those of this process.
        check: Raises an error if the arguments without those about processes are wrong; it then appears once, and
            before the processes start.

    Returns:
        These arguments; and the exit code, or None if this process is to run the command.

    Raises:
        LaunchError: The processes cannot be started, or their launcher expects more than one here.
    """
    complete_environment()
    launch, rest = take_launch(arguments)
    if launch is None:
        return rest, None
    check(rest)
    return rest, launch.run(command, rest)


def complete_environment() -> None:
    """Adds what launchers of one process per machine leave out of its environment, such as Kubeflow's PyTorchJob.

    Its operator sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without a local rank, Accelerate would use the GPU
    of each pod by itself.

    Raises:
        LaunchError: The pod is to have several processes, which torchrun starts.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys() or "LOCAL_RANK" in os.environ:
        return
    processes, pods = os.environ["WORLD_SIZE"], os.environ.get("PET_NNODES", "")
    if pods.isdecimal() and processes.isdecimal() and int(processes) > int(pods):
        problem = f"is {processes} on {pods} pods, but this command is one process"
        remedy = "set nprocPerNode to 1, or start it with: torchrun -m modeling_detr"
        raise LaunchError("WORLD_SIZE", problem, remedy)
    import torch

    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    if torch.accelerator.device_count() == 0:  # else Accelerate does not connect the processes
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


@contextmanager
def first_process_speaks() -> Iterator[None]:
    """A block whose errors are usually those of all processes, or follow from that of the first.

    The others wait before they raise theirs: the launcher ends them as soon as the first has ended.
    """
    try:
        yield
    except Exception:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_SECONDS_TO_SPEAK)
        raise


def _gpus_to_use(asked: str) -> int:
    import torch

    there = torch.accelerator.device_count()
    if asked != "auto" and (not asked.isdecimal() or int(asked) < 1):
        raise LaunchError("--gpus", f"got '{asked}'", "expected a number, such as 2, or auto")
    if there == 0:
        raise LaunchError("--gpus", f"PyTorch sees no GPU: {_why_no_gpu()}", "drop --gpus to use the CPU")
    wanted = there if asked == "auto" else int(asked)
    if wanted > there:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is '{visible}')"
        raise LaunchError("--gpus", f"got {wanted}, but PyTorch sees {there}{limit}", f"use --gpus {there}")
    return wanted


def _why_no_gpu() -> str:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES is '{visible}'"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this build of PyTorch is for the CPU"
    return "there is none, or its driver does not work (see nvidia-smi)"


def _endpoint(address: str) -> str:
    host, _, port = address.partition(":")
    if not host or (port and not port.isdecimal()):
        raise LaunchError("--main_address", f"got '{address}'", "expected HOST or HOST:PORT, such as 10.0.0.1:29500")
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise LaunchError("--main_address", f"no machine '{host}' is known here ({error.strerror})", "") from None
    return f"{host}:{port or _PORT}"


def start_processes(count: int, nodes: int, address: str | None, command: Sequence[str]) -> int:
    """Runs Python with arguments in several processes, connected by the environment variables of torchrun.

    Args:
        count: Processes on this machine.
        nodes: Number of machines.
        address: `HOST` or `HOST:PORT` of one of them; None if there is only one.
        command: The arguments of Python.

    Returns:
        The exit code of the first process that failed, 128 plus the signal's number if a signal ended it, or 0. If one
        fails, the others are ended.

    Raises:
        LaunchError: The machines do not meet.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [*logging.root.manager.loggerDict]:  # each logger of the launcher has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes speak for themselves
    endpoint = "localhost:0" if address is None else _endpoint(address)
    if nodes > 1:
        print(f"waiting for {nodes} machines to meet at {endpoint}", file=sys.stderr, flush=True)
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()) if nodes == 1 else "detr",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_timeout=_SECONDS_TO_MEET,
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        with _restored_handlers():
            elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:  # the process has said why
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        print(f"detr: rank {rank} was ended by {name}, and then the others here", file=sys.stderr, flush=True)
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    except (RendezvousError, DistError) as error:
        problem = f"the machines did not meet there ({' '.join(str(error).split())})"
        remedy = f"start the command on all {nodes}, and check that they reach this address and its port is free"
        raise LaunchError(f"--main_address {endpoint}", problem, remedy) from error
    return 0


@contextmanager
def _restored_handlers() -> Iterator[None]:
    """Restores the signal handlers of this process after the block, in which the launcher sets its own."""
    is_main = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    handlers = {number: signal.getsignal(number) for number in _LAUNCHER_SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
