"""A disk that forgets what was not synced: the least that a power cut may leave of a folder, as POSIX defines it."""

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path


class ForgetfulDisk:
    """Keeps what `os.fsync` wrote to disk: the contents of files, and the names in folders, as of their last sync.

    Args:
        root: An existing folder; everything already in it counts as synced.
        monkeypatch: Replaces `os.fsync` until the end of the test.
        before_sync: Called before each sync.
        after_sync: Called after each sync.
    """

    def __init__(
        self,
        root: Path,
        monkeypatch,
        before_sync: Callable[[], None] = lambda: None,
        after_sync: Callable[[], None] = lambda: None,
    ) -> None:
        self.root, self._before_sync, self._after_sync = root, before_sync, after_sync
        self._contents: dict[int, bytes] = {}  # inode → contents
        self._names: dict[int, dict[str, int]] = {}  # inode of a folder → name → inode
        self._open: dict[int, int] = {}  # inode → a descriptor, so that the inode is not used again
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        for parent, _, files in os.walk(root):
            for path in [*(Path(parent, name) for name in files), Path(parent)]:
                self._remember(self._hold(path))
        monkeypatch.setattr(os, "fsync", self._fsync)

    def cut(self, copy: Path, *, forget_removed: bool = False) -> Path:
        """Cut the power: write what is left to a new folder.

        Args:
            copy: The new folder.
            forget_removed: Whether removals reached the disk although they were not synced.
        """
        self._restore(self.root.stat().st_ino, copy, forget_removed)
        return copy

    def left(self, copy: Path) -> dict[str, bytes]:
        """The path of each file that a power cut leaves → its contents."""
        return files_in(self.cut(copy))

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _fsync(self, descriptor: int) -> None:
        self._before_sync()
        self._remember(self._hold(f"/proc/self/fd/{descriptor}"))
        self._after_sync()

    def _hold(self, path: str | Path) -> int:
        inode = Path(path).stat().st_ino
        if inode not in self._open:
            self._open[inode] = os.open(path, os.O_RDONLY)
        return inode

    def _remember(self, inode: int) -> None:
        descriptor = self._open[inode]
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            place = f"/proc/self/fd/{descriptor}"
            self._names[inode] = {name: self._hold(f"{place}/{name}") for name in os.listdir(place)}  # noqa: PTH208
        else:
            self._contents[inode] = os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def _restore(self, inode: int, path: Path, forget_removed: bool) -> None:
        status = os.fstat(self._open[inode])
        if stat.S_ISDIR(status.st_mode):
            path.mkdir()
            for name, child in self._names.get(inode, {}).items():
                if not (forget_removed and os.fstat(self._open[child]).st_nlink == 0):
                    self._restore(child, path / name, forget_removed)
        else:
            path.write_bytes(self._contents.get(inode, b""))  # a name without contents: a file of 0 bytes


def files_in(folder: Path) -> dict[str, bytes]:
    """The path of each file in a folder → its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
