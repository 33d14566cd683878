"""Files and folders that appear under their name only when they are complete.

Whatever is interrupted, by an error, a signal or a full disk, leaves what was there before as it was.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its name if the block succeeds, and is removed otherwise.

    Args:
        target: A path at which nothing exists yet.

    Raises:
        OSError: The folder cannot be created or renamed.
    """
    target = Path(target)
    hidden = target.with_name(f".{target.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        yield hidden
        hidden.rename(target)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


@contextlib.contextmanager
def replaced_file(target: str | Path) -> Iterator[Path]:
    """A hidden path beside `target` to write to; it replaces `target` if the block ends without an error.

    What was written is on disk before it gets its name.

    Args:
        target: The file, which may exist; its folder does.

    Raises:
        OSError: The file cannot be written or renamed.
    """
    target = Path(target)
    hidden = target.with_name(f".{target.name}.partial")
    try:
        yield hidden
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
        hidden.replace(target)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
