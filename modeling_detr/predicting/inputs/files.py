"""Images in files: single ones, folders with their subfolders, and patterns in quotes."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from modeling_detr.image_reading_detr import open_image
from modeling_detr.input_files import require_file
from modeling_detr.predicting.inputs.input_image import FoundImage


def is_anything(_text: str) -> bool:
    """True: what is no other kind of input is a path."""
    return True


def find_files(text: str, ignored: Sequence[Path]) -> Iterator[FoundImage]:
    """The images that a path or a pattern stands for.

    Args:
        text: An image, a folder to search with its subfolders, or a pattern (`photos/**/*.jpg`).
        ignored: Folders that are not searched, unless the path leads into them.

    Raises:
        ValueError: There is no such file, it is not an image, or there are no images.
    """
    path = Path(text)
    if path.is_dir():
        images = [file for file in sorted(path.rglob("*")) if _has_image_suffix(file) and file.is_file()]
        images = _without_ignored(images, ignored, path)
        if not images:
            raise ValueError(f"{text}: no images in this folder.")
        yield from (FoundImage(file.relative_to(path), str(file)) for file in images)
    elif path.exists() or not glob.has_magic(text):
        yield FoundImage(Path(path.name), _checked(text))
    else:
        root, pattern = split_pattern(text)
        matches = [file for file in sorted(root.glob(pattern)) if file.is_file() and _has_image_suffix(file)]
        matches = _without_ignored(matches, ignored, root)
        if not matches:
            raise ValueError(f"{text}: no image matches this pattern.")
        yield from (FoundImage(file.relative_to(root), str(file)) for file in matches)


def _checked(text: str) -> str:
    path = Path(text)
    if not path.exists():
        if "://" in text:
            raise ValueError(f"{text}: this kind of URL is not read, expected http:// or https://, or a path.")
        raise ValueError(f"{path}: no such image or folder.")
    require_file(path)
    if not _has_image_suffix(path) and not _is_image(path):
        raise ValueError(f"{path}: not an image; expected images or folders with images.")
    return str(path)


def _has_image_suffix(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions()


def _is_image(path: Path) -> bool:
    try:
        with open_image(path):
            return True
    except Exception:  # Pillow raises almost anything for a hostile image
        return False


def _without_ignored(files: list[Path], ignored: Sequence[Path], searched: Path) -> list[Path]:
    """Leaves out files in the folders `ignored`, but for a folder in which `searched` is."""
    inside = searched.resolve().parents
    folders = {folder.resolve() for folder in ignored}.difference(inside)
    return [file for file in files if folders.isdisjoint(file.resolve().parents)] if folders else files


def split_pattern(text: str) -> tuple[Path, str]:
    """The folder of a pattern before its first part with a wildcard, and the rest.

    Raises:
        ValueError: `**` is not a part of its own.
    """
    parts = Path(text).parts
    if any("**" in part and part != "**" for part in parts):
        raise ValueError(f"{text}: got ** beside other characters, expected it alone, as in folder/**/*.jpg.")
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first]), str(Path(*parts[first:]))
