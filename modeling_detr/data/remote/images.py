"""Read remote images, through a cache of limited size on the disk of this machine.

fsspec's own caches have no limit on their size. Besides, a download that breaks off leaves a part of a file that is
taken for the whole one (`simplecache`), or all processes write one list of files again and again (`filecache`).

When the cache is full, further images are read from the store each time, and nothing is replaced: an epoch needs every
image once, in random order, so an image that is removed is needed as soon as the one that replaces it. The images of
the datasets that were opened longest ago make room when another one is opened.
"""

import contextlib
import hashlib
import io
import os
import shutil
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modeling_detr.data.remote import store
from modeling_detr.errors_detr import DatasetError


CACHE = "DETR_CACHE"  # in the environment: the folder of the cache
CACHE_GB = "DETR_CACHE_GB"  # in the environment: the largest size of the images in it
DEFAULT_GB = 20.0
IMAGES, TREE = "images", "tree"  # folders in that of a dataset
_CHECKSUM_BYTES = 4
_PAGES = (b"<", b"{")  # how pages begin that servers and proxies send in place of a file, with the status 200
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}  # start of a JPEG or PNG file → what is near its end
_END_BYTES = 1 << 16
_MIN_FREE = 2 << 30  # bytes that are left free on the disk
_RECOUNTED = 0.01  # of the limit, after which the size of the cache is measured again
_THREADS = 16
_AHEAD = 64  # images that are requested before they are needed


def cache_folder() -> Path:
    """The folder of the cache of remote datasets."""
    return Path(os.environ.get(CACHE) or "~/.cache/modeling_detr").expanduser().absolute() / "remote"


def max_bytes() -> int:
    """The largest size of the cached images.

    Raises:
        DatasetError: The environment has no valid number.
    """
    text = os.environ.get(CACHE_GB) or str(DEFAULT_GB)
    try:
        return max(0, int(float(text) * 1e9))
    except (ValueError, OverflowError) as error:
        raise DatasetError(CACHE_GB, f"got '{text}' in the environment", "expected a number of gigabytes") from error


@dataclass(frozen=True)
class RemoteImages:
    """Reads the images of a remote dataset; an `ImageReader`.

    Attributes:
        address: Address of the dataset's folder.
        tree: The mirror of that folder.
        cache: Folder of the cached images.
    """

    address: str
    tree: str
    cache: str

    def __call__(self, path: str) -> BinaryIO:
        """Read the image at an address, or at its place in the mirror.

        Raises:
            DatasetNotFoundError: It does not exist.
            DatasetReadError: It may not be read.
            StoreError: The store does not answer.
        """
        name = path.removeprefix(self.address).removeprefix(self.tree).lstrip("/")
        file = cached_file(self.cache, name)
        content = _read_cached(file)
        if content is None:
            content = store.read(f"{self.address}/{name}")
            if _seems_whole(content):
                _keep(file, content)
        return io.BytesIO(content)


def cached_file(cache: str, name: str) -> Path:
    """The file of an image in the cache, by its path in the dataset."""
    key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Path(cache, key[:2], key[2:])


def _read_cached(file: Path) -> bytes | None:
    """The content of a cached file; None if it is not there, or damaged, as after a power cut."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    checksum, content = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return content if checksum == _checksum(content) else None


def _seems_whole(content: bytes) -> bool:
    """Whether a content may be kept: not if it is a page, or is cut off, which servers that send no length leave open.

    What is kept is not requested again, so that the error of a moment would last.
    """
    if not content or content.lstrip().startswith(_PAGES):
        return False
    return all(end in content[-_END_BYTES:] for start, end in _ENDS.items() if content.startswith(start))


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES)


def _keep(file: Path, content: bytes) -> None:
    """Put an image into the cache if there is room. A cache that cannot be written is no reason to stop."""
    if not _room.take(len(content)):
        return
    part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(_checksum(content) + content)
        part.replace(file)
    with contextlib.suppress(OSError):
        part.unlink()


class _Room:
    """The room in the cache, which several processes fill: each measures it again from time to time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left, self._step = 0, 0
        self._measured: tuple[Path, int] | None = None  # for which folder and limit

    def take(self, count: int) -> bool:
        """Whether there is room for so many bytes."""
        with self._lock:
            if self._step <= 0 or self._measured != (cache_folder(), max_bytes()):
                self._measure()
            self._step -= count
            self._left -= count
            return self._left >= 0

    def _measure(self) -> None:
        folder, limit = self._measured = cache_folder(), max_bytes()
        self._left = limit - sum(_size_of(images) for images in folder.glob(f"*/{IMAGES}"))
        with contextlib.suppress(OSError):
            self._left = min(self._left, shutil.disk_usage(folder).free - _MIN_FREE)
        self._step = max(1, int(_RECOUNTED * limit))


_room = _Room()


def _size_of(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                size += Path(place, name).stat().st_size
    return size


def make_room(cache: str) -> None:
    """Remove the images of other datasets, those opened longest ago first, until a tenth of the cache is free."""
    limit = max_bytes()
    folders = [folder for folder in cache_folder().glob(f"*/{IMAGES}") if str(folder) != cache]
    sizes = {folder: _size_of(folder) for folder in folders}
    total = sum(sizes.values()) + _size_of(Path(cache))
    for folder in sorted(folders, key=_last_opened):
        if total > 0.9 * limit:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def _last_opened(folder: Path) -> float:
    try:
        return folder.parent.stat().st_mtime
    except OSError:  # the cache is being deleted
        return 0.0


class ReadAhead:
    """Reads images in the order in which they are listed, several at a time, while a dataset is being opened.

    Formats without image sizes in their annotations need the header of every image, one after the other.

    Args:
        reader: Reads one image.
        paths: The images in the mirror, in the order of their names.
    """

    def __init__(self, reader: RemoteImages, paths: Sequence[str]) -> None:
        self._reader = reader
        self._paths = paths
        self._places = {path: place for place, path in enumerate(paths)}
        self._requests: OrderedDict[str, Future[BinaryIO]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS, "remote images")
        self._lock = threading.Lock()

    def __call__(self, path: str) -> BinaryIO:
        """Read an image, and begin to read those after it."""
        place = self._places.get(path)
        if place is None:
            return self._reader(path)
        with self._lock:
            for following in self._paths[place : place + _AHEAD]:
                if following not in self._requests:
                    self._requests[following] = self._pool.submit(self._reader, following)
            request = self._requests[path]
            while len(self._requests) > 4 * _AHEAD:
                self._requests.popitem(last=False)[1].cancel()
        try:
            content = request.result()
        except CancelledError:  # another thread is far away, and its requests have taken the place of this one
            return self._reader(path)
        content.seek(0)
        return io.BytesIO(content.read())

    def close(self) -> None:
        """End the requests that nobody waits for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
