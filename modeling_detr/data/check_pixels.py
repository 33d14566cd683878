"""The pixels of a dataset, for `detr data check`: every image that is decoded leaves a thumbnail of 272 bytes.

A JPEG is decoded at an eighth of its size: this is faster, but still reads the whole file and so detects truncation.
Many images are decoded in other processes, a few in threads (Pillow releases the GIL while it decodes).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from modeling_detr.data.findings import Findings
from modeling_detr.data.image_decoding import read_image
from modeling_detr.data.image_headers import EXIF_ORIENTATION, UNREADABLE_REMEDY
from modeling_detr.data.loader_processes import (
    DEFAULT_TIMEOUT_MINUTES,
    ProcessWatch,
    start_loader_process,
    usable_cores,
)
from modeling_detr.errors_detr import DatasetError, DatasetReadError, DetrError, StoreError
from modeling_detr.structures_detr import DetectionIndex, ImageRecord


# How many images are decoded: all, none, or at most a number of them, drawn at random.
Pixels = Literal["all", "none"] | int

CHUNK = 256  # images that a process decodes at a time
_MANY = 2000  # images, for which other processes are worth their start
_NEAR_BITS = 12  # of 256: near-duplicates differ in at most this many
_MIN_STRUCTURE = 4.0  # images with a smaller standard deviation, in grey levels, are not compared
_NEAR_LEVELS = 6.0  # of 255 grey levels: the largest mean difference of their thumbnails


def images_to_decode(index: DetectionIndex, pixels: Pixels, broken: set[str]) -> NDArray[np.int64]:
    """Indices of the images to decode, in order; those of a sample are the same each time.

    Args:
        index: The dataset.
        pixels: How many.
        broken: Paths of images that are known to be unusable.
    """
    if pixels == "none":
        return np.zeros(0, np.int64)
    chosen = np.arange(len(index))
    if pixels != "all" and pixels < len(index):
        chosen = np.sort(np.random.default_rng(0).choice(len(index), pixels, replace=False))
    if broken:
        chosen = chosen[[index.images[image].path not in broken for image in chosen.tolist()]]
    return chosen.astype(np.int64)


def decode_images(
    index: DetectionIndex,
    images: NDArray[np.int64],
    findings: Findings,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.uint8]:
    """Decode images and report those that cannot be read.

    Args:
        index: The dataset.
        images: Indices of the images.
        findings: Receives the errors.
        num_workers: Processes that decode; 0: threads of this one; None: one per core if there are many images.
        progress: Called with the number of images decoded since the last call.

    Returns:
        Thumbnails (N, 16, 17) uint8 of all images of the dataset, zeros for those that were not decoded.

    Raises:
        LoaderError: One of the processes was killed.
        StoreError: An object store or web server does not answer.
    """
    cores = len(usable_cores())
    if num_workers is None:
        num_workers = cores if cores > 1 and len(images) >= _MANY else 0
    thumbnails = np.zeros((len(index), 16, 17), np.uint8)
    chunks = _Chunks(index, [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)])
    decoded = _in_processes(chunks, num_workers) if num_workers else _in_threads(chunks, cores)
    for members, chunk in zip(chunks.members, decoded, strict=True):
        thumbnails[members] = chunk.thumbnails
        for image, (kind, error) in chunk.errors.items():
            findings.add(kind, error, image=index.images[image].path)
        progress(len(members))
    return thumbnails


class _Decoded(NamedTuple):
    """A chunk of images: their thumbnails, and index → kind and error of those that cannot be read."""

    thumbnails: NDArray[np.uint8]
    errors: dict[int, tuple[str, DetrError]]


class _Chunks(Dataset[_Decoded]):
    """Number of a chunk → its images, decoded.

    Args:
        index: The dataset.
        members: Indices of the images of each chunk.
    """

    def __init__(self, index: DetectionIndex, members: Sequence[NDArray[np.int64]]) -> None:
        self.index, self.members = index, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> _Decoded:
        return self.decode(number, map)

    def decode(self, number: int, map_: Callable[..., Any]) -> _Decoded:
        """Decode a chunk; `map_` is Python's, or that of a pool of threads."""
        members = self.members[number].tolist()
        thumbnails, errors = np.zeros((len(members), 16, 17), np.uint8), {}
        for row, result in enumerate(map_(self._decode_image, members)):
            if isinstance(result, tuple):
                errors[members[row]] = result
            else:
                thumbnails[row] = result
        return _Decoded(thumbnails, errors)

    def names(self, number: int) -> list[str]:
        """The paths of the images of a chunk."""
        return [self.index.images[image].path for image in self.members[number].tolist()]

    def _decode_image(self, image: int) -> NDArray[np.uint8] | tuple[str, DetrError]:
        record = self.index.images[image]
        try:
            return _thumbnail(record)
        except StoreError:  # every other image would take as long
            raise
        except DatasetError as error:
            return "image size", error
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, DetrError):
                return "unreadable image", error
            return "unreadable image", DatasetReadError(record.path, str(error), UNREADABLE_REMEDY)


