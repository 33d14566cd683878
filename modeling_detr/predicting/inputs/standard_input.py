"""Standard input, `-`: an image, or the paths and URLs of images, one in each line.

cat photo.jpg | detr predict runs/mine -
find photos -name '*.jpg' | detr predict runs/mine -
"""

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from modeling_detr.predicting.inputs.files import find_files
from modeling_detr.predicting.inputs.input_image import FoundImage
from modeling_detr.predicting.inputs.web import find_on_the_web, is_url


NAME = "stdin"
_MAX_BYTES = 1_000_000_000


def is_standard_input(text: str) -> bool:
    """Whether a text stands for standard input."""
    return text == "-"


def find_in_standard_input(_text: str, ignored: Sequence[Path]) -> Iterator[FoundImage]:
    """The image on standard input, or those whose paths or URLs are.

    Raises:
        ValueError: It is closed, empty, too large, or neither; or a path does not exist.
    """
    if sys.stdin is None:  # `<&-` in a shell, or a service without one
        raise ValueError("standard input is closed, expected an image, or paths of images in lines.")
    content = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if not content:
        raise ValueError("standard input is empty, expected an image, or paths of images in lines.")
    if len(content) > _MAX_BYTES:
        raise ValueError(f"standard input has more than {_MAX_BYTES / 1e9:.0f} GB, expected an image, or paths.")
    suffix = _image_suffix(content)
    if suffix is not None:
        version = hashlib.sha256(content).hexdigest()
        yield FoundImage(Path(f"{NAME}{suffix}"), "-", partial(_open, content), version=version)
        return
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()  # of find -print0, or of find
    for line in filter(None, lines):
        text = os.fsdecode(line)
        if not text.isprintable() and not os.path.lexists(text):  # a damaged image, or one in an unknown format
            raise ValueError("standard input is neither an image that can be read nor paths of images in lines.")
        yield from find_on_the_web(text, ignored) if is_url(text) else find_files(text, ignored)


def _image_suffix(content: bytes) -> str | None:
    """The suffix of the format of an encoded image; None if it is no image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f".{(image.format or 'png').lower()}".replace(".jpeg", ".jpg")
    except Exception:  # Pillow raises almost anything for what is not an image
        return None


def _open(content: bytes, _source: str) -> BinaryIO:
    return io.BytesIO(content)
