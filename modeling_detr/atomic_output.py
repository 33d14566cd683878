"""Files and folders that appear under their name only when they are complete.

Everything is written under a hidden name beside the target, synced to disk and renamed, and the rename is synced too.
An error, a signal, a kill, a power cut or a full disk leaves the previous contents unchanged. Hidden names contain the
host and the process id, so that several processes can write at once; whatever a killed process leaves behind is
removed by the next one that writes the same target.

    with new_folder("model") as folder:             # fails if model exists
        save_everything(folder)
    replace_text("recipe.yaml", text)
    with replaced_folder("model") as folder: ...    # after a kill: restore_interrupted(".")
"""

import contextlib
import errno
import glob
import os
import platform
import shutil
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from modeling_detr.errors_detr import DetrError, OutputExistsError
from modeling_detr.output_errors import explained_output, output_error, write_failure


_PARTIAL, _PREVIOUS = ".partial-", ".previous"
_CANNOT_SYNC = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP}
_MAX_BYTES = 150  # of the target's name in a hidden name; file systems allow 255 in all
_MAX_STEM_BYTES = 230


# Signals


@contextlib.contextmanager
def exits_on_sigterm() -> Iterator[None]:
    """Raises a SystemExit with code 143 if SIGTERM arrives in the block, so that partial output is removed."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# New files and folders


def output_stem(path: str | Path) -> str:
    """The stem of a file's name, for the name of an output; cut if a number and a suffix would make it too long."""
    return os.fsdecode(os.fsencode(Path(path).stem)[:_MAX_STEM_BYTES])


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A hidden folder that becomes `target` if the block succeeds and is removed otherwise.

    Args:
        target: The new folder; missing parents are created.

    Raises:
        OutputExistsError: `target` exists, or another process created it in the meantime.
        OutputError: The folder cannot be written, for example because the disk is full.
    """
    target = Path(target)
    _refuse_existing(target)
    with _partial(target, is_folder=True, kept="") as partial:
        yield partial
        sync_tree(partial)
        _refuse_existing(target)
        try:
            partial.rename(target)
        except OSError:
            _refuse_existing(target)
            raise
        sync(target.parent)


@contextlib.contextmanager
def new_file(target: str | Path) -> Iterator[Path]:
    """A hidden path to write to, which becomes `target` if the block succeeds and is removed otherwise.

    Args:
        target: The new file; missing parents are created.

    Raises:
        OutputExistsError: `target` exists, or another process created it in the meantime.
        OutputError: The file cannot be written, for example because the disk is full.
    """
    target = Path(target)
    _refuse_existing(target)
    with _partial(target, is_folder=False, kept="") as partial:
        yield partial
        sync(partial)
        try:
            os.link(partial, target)  # fails if the target exists, which a rename does not
        except OSError:
            _refuse_existing(target)
            partial.rename(target)  # the file system has no hard links
        partial.unlink(missing_ok=True)
        sync(target.parent)


# Replaced files and folders


@contextlib.contextmanager
def replaced_file(target: str | Path) -> Iterator[Path]:
    """A hidden path to write to, which replaces `target` if the block succeeds and is removed otherwise.

    The contents are on disk before the file gets its name.

    Args:
        target: The file, which may exist; missing parents are created.

    Raises:
        OutputError: The file cannot be written; the previous one is unchanged.
    """
    target = Path(target)
    with _partial(target, is_folder=False, kept="the previous file is unchanged") as partial:
        yield partial
        sync(partial)
        partial.replace(target)
        sync(target.parent)


@contextlib.contextmanager
def synced_file(target: str | Path) -> Iterator[Path]:
    """The path `target` itself; after the block, the file is on disk.

    This is for one of many files, such as pictures, whose list is written last. A kill may leave a part of the file.

    Args:
        target: The file, which may exist; missing parents are created.

    Raises:
        OutputError: The file cannot be written.
    """
    target = Path(target)
    with explained_output(target):
        _make_folder(target.parent)
        yield target
        sync(target)
        sync(target.parent)


def replace_text(target: str | Path, text: str) -> None:
    r"""Writes a text file in UTF-8, completely or not at all.

    File names that are not UTF-8 become escapes such as `\udcff`; in JSON these mean the same name.

    Raises:
        OutputError: The file cannot be written; the previous one is unchanged.
    """
    with replaced_file(target) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def replaced_folder(target: str | Path) -> Iterator[Path]:
    """A hidden folder that replaces `target` if the block succeeds and is removed otherwise.

    Replacing a folder takes two renames. A process killed between them leaves the previous folder at
    `previous_path(target)`; `restore_interrupted` moves it back.

    Args:
        target: The folder, which may exist; missing parents are created.

    Raises:
        OutputError: The folder cannot be written; the previous one is unchanged.
    """
    target = Path(target)
    previous = previous_path(target)
    with _partial(target, is_folder=True, kept="the previous folder is unchanged") as partial:
        yield partial
        sync_tree(partial)
        if os.path.lexists(target):
            _discard_previous(target)
            target.rename(previous)
        try:
            partial.rename(target)
        except BaseException:
            if os.path.lexists(previous):
                previous.rename(target)
            raise
        sync(target.parent)
    with contextlib.suppress(OSError):  # leftovers are removed next time
        _discard_previous(target)


def previous_path(target: str | Path) -> Path:
    """Where `replaced_folder` keeps the old folder during the replacement: `.NAME.previous` beside it."""
    target = Path(target)
    return target.with_name(f".{target.name}{_PREVIOUS}")


def restore_interrupted(folder: str | Path) -> None:
    """Cleans up after killed processes: restores folders whose replacement was interrupted and removes partial output.

    Args:
        folder: The folder that holds the targets. No other process may be writing to it.

    Raises:
        OSError: Something cannot be removed or renamed.
    """
    folder = Path(folder)
    for previous in folder.glob(f".*{_PREVIOUS}"):
        target = previous.with_name(previous.name.removeprefix(".").removesuffix(_PREVIOUS))
        if os.path.lexists(target):
            _discard_previous(target)
        else:
            previous.rename(target)
    for leftover in folder.glob(f".*{_PARTIAL}*"):
        _remove(leftover)


def discard(path: str | Path) -> None:
    """Remove a file, a link or a folder, if it exists. A kill or a power cut never leaves a part of it under its name.

    Raises:
        OSError: It cannot be removed.
    """
    _discard(Path(path), _discarded_path(Path(path)))


# On disk


def make_folder(folder: str | Path) -> None:
    """Create a folder and its missing parents, and wait until their names are on disk.

    Raises:
        OutputError: It cannot be created.
    """
    with explained_output(folder):
        _make_folder(Path(folder))


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk. Some systems and shares cannot do it for folders."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":  # folders cannot be opened
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _CANNOT_SYNC:
            raise


def sync_tree(folder: Path) -> None:
    """Wait until all files and folders in a folder are on disk, if it exists. Links are not followed."""
    for parent, _, files in os.walk(folder):
        for path in (*(Path(parent, name) for name in files), Path(parent)):
            if (path.is_file() or path.is_dir()) and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):  # another process, such as a tracker's, has removed it
                    sync(path)


# Hidden names


@contextlib.contextmanager
def _partial(target: Path, *, is_folder: bool, kept: str) -> Iterator[Path]:
    """The hidden path of this process beside `target`; removed at the end if it still exists.

    Args:
        target: What is written.
        is_folder: Whether the hidden path is created as a folder.
        kept: What an error says about the previous contents.
    """
    partial = _partial_path(target)
    kept = kept if os.path.lexists(target) else ""
    try:
        _remove_leftovers(target)
        _make_folder(target.parent)
        if is_folder:
            partial.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(target, error, kept) from error
    try:
        yield partial
    except DetrError:  # already explained
        raise
    except Exception as error:
        failure = write_failure(error, [partial, target])
        if failure is None:
            raise
        raise output_error(target, failure, kept) from error
    finally:
        with contextlib.suppress(OSError):  # must not hide the error
            _remove(partial)


def _partial_path(target: Path) -> Path:
    return target.with_name(f"{_hidden_prefix(target)}-{os.getpid()}")


def _discarded_path(target: Path) -> Path:
    return target.with_name(f"{_hidden_prefix(target)}-discarded-{os.getpid()}")


def _hidden_prefix(target: Path) -> str:
    name = os.fsencode(target.name)
    short = target.name if len(name) <= _MAX_BYTES else f"{zlib.crc32(name):08x}"
    return f".{short}{_PARTIAL}{platform.node()[:40]}"


def _remove_leftovers(target: Path) -> None:
    """Removes partial output for `target` left by processes of this host that no longer run."""
    for leftover in target.parent.glob(f"{glob.escape(_hidden_prefix(target))}-*"):
        process = leftover.name.rpartition("-")[2]
        if process == str(os.getpid()) or (process.isdigit() and not is_running(int(process))):
            with contextlib.suppress(PermissionError):  # belongs to another user
                _remove(leftover)


def is_running(process: int) -> bool:
    """Whether a process of this machine is running, by its number; True where that cannot be found out."""
    if os.name != "posix":  # elsewhere, os.kill with signal 0 does more than check
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # belongs to another user
        return True
    return True


def _discard_previous(target: Path) -> None:
    _discard(previous_path(target), _discarded_path(target))


def _discard(path: Path, discarded: Path) -> None:
    if os.path.lexists(path):
        _remove(discarded)
        path.rename(discarded)
        _remove(discarded)


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise OutputExistsError(target, "already exists", "choose another target or remove it")
