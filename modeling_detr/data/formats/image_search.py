"""Find the images that annotation tools name: by paths of another machine, by URLs, or without a suffix."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from modeling_detr.data.image_paths import is_image_name, walk_folders


_DRIVE = re.compile(r"^[A-Za-z]:")


class ImageSearch:
    """The images in some folders, listed once, and found by the longest matching end of a path."""

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self.paths: dict[str, tuple[str, ...]] = {}  # path → its folded parts
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for folder, names in (entry for root in folders for entry in walk_folders(os.path.normpath(root))):
            parents = tuple(map(_folded, folder.split("/")))
            for name in filter(is_image_name, names):
                path, folded = f"{folder}/{name}", _folded(name)
                if path not in self.paths:
                    self.paths[path] = (*parents, folded)
                    self._by_name.setdefault(folded, []).append(path)
                    self._by_stem.setdefault(folded.rpartition(".")[0], []).append(path)

    def find(self, names: Sequence[str], folder: str, hint: str | None = None) -> list[str]:
        """Find an image by its names, in order; returns several paths if they are equally good, and none if none is.

        A path relative to `folder`, or to `images` in it or beside it, comes first. Otherwise the path that shares
        most of its last parts with the name is the best, then the one with exactly this file name, then the one in a
        folder most like `folder`, then the one in a folder named `hint`. Case, the form of accents and
        percent-encoding do not matter where nothing matches exactly.

        Args:
            names: Names as written, with folders; one without an image suffix is the stem of the image.
            folder: The folder of the annotations.
            hint: A split.
        """
        for name in names:
            written = _DRIVE.sub("", name.replace("\\", "/"))
            for place in (written, f"images/{written}", f"../images/{written}"):
                exact = os.path.normpath(f"{folder}/{place}")
                if exact in self.paths:
                    return [exact]
            parts = tuple(_folded(part) for part in written.split("/") if part not in ("", ".", ".."))
            if not parts:
                continue
            found = self._by_name.get(parts[-1]) or self._by_stem.get(parts[-1]) or []
            if len(found) > 1:
                ranks = [self._rank(path, written, parts, folder, hint) for path in found]
                best = max(ranks)
                found = [path for path, rank in zip(found, ranks, strict=True) if rank == best]
            if found:
                return found
        return []

    def _rank(self, path: str, written: str, parts: Sequence[str], folder: str, hint: str | None) -> tuple[int, ...]:
        """How well a path fits; see `find`."""
        folded = self.paths[path]
        return (
            _common_end(folded[:-1], parts[:-1]),
            path.endswith(f"/{written.rpartition('/')[2]}"),
            _common_end(path.split("/")[-2::-1], folder.split("/")[::-1])
            + _common_end(path.split("/")[:-1], folder.split("/")),  # labels/train, images/train
            hint is not None and hint.lower() in folded,
        )


def _common_end(path: Sequence[str], name: Sequence[str]) -> int:
    count = 0
    while count < min(len(path), len(name)) and path[-1 - count] == name[-1 - count]:
        count += 1
    return count


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name, errors="surrogateescape") if "%" in name else name).lower()
