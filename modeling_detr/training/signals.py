"""Signals that end a run between two steps, with a checkpoint: Ctrl-C, the end of the time, Slurm's warning of it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from modeling_detr.structures_detr import DetectionBatch


# The last is not everywhere.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequested(BaseException):
    """A signal came while nothing was under way that a run could lose; see `StopSignals`."""


class TrainingInterrupted(Exception):
    """A signal ended the run between two steps; a checkpoint has been written.

    Attributes:
        signal_number: The signal; a shell expects 128 + this as exit code.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it lasts, so that a run can end between two steps.

    Further signals change nothing, since torchrun and Slurm send several; but a second Ctrl-C ends the run at once.

    Attributes:
        received: The signal that came; None as long as none has.

    Args:
        alone: Whether this is the only process. It then need not wait for a batch to stop; of several processes each
            would stop at another step.
    """

    def __init__(self, alone: bool = True) -> None:
        self.received: int | None = None
        self._alone = alone
        self._may_raise = False
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
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
        """The batches; a signal that comes while one is awaited ends the wait.

        Raises:
            StopRequested: It came, and this process is alone.
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
        """The batches of a pass that can be done again: none comes after a signal. See `interruptible`."""
        for batch in self.interruptible(batches):
            if self.received is not None:
                return
            yield batch

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
            if self._may_raise:
                raise StopRequested
        elif number == signal.SIGINT and time.monotonic() - self._received_at > 1:  # torchrun passes the first one on
            raise KeyboardInterrupt


def leave_stopping_to_parent() -> None:
    """In a loader process: what stops a run passes it by, so that the run can end as `StopSignals` says.

    Ctrl-C in a terminal goes to a whole group of processes; a group of its own spares the loader. Slurm sends its
    warning, and SIGTERM at the end of the time, to every process that it finds; a loader that dies of it makes PyTorch
    raise an error wherever the run happens to be, be it in the middle of a checkpoint. But SIGTERM from the process
    that it loads for ends it: so PyTorch ends loaders when a run is through, and sends it only once. A loader notices
    by itself when that process is gone.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_told_by, args=[parent.pid], daemon=True).start()


def _end_when_told_by(process: int | None) -> None:
    """Waits for a SIGTERM of that process, then ends this one as PyTorch's own handler would."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != process:
        pass
    os._exit(0)
