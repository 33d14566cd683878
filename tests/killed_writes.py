"""Kills a process that writes, before any of its file operations."""

import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable


def in_child(run: Callable[[], None]) -> int:
    """Runs something in a process of its own and returns its exit code, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: the child does not use them
        child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before(operation: int, run: Callable[[], None]) -> bool:
    """Runs something in a child that is killed before its n-th file operation; returns whether it got that far."""

    def run_with_kill() -> None:
        remaining = itertools.count(operation, -1)

        def hook(event: str, _: object) -> None:
            if (event == "open" or event.startswith("os.")) and next(remaining) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run()

    code = in_child(run_with_kill)
    assert code in (0, -signal.SIGKILL), code
    return code == -signal.SIGKILL
