"""Build the data loaders of one process.

Pixels stay uint8 and are normalised on the device; see `batch_to_device`.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, get_worker_info

from modeling_detr.data.augmentation.policy import SampleTransform
from modeling_detr.data.augmentation.transforms import eval_transform
from modeling_detr.data.batch import DetrCollator
from modeling_detr.data.batch_transfer import prepare_for_transfer
from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.data.findings import counted
from modeling_detr.data.loader_processes import DEFAULT_TIMEOUT_MINUTES, ProcessWatch, start_loader_process
from modeling_detr.data.sampler import EvalBatchSampler, TrainBatchSampler
from modeling_detr.errors_detr import DatasetReadError, LoaderError, ModelError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.structures_detr import DetectionBatch, DetectionIndex, DetectionSample


_MAX_UNREADABLE = 0.01  # share of the images without which training continues


if TYPE_CHECKING:
    from accelerate import Accelerator


class BatchLoader(DataLoader[Any]):
    """A `DataLoader` whose processes cannot keep a run waiting forever: each wait for a batch has a limit.

    Its batches are checked against the classes of the dataset.

    Args:
        dataset: The samples.
        sampler: Yields the batches of this process.
        num_workers: Number of loader processes; 0: load in this process.
        pin_memory: Put batches into pinned memory, for faster copies to a GPU.
        worker_init_fn: Called in each loader process with its index.
        loader_timeout_minutes: Maximum time to wait for a batch of a loader process; 0: no limit.

    Attributes:
        unreadable: Images that could not be read so far and were replaced by others (see `DetectionDataset`), index →
            reason.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: TrainBatchSampler | EvalBatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        worker_init_fn: Callable[[int], None] | None = None,
        loader_timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES,
    ) -> None:
        index = dataset.index
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=_LoaderCollator(len(index.categories), index.image_paths),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=partial(start_loader_process, worker_init_fn),
        )
        self._index = index
        self._sampler = sampler
        self._minutes = loader_timeout_minutes
        self._watch: ProcessWatch | None = None
        self.unreadable: dict[int, str] = {}

    def __iter__(self) -> Any:
        """Iterate over the batches of an epoch.

        Raises:
            LoaderError: The loader processes cannot start, or one has ended or keeps the run waiting for too long.
            DatasetReadError: More than 1% of the images cannot be read.
        """
        for batch in super().__iter__() if self.num_workers == 0 else self._watched_batches():
            self.count_unreadable(batch)
            yield batch

    def check_worker_number_rationality(self) -> None:
        """Does nothing: PyTorch warns twice of more processes than cores; a run reports when it waits for them."""

    def close(self) -> None:
        """End the loader processes; the next iteration starts new ones."""
        iterator, self._iterator, self._watch = self._iterator, None, None
        if iterator is not None and self.num_workers > 0:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # as PyTorch does when it is collected

    def count_unreadable(self, batch: DetectionBatch) -> None:
        """Move the images of a batch that could not be read from the batch to `unreadable`.

        Raises:
            DatasetReadError: They are now more than 1% of all images.
        """
        images = batch.pop("unreadable", {})
        self.unreadable.update(images)
        if images and len(self.unreadable) > max(1, _MAX_UNREADABLE * len(self._index)):
            problem = f"{len(self.unreadable)} of {len(self._index)} images cannot be read, more than "
            problem += f"{_MAX_UNREADABLE:.0%}: {'; '.join(list(self.unreadable.values())[:3])}"
            raise DatasetReadError(self._index.name, problem, "restore them, or train on a copy without them")

    def _watched_batches(self) -> Iterator[DetectionBatch]:
        if self._watch is None:
            iterator = self._start_processes()
            # without a reference to this loader: Python's garbage collector ends iterators in cycles in any order, and
            # closes the pipes that their threads still use
            images_of = partial(_images_of, self._index, self._sampler)
            self._watch = ProcessWatch(iterator, self._index.name, images_of, self._minutes)
        else:
            iterator = self._watch.wait_for(super().__iter__)
        while (batch := self._watch.wait_for(partial(next, iterator, None))) is not None:
            yield batch

    def _start_processes(self) -> Any:
        try:
            return super().__iter__()
        except OSError as error:
            remedy = "lower num_workers, or load the images in the main process"
            if error.errno == errno.ENOSPC:
                remedy = "/dev/shm is full: start the container with --shm-size=1g, or load in the main process"
            problem = (
                f"{counted(self.num_workers, 'loader process', 'loader processes')} cannot start ({error.strerror})"
            )
            raise LoaderError(self._index.name, problem, remedy, {"num_workers": 0}) from error


def _images_of(index: DetectionIndex, sampler: TrainBatchSampler | EvalBatchSampler, batch: int) -> Sequence[str]:
    keys: Sequence[SampleKey] = next(islice(sampler, batch, None), ())
    return [index.image_paths[key.image_index] for key in keys]


class _LoaderCollator(DetrCollator):
    """A collator that prepares batches for their way out of a loader process."""

    def __call__(self, samples: Sequence[DetectionSample]) -> DetectionBatch:
        batch = super().__call__(samples)
        if get_worker_info() is None:
            return batch
        prepared: DetectionBatch = prepare_for_transfer(batch)
        return prepared


def build_eval_loader(
    index: DetectionIndex,
    transform: SampleTransform | None,
    accelerator: "Accelerator | None" = None,
    *,
    batch_size: int,
    masks: bool = False,
    max_pixels: int | None = None,
    num_workers: int = 0,
    worker_init_fn: Callable[[int], None] | None = None,
    loader_timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES,
    replace_unreadable: bool = False,
) -> BatchLoader:
    """Build a loader for evaluation. Its batches do not depend on the number of processes.

    Args:
        index: The dataset; its labels are the model's.
        transform: Resizes the images; None: they keep their size.
        accelerator: Provides the number of processes, the index of this one, and its device. None: one process.
        batch_size: Images per batch.
        masks: Load masks too.
        max_pixels: Upper limit for the pixels of a batch, including padding; None: no limit.
        num_workers: See `BatchLoader`.
        worker_init_fn: See `BatchLoader`.
        loader_timeout_minutes: See `BatchLoader`.
        replace_unreadable: See `DetectionDataset`; an image may then be loaded twice.
    """
    dataset = DetectionDataset(index, transform, masks=masks, replace_unreadable=replace_unreadable)
    sampler = EvalBatchSampler(
        dataset,
        batch_size,
        max_pixels=max_pixels,
        num_processes=1 if accelerator is None else accelerator.num_processes,
        process_index=0 if accelerator is None else accelerator.process_index,
    )
    return BatchLoader(
        dataset,
        sampler,
        num_workers=num_workers,
        pin_memory=accelerator is not None and accelerator.device.type == "cuda",
        worker_init_fn=worker_init_fn,
        loader_timeout_minutes=loader_timeout_minutes,
    )


def resize_transform(processor: DetrTorchvisionImageProcessor) -> SampleTransform | None:
    """The transform that resizes images as the processor does; None if it does not resize.

    Raises:
        ModelError: The processor changes the aspect ratio of images.
    """
    if not processor.do_resize:
        return None
    if processor.size.shortest_edge is None:
        raise ModelError(
            "preprocessor_config.json",
            f"got size {dict(processor.size)}, expected shortest_edge (and longest_edge)",
            "evaluation requires a size that keeps the aspect ratio",
        )
    return eval_transform(processor.size.shortest_edge, processor.size.longest_edge)
