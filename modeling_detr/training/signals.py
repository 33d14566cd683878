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
    """The wait for a batch is over without one: a signal arrived, or it cannot be loaded; see `StopSignals`."""


class TrainingInterrupted(Exception):
    """A signal ended the run between two steps; a checkpoint has been written.

    Attributes:
        signal_number: The signal; the exit code should be 128 plus this number.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignals:
    """A context manager that records SIGINT, SIGTERM and SIGUSR1, so that a run can end between two steps. It does the
    same for a batch that cannot be loaded.

    Further signals are ignored, since torchrun and Slurm send several; but a second Ctrl-C ends the run immediately.

    Attributes:
        received: The first signal that arrived; None if none has.
        failure: Why a batch cannot be loaded; None if all could.

    Args:
        alone: Whether this is the only process. Several processes have to end a pass together.
    """

    def __init__(self, alone: bool = True) -> None:
        self.received: int | None = None
        self.failure: Exception | None = None
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

    @property
    def should_stop(self) -> bool:
        """Whether the run should end after the step."""
        return self.received is not None or self.failure is not None

    def interruptible(self, batches: Iterable[DetectionBatch]) -> Iterator[DetectionBatch]:
        """Yield the batches. A signal that arrives while waiting for one ends the wait.

        Raises:
            StopRequested: A signal arrived, or a batch cannot be loaded.
        """
        iterator = iter(batches)
        while True:
            try:
                self._may_raise = True
                if self.should_stop:
                    raise StopRequested
                batch = next(iterator, None)
            except Exception as error:
                self.failure = error
                raise StopRequested from None
            finally:
                self._may_raise = False
            if batch is None:
                return
            yield batch

    def until_stopped(self, batches: Iterable[DetectionBatch]) -> Iterator[DetectionBatch]:
        """Yield the batches of a pass that can be repeated, until it has to stop.

        Raises:
            StopRequested: See `interruptible`; only if this is the only process. The others have to be told first.
        """
        try:
            yield from self.interruptible(batches)
        except StopRequested:
            if self._alone:
                raise

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
