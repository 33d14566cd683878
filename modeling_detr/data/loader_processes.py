"""Watch the processes of a data loader: one that has ended, or that keeps the run waiting, is an error that names it.

PyTorch alone waits forever for a process that is stopped or reads from a dead network share. If one is killed, it
raises wherever the run happens to be, possibly in the middle of an optimizer step; here only while the run waits.
"""

import ctypes
import functools
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
from torch.utils.data._utils import signal_handling

from modeling_detr.errors_detr import DetrError, LoaderError


# Less than the 10 minutes that NCCL lets the other processes of a run wait.
DEFAULT_TIMEOUT_MINUTES = 5.0

_Result = TypeVar("_Result")

_PACKAGE = Path(__file__).parents[1]
_TICK = 1.0  # seconds between two looks at the clock
_MAX_LISTED = 3  # images that a message names
_SECONDS_TO_END = 1.0  # that a process gets before it is killed
_STATES = {
    psutil.STATUS_STOPPED: "is stopped",
    psutil.STATUS_TRACING_STOP: "is stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "is waiting for the disk or the network",
}
_CAUSES = {  # signal → what it usually means
    "SIGKILL": "memory has probably run out: lower num_workers or the batch size",
    "SIGBUS": "/dev/shm is probably full: start the container with --shm-size=1g, or lower num_workers",
}
_CRASHED = "a library has crashed, possibly on one of these images"


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may use, in order."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


class ProcessWatch:
    """Waits for a loader and watches its processes meanwhile.

    Args:
        iterator: PyTorch's iterator over the batches of loader processes.
        name: Name of the dataset, for messages.
        images_of: Returns the names of the images of a batch, by its position in the epoch.
        minutes: Maximum time to wait; 0: no limit.
    """

    def __init__(self, iterator: Any, name: str, images_of: Callable[[int], Sequence[str]], minutes: float) -> None:
        self._iterator = iterator
        self._name = name
        self._images_of = images_of
        self._minutes = minutes
        self._waited = 0.0
        self._error: LoaderError | None = None
        self._thread = 0
        _start_watching()
        # PyTorch's handler of SIGCHLD would raise at any time; ours replaces it for these processes.
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
        iterator._worker_pids_set = False
        # A stopped process ignores the SIGTERM with which Python and PyTorch end it, and Python would wait for it.
        weakref.finalize(iterator, _end, iterator._workers)

    def wait_for(self, step: Callable[[], _Result]) -> _Result:
        """Return `step()`, which waits for the loader.

        Raises:
            LoaderError: A process has ended, keeps the run waiting for too long, or raised an error that is not about
                an image.
        """
        self._waited, self._thread = 0.0, threading.get_ident()
        _waiting.add(self)
        try:
            self.check()
            return step()
        except LoaderError:
            raise
        except Exception as error:
            if "in DataLoader worker process" in str(error):
                explained = _explained(error, self._name)
                if explained is error:  # an error that is its own cause would keep those who look for the first one
                    raise
                raise explained from error
            if "Too many open files" in str(error):  # PyTorch's own text, or that of the system
                remedy = "raise the limit on open files (ulimit -n), or load the images in the main process"
                raise LoaderError(self._name, "too many open files", remedy, {"num_workers": 0}) from error
            self._check_soon()  # the connection to a process that ends breaks before it has ended
            raise
        finally:
            _waiting.discard(self)

    def check(self) -> None:
        """Raise if a process has ended, or has been ended because it kept the run waiting.

        Raises:
            LoaderError: This is the case.
        """
        if self._error is None:
            ended = next((process for process in self._processes if process.exitcode is not None), None)
            if ended is not None:
                self._error = self._end_of(ended)
                self._kill_all()
        if self._error is not None:
            raise self._error

    def add_time(self, seconds: float) -> None:
        """Count the time that the run has waited; kill the processes if it is too long. Runs in a thread of its own.

        The time during which the whole run is suspended does not count.
        """
        self._waited += seconds
        if 0 < 60 * self._minutes <= self._waited and self._error is None:
            self._error = self._long_wait()
            self._kill_all()  # which ends the wait

    @property
    def is_waiting_here(self) -> bool:
        """Whether it is this thread that waits."""
        return self._thread == threading.get_ident()

    @property
    def _processes(self) -> Sequence[BaseProcess]:
        processes: Sequence[BaseProcess] = self._iterator._workers
        return processes

    def _check_soon(self) -> None:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            self.check()
            time.sleep(0.05)

    def _kill_all(self) -> None:
        self._iterator._shutdown = True  # an orderly end could wait for a lock that a killed process holds
        for process in self._processes:
            process.kill()

    # Messages

    def _end_of(self, process: BaseProcess) -> LoaderError:
        code = process.exitcode or 0
        images = self._images_in(process)
        how = f"ended with exit code {code}"
        remedy = ""
        if code < 0:
            name = signal.Signals(-code).name
            how, remedy = f"was killed by {name}", _CAUSES.get(name, _CRASHED)
        while_loading = f" while loading {_listed(images)}" if images else ""
        return LoaderError(self._name, f"loader process {process.pid} {how}{while_loading}", remedy)

    def _long_wait(self) -> LoaderError:
        process = self._awaited()
        images = self._images_in(process)
        loads = f", which loads {_listed(images)}," if images else ""
        problem = f"no batch for {self._minutes:g} minutes; loader process {process.pid}{loads} {_state(process)}"
        remedy = "check that the disk or network share with the images responds, or allow more time"
        return LoaderError(self._name, problem, remedy, {"loader_timeout_minutes": 2 * self._minutes})

    def _awaited(self) -> BaseProcess:
        """The process that loads the next batch."""
        iterator = self._iterator
        worker, *_ = iterator._task_info.get(iterator._rcvd_idx, (0,))
        process: BaseProcess = iterator._workers[worker]
        return process

    def _images_in(self, process: BaseProcess) -> Sequence[str]:
        """The images that a process has to load next."""
        tasks = self._iterator._task_info.items()
        batches = [batch for batch, (worker, *data) in tasks if self._processes[worker] is process and not data]
        return self._images_of(min(batches)) if batches else ()


