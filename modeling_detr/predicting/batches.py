"""Read and prepare images in other processes, in batches of images that have the same size for the model.

Batches are never padded: padding would change the predictions. Images of a set mostly share a few sizes, so batches
are full nevertheless; those that are left over form smaller ones.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modeling_detr.data.image_headers import header_size
from modeling_detr.errors_detr import LoaderError, StoreError, printable
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.predicting.inputs import InputImage


POOL = 4096  # images that are sorted by size at a time


class PreparedBatch(NamedTuple):
    """Images that are ready for the model.

    images: their indices. inputs: what the image processor returns; empty if the images are only read. sizes:
    (height, width) of each original image. pixels: the original images (3, H, W) uint8; None if they are not needed.
    unreadable: index → reason of images that could not be read, which are in none of the other fields.
    """

    images: list[int]
    inputs: dict[str, Tensor]
    sizes: list[tuple[int, int]]
    pixels: list[Tensor] | None
    unreadable: dict[int, str]


class PreparedBatches:
    """The batches of a run.

    Args:
        images: All images.
        indices: Those to prepare, in this order as far as batches allow.
        processor: The model's image processor; None: the images are only read.
        batch_size: Images per batch.
        num_workers: Processes that read and prepare them; 0: this one.
        keep_pixels: Whether the original images are needed.
        pool: Consecutive images that may share a batch; a batch never has images of two pools.
    """

    def __init__(
        self,
        images: Sequence[InputImage],
        indices: Sequence[int],
        processor: DetrTorchvisionImageProcessor | None,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        keep_pixels: bool = True,
        pool: int = POOL,
    ) -> None:
        dataset = _Batches(images, [*_plan(images, indices, batch_size, pool)], processor, keep_pixels)
        self._loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[PreparedBatch]:
        """Iterate over the batches; a planned batch whose images turn out to differ in size becomes several.

        Raises:
            LoaderError: A loader process was killed, or cannot start.
        """
        iterator = None
        try:
            iterator = iter(self._loader)
            for parts in iterator:
                yield from parts
        except (RuntimeError, OSError) as error:
            if not self._num_workers or not _is_of_a_process(error):
                raise
            problem = f"one of {self._num_workers} loader processes has ended ({str(error).partition(chr(10))[0]})"
            remedy = "memory may have run out; lower num_workers, or load the images in the main process"
            raise LoaderError("the images", problem, remedy, {"num_workers": 0}) from error


class _Batches(Dataset[list[PreparedBatch]]):
    """Batch index → its images, read and prepared."""

    def __init__(
        self,
        images: Sequence[InputImage],
        batches: Sequence[Sequence[int]],
        processor: DetrTorchvisionImageProcessor | None,
        keep_pixels: bool,
    ) -> None:
        self.images, self.batches, self.processor, self.keep_pixels = images, batches, processor, keep_pixels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> list[PreparedBatch]:
        by_shape: dict[tuple[int, ...], list[tuple[int, dict[str, Tensor], Tensor]]] = defaultdict(list)
        unreadable = {}
        for index in self.batches[batch]:
            try:
                pixels = self.images[index].read()
                inputs = {} if self.processor is None else dict(self.processor(pixels))
            except StoreError:  # every other image would take as long
                raise
            except Exception as error:  # Pillow and servers raise almost anything
                unreadable[index] = printable(" ".join(str(error).split()) or type(error).__name__)
                continue
            shape = tuple(inputs["pixel_values"].shape if inputs else pixels.shape)
            by_shape[shape].append((index, inputs, pixels))
        prepared = [_joined(group, self.keep_pixels) for group in by_shape.values()]
        if unreadable:
            prepared.append(PreparedBatch([], {}, [], None, unreadable))
        return prepared


def _unchanged(batches: list[PreparedBatch]) -> list[PreparedBatch]:
    return batches


def _joined(group: Sequence[tuple[int, dict[str, Tensor], Tensor]], keep_pixels: bool) -> PreparedBatch:
    images, inputs, pixels = zip(*group, strict=True)
    return PreparedBatch(
        list(images),
        {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]},
        [(image.shape[-2], image.shape[-1]) for image in pixels],
        list(pixels) if keep_pixels else None,
        {},
    )


def _plan(images: Sequence[InputImage], indices: Sequence[int], batch_size: int, pool: int) -> Iterator[list[int]]:
    """Batches of images with the same size in their headers, by their first image."""
    if batch_size == 1:
        yield from ([index] for index in indices)
        return
    for start in range(0, len(indices), pool):
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        batches = []
        for index in indices[start : start + pool]:
            size = _size_in_header(images[index])
            group = [] if size is None else by_size[size]
            if not group:
                batches.append(group)
            group.append(index)
            if size is not None and len(group) == batch_size:
                by_size[size] = []
        yield from batches


def _size_in_header(image: InputImage) -> tuple[int, int] | None:
    """Height and width; None if they are not known without reading the image."""
    if image.record is not None:
        return image.record.height, image.record.width
    if image.opener is not None:
        return None
    try:
        return header_size(image.source)
    except Exception:  # reported when it is read
        return None


def _is_of_a_process(error: Exception) -> bool:
    return "DataLoader worker" in str(error) or "unable to open shared memory" in str(error)