def _in_threads(chunks: _Chunks, threads: int) -> Iterator[_Decoded]:
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        _silence(0)
        for number in range(len(chunks)):
            yield chunks.decode(number, pool.map)


def _in_processes(chunks: _Chunks, num_workers: int) -> Iterator[_Decoded]:
    loader = DataLoader(
        chunks,
        batch_size=None,
        num_workers=min(num_workers, max(1, len(chunks))),
        collate_fn=_unchanged,
        persistent_workers=True,  # else they end by themselves, which the watch would take for a failure
        worker_init_fn=partial(start_loader_process, _silence),
    )
    iterator: Any = iter(loader)
    watch = ProcessWatch(iterator, chunks.index.name, chunks.names, DEFAULT_TIMEOUT_MINUTES)
    try:
        while (chunk := watch.wait_for(partial(next, iterator, None))) is not None:
            yield chunk
    finally:
        iterator._shutdown_workers()


def _silence(_: int) -> None:
    warnings.simplefilter("ignore")  # Pillow warns about odd metadata and large images


def _unchanged(chunk: Any) -> Any:
    return chunk


def _thumbnail(record: ImageRecord) -> NDArray[np.uint8]:
    """Read the whole image and shrink it to 16 x 17 grey pixels; raises what `read_image` raises."""
    if record.reader is None and Path(record.path).is_file():
        try:
            with Image.open(record.path) as image:
                orientation = image.getexif().get(EXIF_ORIENTATION, 1) if image.format == "JPEG" else 1
                upright = (image.height, image.width) == (record.height, record.width)
                if image.format == "JPEG" and orientation == 1 and upright:
                    image.draft("L", (image.width // 8, image.height // 8))
                    return _shrink(image)
        except (OSError, SyntaxError):
            pass  # `read_image` explains what is wrong
    return _shrink(Image.fromarray(read_image(record).permute(1, 2, 0).numpy()))


def _shrink(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX))


def alike(thumbnails: NDArray[np.uint8], membership: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Find pairs of images from different splits whose thumbnails have nearly the same gradients and grey levels.

    The signs of the 256 horizontal gradients are compared. Candidate pairs share one of 16 bands of 16 signs, as two
    images that differ in fewer than 16 signs always do. Images without structure are skipped, and if many images
    share a band, each is compared only with the next 32.
    """
    signs = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    bits = np.packbits(signs.reshape(len(thumbnails), 256), axis=1)  # (N, 32)
    structured = np.array([thumbnail.std() > _MIN_STRUCTURE for thumbnail in thumbnails], dtype=np.bool_)
    structured &= membership.any(1)
    pair_of: dict[int, int] = {}
    for band in range(16):
        part = bits[:, 2 * band].astype(np.int64) << 8 | bits[:, 2 * band + 1]
        order = np.argsort(part, kind="stable")
        order = order[structured[order]]
        for step in range(1, 33):
            left, right = order[:-step], order[step:]
            rows = part[left] == part[right]
            if not rows.any():
                break
            left, right = left[rows], right[rows]
            rows = ~(membership[left] & membership[right]).any(1)
            left, right = left[rows], right[rows]
            for start in range(0, len(left), 65536):
                one, two = left[start : start + 65536], right[start : start + 65536]
                near = np.bitwise_count(bits[one] ^ bits[two]).sum(1) <= _NEAR_BITS
                for first, second in zip(one[near].tolist(), two[near].tolist(), strict=True):
                    first, second = min(first, second), max(first, second)
                    levels = np.abs(thumbnails[first].astype(np.int16) - thumbnails[second]).mean()
                    if second not in pair_of and levels <= _NEAR_LEVELS:
                        pair_of[second] = first
    return sorted((first, second) for second, first in pair_of.items())