# The clock and the signal


_waiting: set[ProcessWatch] = set()


@functools.cache
def _start_watching() -> None:
    """Start the clock of this process; check the waiting loader whenever a child process ends."""
    threading.Thread(target=_run_clock, name="loader clock", daemon=True).start()
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        previous = signal.getsignal(signal.SIGCHLD)

        def check_and_pass_on(number: int, frame: FrameType | None) -> None:
            for watch in list(_waiting):
                if watch.is_waiting_here:
                    watch.check()
            if callable(previous):
                previous(number, frame)

        signal.signal(signal.SIGCHLD, check_and_pass_on)


def _run_clock() -> None:
    while True:
        time.sleep(_TICK)
        _add_time()


def _add_time() -> None:
    """Advance the clock; in a function of its own, whose end releases the loaders."""
    for watch in list(_waiting):
        watch.add_time(_TICK)


def start_loader_process(worker_init_fn: Callable[[int], None] | None, index: int) -> None:
    """Have the system kill this loader process when its parent ends, then call `worker_init_fn`.

    Otherwise loaders of a killed run could wait for each other, each to read what the other has sent to the run.
    """
    if sys.platform == "linux":
        end_with_parent(signal.SIGKILL)
    if worker_init_fn is not None:
        worker_init_fn(index)


def end_with_parent(number: signal.Signals) -> None:
    """Have the system, which must be Linux, send a signal to this process when its parent ends."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def _end(processes: Sequence[BaseProcess]) -> None:
    """End processes that their loader has not ended, because they are stopped or because Python exits."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


# Messages


def _state(process: BaseProcess) -> str:
    try:
        return _STATES.get(psutil.Process(process.pid).status(), "is still working")
    except psutil.Error:
        return "has ended"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_LISTED])
    return shown if len(names) <= _MAX_LISTED else f"{shown} and {len(names) - _MAX_LISTED} more"


def _explained(error: Exception, name: str) -> Exception:
    """The error of a loader process, which PyTorch re-raises with the text of its traceback: itself if it is made for
    the user, else a sentence that says where it was raised."""
    places = re.findall(r'^ *File "(.+?)", line (\d+)', str(error), flags=re.MULTILINE)
    if isinstance(error, DetrError | OSError) or not places:
        return error
    file, line = places[-1]
    if isinstance(error, ValueError) and Path(file).is_relative_to(_PACKAGE):
        return error
    kind = type(error).__name__
    text = re.split(rf"^(?:\w+\.)*{kind}(?:: |$)", str(error), flags=re.MULTILINE)[-1]
    reason = ": ".join(part for part in (kind, " ".join(text.split())) if part)
    remedy = "fix it there; DETR_TRACEBACK=1 in the environment shows the whole traceback"
    if isinstance(error, MemoryError):
        remedy = _CAUSES["SIGKILL"]
    return LoaderError(name, f"a loader process raised {reason.rstrip('.')} ({file}, line {line})", remedy)
