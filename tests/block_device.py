"""A small disk whose power can be cut: an ext4 file system in a file, which is copied while it is mounted."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from power_cuts import files_in


# No file is written back by itself: not after some seconds, and not because it is renamed over another.
_OPTIONS = "loop,commit=3600,noauto_da_alloc"


class BlockDevice:
    """A mounted file system in the file `image`. Only root can mount one.

    Args:
        folder: A folder for the image and for places to mount.

    Raises:
        OSError: This machine does not allow it.
    """

    def __init__(self, folder: Path, megabytes: int = 24) -> None:
        self.folder, self.image = folder, folder / "image"
        folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-b", "1024", "-N", "2000", self.image)
        self.root = self._mount(self.image, folder / "disk")

    def cut(self) -> Path:
        """Copy the blocks that are on the device at this moment, and return the copy."""
        return Path(shutil.copyfile(self.image, self.folder / "after_cut"))

    @contextlib.contextmanager
    def mounted(self, image: Path) -> Iterator[Path]:
        """Mount a copy, which replays its journal as after a real power cut."""
        place = self._mount(image, self.folder / "mounted")
        try:
            yield place
        finally:
            _run("umount", place)

    def left(self, _: Path) -> dict[str, bytes]:
        """The path of each file that a power cut leaves → its contents."""
        with self.mounted(self.cut()) as place:
            return files_in(place)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.root], check=False, capture_output=True)

    def _mount(self, image: Path, place: Path) -> Path:
        place.mkdir(exist_ok=True)
        _run("mount", "-o", _OPTIONS, image, place)
        return place


def _run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise OSError(f"{command[0]}: {result.stderr.strip()}")
