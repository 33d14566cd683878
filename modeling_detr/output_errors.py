"""Errors of writing: the system's reason and what to do about it, and checks that find them before hours of work.

check_folder("runs/mine", files=["log.jsonl"])      # before the work; nothing remains of it
with explained_output("runs/mine/log.jsonl"): ...   # an OSError of the block becomes an OutputError
"""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from modeling_detr.errors_detr import DetrError, OutputError


_ONLY_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # reading never fails with these
_FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount its file system for writing",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "move the folder of this name away",
    errno.ELOOP: "remove its circular symbolic link",
    errno.EIO: "check the disk",
}
_PROBE_BYTES = 4096


def system_error(error: BaseException) -> OSError | None:
    """The error of the operating system that an error goes back to, or None.

    Libraries written in other languages report it only as an exception context or in a text.
    """
    cause: BaseException | None = error
    seen = set[int]()
    while cause is not None and id(cause) not in seen:  # an error may be its own cause
        seen.add(id(cause))
        if isinstance(cause, OSError) and not isinstance(cause, DetrError) and cause.errno is not None:
            return cause
        if match := re.search(r"\(os error (\d+)\)", str(cause)):
            return OSError(int(match[1]), os.strerror(int(match[1])))
        cause = cause.__cause__ or cause.__context__
    return None


def fix_of(error: BaseException, target: Path | None = None) -> str:
    """What makes writing possible again: "free some space"; empty if the reason leaves that open.

    Args:
        error: An error of writing, such as an `OutputError`.
        target: What was written.
    """
    cause = system_error(error)
    if cause is None:
        return ""
    if cause.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
        places = [*reversed(target.parents if target is not None else ()), Path(str(cause.filename))]
        blocking = next((place for place in places if os.path.lexists(place) and not place.is_dir()), None)
        if blocking is not None:
            return f"move {blocking} away, which is a {'file' if blocking.exists() else 'broken symbolic link'}"
    return _FIXES.get(cause.errno or 0, "")


def output_error(target: Path, cause: OSError, kept: str = "") -> OutputError:
    """The error for a file or folder that cannot be written.

    Args:
        target: The file or folder.
        cause: The error of the system.
        kept: A clause about the previous contents.
    """
    reason = os.strerror(errno.ENOTDIR) if isinstance(cause, FileExistsError) else cause.strerror or cause
    fix = fix_of(cause, target)
    remedies = [fix] if cause.errno == errno.ENAMETOOLONG else [fix, "choose another folder"]
    problem = f"cannot be written ({reason}){f'; {kept}' if kept else ''}"
    return OutputError(target, problem, ", or ".join(filter(None, remedies)))


def write_failure(error: BaseException, places: Iterable[str | Path]) -> OSError | None:
    """The error of the system if `error` comes from writing; None if it comes from something else.

    Args:
        error: Any error.
        places: Files and folders that were written. Errors that reading can raise too count only if they name one of
            these, or a file in it.
    """
    roots = [Path(place).absolute() for place in places]
    cause: BaseException | None = error
    seen = set[int]()
    while cause is not None and id(cause) not in seen:  # an error may be its own cause
        seen.add(id(cause))
        found = system_error(cause)
        if found is not None and found.errno in _ONLY_WRITING:
            return found
        if isinstance(cause, OSError) and not isinstance(cause, DetrError):
            name = cause.filename
            if isinstance(name, str | os.PathLike) and any(Path(name).absolute().is_relative_to(at) for at in roots):
                return cause
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def explained_output(target: str | Path) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes `target`, into an `OutputError` with the reason and a remedy."""
    try:
        yield
    except DetrError:  # already explained
        raise
    except OSError as error:
        raise output_error(Path(target), error) from error


# Before the work


def check_folder(folder: str | Path, *, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Check that a folder, which need not exist, can be written to.

    Args:
        folder: The folder.
        files: Names of the files that will be written to it, or replaced.
        folders: Names of the folders in it that will be written to.

    Raises:
        OutputError: One of them cannot be written.
    """
    folder = Path(folder)
    for place in (folder, *(folder / name for name in folders)):
        with explained_output(place):
            _try_to_write_in(place)
    for name in files:
        _refuse_folder(folder / name)


def check_file(file: str | Path) -> None:
    """Check that a file can be written or replaced; its folder need not exist.

    Raises:
        OutputError: It cannot be written.
    """
    with explained_output(file):
        _try_to_write_in(Path(file).parent)
    _refuse_folder(Path(file))


def check_model_path(path: str | Path) -> None:
    """Check that a path is in UTF-8: weights written to another path could not be loaded again.

    Raises:
        OutputError: It is not.
    """
    try:
        str(Path(path).absolute()).encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            path, "the path is not in UTF-8, so weights in it could not be loaded", "choose another name"
        ) from error


def _try_to_write_in(folder: Path) -> None:
    """Write a file without a name to a folder, or to the nearest of its parents that exists."""
    existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    for name in folder.relative_to(existing).parts:
        _check_name(existing / name)
    with tempfile.TemporaryFile(dir=existing) as file:
        file.write(bytes(_PROBE_BYTES))
        file.flush()


def _refuse_folder(file: Path) -> None:
    with explained_output(file):
        _check_name(file)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))


def _check_name(path: Path) -> None:
    """Raise an `OSError` if the file system does not accept the name of a path, which need not exist."""
    with contextlib.suppress(FileNotFoundError):
        path.lstat()
