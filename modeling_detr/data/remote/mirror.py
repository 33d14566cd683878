"""A mirror of a remote dataset on this machine: its files of annotations, and an empty file for each image.

So every format finds its files as on a disk, and the store is asked once for each folder. A mirror is brought up to
date each time that the dataset is opened; only files that have changed are downloaded again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tqdm import tqdm

from modeling_detr.atomic_output import replace_text
from modeling_detr.data.remote import store
from modeling_detr.data.remote.images import IMAGES, TREE, RemoteImages, cache_folder, cached_file, make_room
from modeling_detr.errors_detr import (
    DatasetError,
    DatasetNotFoundError,
    DatasetReadError,
    FileContentError,
    OutputError,
)
from modeling_detr.folder_lock import locked
from modeling_detr.input_files import read_json
from modeling_detr.output_errors import explained_output


ANNOTATIONS = frozenset(
    ["json", "jsonl", "xml", "txt", "csv", "tsv", "yaml", "yml", "names", "data", "parquet", "arrow"]
)  # what files are downloaded when a dataset is opened, by their suffix
_ABOVE = ("annotations", "annotation")  # folders of annotation files, beside those of images
_MAX_FILES = 20_000_000
_MAX_DEPTH = 32
_MAX_NAME_BYTES = 240  # file systems have 255, of which a download that is not complete needs some
_THREADS = 16
_LISTING = "listing.json"
_QUIET_SECONDS = 10  # of waiting for another process, before it is named


@dataclass(frozen=True)
class Mirror:
    """A mirror of a remote folder.

    Attributes:
        address: Address of the folder, without a slash at its end.
        tree: The folder on this machine; its name is that of the remote one.
        reader: Reads its images.
        images: Paths of the images in `tree`, in the order of their names.
    """

    address: str
    tree: Path
    reader: RemoteImages
    images: tuple[str, ...]


class _File(dict[str, Any]):
    """A file of the listing: `size` and `version`, either of which may be unknown."""


def open_mirror(address: str) -> tuple[Mirror, Path]:
    """Bring the mirror of a dataset up to date.

    Args:
        address: A folder, or a file of annotations, whose folder is then mirrored, or if that is named `annotations`
            the one above it.

    Returns:
        The mirror, and the place in it that `address` stands for.

    Raises:
        DatasetNotFoundError: There is nothing at the address.
        DatasetReadError: It may not be read.
        StoreError: The store does not answer.
        DatasetError: The address, or the name of a file, cannot be used.
        OutputError: The cache cannot be written.
    """
    root, inner = _root_of(address)
    home = cache_folder() / hashlib.sha256(root.encode()).hexdigest()[:16]
    tree = home / TREE / root.rpartition("/")[2]
    reader = RemoteImages(root, str(tree), str(home / IMAGES))
    asked = time.time()
    with explained_output(home):
        tree.mkdir(parents=True, exist_ok=True)
    with _turn(home, root):
        listing = home / _LISTING
        if listing.is_file() and listing.stat().st_mtime > asked:  # by another process of this run, meanwhile
            files = _read_listing(listing)
        else:
            make_room(reader.cache)
            files = _update(root, tree, reader, listing)
    images = tuple(f"{tree}/{name}" for name in sorted(files) if not _is_annotation(name))
    return Mirror(root, tree, reader, images), tree / inner


def _root_of(address: str) -> tuple[str, str]:
    """The folder to mirror, and the place in it that an address stands for."""
    plain = address.partition("?")[0].rstrip("/")
    if "?" in address or "#" in address:
        raise DatasetError(plain, "an address with '?' or '#'", "pass the address of a folder or file without them")
    start, _, rest = plain.partition("://")
    parts = rest.split("/")
    if not all(part not in ("", ".", "..") for part in parts):
        raise DatasetError(plain, "not an address of a folder", "expected one such as s3://bucket/folder")
    inner = 0
    if _is_annotation(parts[-1]) and len(parts) > 1:
        inner = 2 if len(parts) > 2 and parts[-2].lower() in _ABOVE else 1
    outer = len(parts) - inner
    return f"{start}://{'/'.join(parts[:outer])}", "/".join(parts[outer:])


@contextlib.contextmanager
def _turn(home: Path, address: str) -> Iterator[None]:
    """Wait until no other process updates the mirror. The lock of one that ends, however it does, is released."""

    class Busy(OutputError):
        pass

    began, is_told = time.monotonic(), False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(home / ".lock", lambda holder: Busy(address, f"{holder} lists it")))
            except Busy as busy:
                if not is_told and time.monotonic() - began > _QUIET_SECONDS:
                    print(f"waiting  {busy}", file=sys.stderr)
                    is_told = True
                time.sleep(0.2)
                continue
            yield
            return


def _read_listing(listing: Path) -> dict[str, _File]:
    try:
        content = read_json(listing)
        return {str(name): _File(file) for name, file in content["files"].items()}
    except (OSError, FileContentError, KeyError, TypeError, ValueError, AttributeError):
        return {}  # damaged, or of another version: everything is downloaded again


def _update(root: str, tree: Path, reader: RemoteImages, listing: Path) -> dict[str, _File]:
    files = _list_tree(root)
    if not files:
        raise DatasetNotFoundError(root, "the store has no files there", "check the address")
    known = _read_listing(listing)
    wanted = {name: file for name, file in files.items() if _is_annotation(name)}
    unknown = [name for name, file in wanted.items() if not file["version"]]
    with ThreadPoolExecutor(_THREADS) as pool:
        versions = pool.map(store.version_of, (f"{root}/{name}" for name in unknown))
        for name, version in zip(unknown, versions, strict=True):
            wanted[name]["version"] = version
    with explained_output(listing.parent):
        _remove_others(tree, files)
        for name, file in files.items():
            if name in wanted:
                continue
            if name in known and known[name] != file:
                cached_file(reader.cache, name).unlink(missing_ok=True)
            if name not in known or not (tree / name).exists():
                _make_empty(tree / name)
    changed = {name: file for name, file in wanted.items() if known.get(name) != file or not file["version"]}
    changed |= {name: file for name, file in wanted.items() if not _is_whole(tree / name, file)}
    _download(root, tree, changed)
    replace_text(listing, json.dumps({"address": root, "files": files}))
    return files


def _list_tree(root: str) -> dict[str, _File]:
    """List all files below an address, by their path in it; hidden ones are left out.

    fsspec's own `find` leaves out folders that cannot be listed, without an error.
    """
    files: dict[str, _File] = {}
    waiting: dict[Future[list[store.Entry]], str] = {}  # request → its folder, with a slash at its end
    title = f"list {root}"
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(desc=title, unit=" files", disable=None, leave=False) as bar:
        try:
            waiting[pool.submit(store.list_folder, root)] = ""
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for request in done:
                    for name in _sort_entries(root, waiting.pop(request), request.result(), files):
                        waiting[pool.submit(store.list_folder, f"{root}/{name}")] = f"{name}/"
                bar.update(len(files) - bar.n)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: files[name] for name in sorted(files)}


def _sort_entries(root: str, folder: str, entries: Sequence[store.Entry], files: dict[str, _File]) -> list[str]:
    """Add the files of a folder to `files`, and return the folders in it."""
    if folder.count("/") > _MAX_DEPTH or len(files) > _MAX_FILES:
        problem = f"more than {_MAX_FILES:,} files, or folders in folders, {_MAX_DEPTH} deep"
        raise DatasetError(root, problem, "choose the folder of one dataset")
    folders = []
    inner = {entry.name for entry in entries if entry.is_folder}
    for entry in entries:
        if entry.name.startswith(".") or "\0" in entry.name or PurePath(entry.name).name != entry.name:
            continue
        if len(os.fsencode(entry.name)) > _MAX_NAME_BYTES:
            problem = f"the name has more than {_MAX_NAME_BYTES} bytes, so no file of this machine can have it"
            raise DatasetError(f"{root}/{folder}{entry.name}", problem, "rename it in the store")
        if entry.is_folder:
            folders.append(f"{folder}{entry.name}")
        elif entry.name not in inner:  # in a bucket, an object and a folder may share a name
            files[f"{folder}{entry.name}"] = _File(size=entry.size, version=entry.version)
    return folders


def _remove_others(tree: Path, files: Mapping[str, _File]) -> None:
    """Remove the files and folders of the mirror that the store no longer has."""
    for folder, inner, names in os.walk(tree, topdown=False):
        start = "" if Path(folder) == tree else f"{Path(folder).relative_to(tree).as_posix()}/"
        for name in names:
            if f"{start}{name}" not in files:
                Path(folder, name).unlink()
        for name in inner:
            with contextlib.suppress(OSError):  # not empty
                Path(folder, name).rmdir()


def _is_whole(place: Path, file: _File) -> bool:
    """Whether a file is there, with the size that it has in the store, as far as that is known."""
    size = file["size"]
    if size is None and file["version"] and str(file["version"][0]).isdigit():
        size = int(file["version"][0])  # of `store.version_of`
    try:
        return place.is_file() and size in (None, place.stat().st_size)
    except OSError:
        return False


def _make_empty(place: Path) -> None:
    try:
        place.touch()
    except FileNotFoundError:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _download(root: str, tree: Path, files: Mapping[str, _File]) -> None:
    size = sum(file["size"] or 0 for file in files.values())
    free = shutil.disk_usage(tree).free
    if size > free:
        problem = f"its annotation files have {size:,} bytes, and the disk of the cache has {free:,} left"
        raise DatasetReadError(root, problem, "set DETR_CACHE to a folder on a larger disk")

    def fetch(name: str) -> None:
        with explained_output(tree):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
        store.download(f"{root}/{name}", tree / name, files[name]["size"])

    title = f"download annotations of {root}"
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=len(files), desc=title, unit=" files", disable=None, leave=False) as bar,
    ):
        requests = [pool.submit(fetch, name) for name in files]
        try:
            for request in requests:
                request.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_annotation(name: str) -> bool:
    return name.rpartition(".")[2].lower() in ANNOTATIONS
