"""Signals that end a run between two steps, with a checkpoint: Ctrl-C, SIGTERM, and Slurm's time limit warning."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from modeling_detr.structures_detr import DetectionBatch


# SIGUSR1 does not exist on every platform.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequested(BaseException):
    """A signal arrived while the run was waiting and could stop at once; see `StopSignals`."""


class TrainingInterrupted(Exception):
    """A signal ended the run between two steps; a checkpoint has been written.

    Attributes:
        signal_number: The signal; the exit code should be 128 plus this number.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignals:
    """A context manager that records SIGINT, SIGTERM and SIGUSR1, so that a run can end between two steps.

    Further signals are ignored, since torchrun and Slurm send several; but a second Ctrl-C ends the run immediately.

    Attributes:
        received: The first signal that arrived; None if none has.

    Args:
        alone: Whether this is the only process. It can then stop while it waits for a batch; several processes would
            stop at different steps.
    """

    def __init__(self, alone: bool = True) -> None:
        self.received: int | None = None
        self._alone = alone
        self._may_raise = False
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def interruptible(self, batches: Iterable[DetectionBatch]) -> Iterator[DetectionBatch]:
        """Yield the batches. A signal that arrives while waiting for one ends the wait.

        Raises:
            StopRequested: A signal arrived, and this is the only process.
        """
        iterator = iter(batches)
        while True:
            try:
                self._may_raise = self._alone
                if self._alone and self.received is not None:
                    raise StopRequested
                batch = next(iterator, None)
            finally:
                self._may_raise = False
            if batch is None:
                return
            yield batch

    def until_stopped(self, batches: Iterable[DetectionBatch]) -> Iterator[DetectionBatch]:
        """Yield the batches of a pass that can be repeated, until a signal arrives; see `interruptible`."""
        for batch in self.interruptible(batches):
            if self.received is not None:
                return
            yield batch

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
            if self._may_raise:
                raise StopRequested
        elif number == signal.SIGINT and time.monotonic() - self._received_at > 1:  # torchrun forwards the first one
            raise KeyboardInterrupt


def leave_stopping_to_parent() -> None:
    """Make a loader process ignore the signals that stop a run, so that the run can end as in `StopSignals`.

    Ctrl-C in a terminal goes to a whole process group, so each loader gets its own group. Slurm sends its warning,
    and SIGTERM at the time limit, to every process; if a loader dies from it, PyTorch raises an error wherever the run
    is, possibly in the middle of a checkpoint. A loader therefore ends only on SIGTERM from its parent process,
    which is how PyTorch ends loaders after a run (it sends the signal only once). A loader notices by itself if its
    parent no longer exists.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # macOS does not report the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_exit_on_sigterm_from, args=[parent.pid], daemon=True).start()


def _exit_on_sigterm_from(process: int | None) -> None:
    """Wait for a SIGTERM from `process`, then exit as PyTorch's own handler would."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != process:
        pass
    os._exit(0)
