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
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from modeling_detr.errors_detr import DetrError, OutputError, OutputExistsError


_PARTIAL, _PREVIOUS = ".partial-", ".previous"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # reading never fails with these


# New files and folders


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


def replace_text(target: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, completely or not at all.

    Raises:
        OutputError: The file cannot be written; the previous one is unchanged.
    """
    with replaced_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


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


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, such as an `OutputError`, goes back to a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or f"(os error {errno.ENOSPC})" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


# On disk


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere, folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


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
        (partial if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise _output_error(target, os.strerror(errno.ENOTDIR), kept) from error
    except OSError as error:
        raise _output_error(target, error.strerror, kept) from error
    try:
        yield partial
    except DetrError:  # already explained
        raise
    except Exception as error:
        reason = _write_failure(error, partial, target)
        if reason is None:
            raise
        raise _output_error(target, reason, kept) from error
    finally:
        with contextlib.suppress(OSError):  # must not hide the error
            _remove(partial)


def _partial_path(target: Path) -> Path:
    return target.with_name(f".{target.name}{_PARTIAL}{platform.node()[:40]}-{os.getpid()}")


def _discarded_path(target: Path) -> Path:
    return target.with_name(f".{target.name}{_PARTIAL}{platform.node()[:40]}-discarded-{os.getpid()}")


def _remove_leftovers(target: Path) -> None:
    """Removes partial output for `target` left by processes of this host that no longer run."""
    prefix = _partial_path(target).name.rpartition("-")[0]
    for leftover in target.parent.glob(f"{glob.escape(prefix)}-*"):
        process = leftover.name.rpartition("-")[2]
        if process == str(os.getpid()) or (process.isdigit() and not _is_running(int(process))):
            with contextlib.suppress(PermissionError):  # belongs to another user
                _remove(leftover)


def _is_running(process: int) -> bool:
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
    """Removes `.previous` of a target. It is renamed first, so that `.previous` is complete whenever it exists."""
    previous, discarded = previous_path(target), _discarded_path(target)
    if os.path.lexists(previous):
        _remove(discarded)
        previous.rename(discarded)
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


def _write_failure(error: BaseException | None, partial: Path, target: Path) -> str | None:
    """The system's reason if `error` comes from writing `partial`; None if it comes from something else.

    Libraries written in other languages report the system's error only as an exception context or in a text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return error.strerror
        if isinstance(error, OSError) and _concerns(error.filename, partial, target):
            return error.strerror
        if (match := re.search(r"\(os error (\d+)\)", str(error))) and int(match[1]) in _NO_SPACE:
            return os.strerror(int(match[1]))
        error = error.__cause__ or error.__context__
    return None


def _concerns(file: object, partial: Path, target: Path) -> bool:
    """Whether the file that an error names is the partial output, lies in it, or is the target."""
    if not isinstance(file, str | os.PathLike):
        return False
    return Path(file).absolute().is_relative_to(partial.absolute()) or Path(file).absolute() == target.absolute()


def _output_error(target: Path, reason: str | None, kept: str) -> OutputError:
    return OutputError(target, f"cannot be written ({reason}){f'; {kept}' if kept else ''}")
