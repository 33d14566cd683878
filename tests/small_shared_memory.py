"""Commands in a container's view of the machine: /dev/shm of one MiB."""

import functools
import subprocess
from collections.abc import Sequence

import pytest


_MOUNTED = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]


@functools.cache
def _is_allowed() -> bool:
    try:
        return subprocess.run([*_MOUNTED, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def with_small_shared_memory(command: Sequence[str]) -> list[str]:
    """Return the command with /dev/shm of one MiB; skip the test where that is not allowed."""
    if not _is_allowed():
        pytest.skip("mounting a small /dev/shm needs root")
    return [*_MOUNTED, *map(str, command)]
