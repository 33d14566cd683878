"""Build the data loaders of one process.

Pixels stay uint8 and are normalised on the device; see `batch_to_device`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from modeling_detr.data.augmentation.policy import SampleTransform
from modeling_detr.data.batch import DetrCollator
from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.data.sampler import EvalBatchSampler, TrainBatchSampler
from modeling_detr.structures_detr import DetectionIndex


if TYPE_CHECKING:
    from accelerate import Accelerator


def build_loader(
    dataset: DetectionDataset,
    sampler: TrainBatchSampler | EvalBatchSampler,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    worker_init_fn: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """Build a loader whose batches are checked against the classes of the dataset.

    Args:
        dataset: The samples.
        sampler: Yields the batches of this process.
        num_workers: Number of loader processes; 0: load in this process.
        pin_memory: Put batches into pinned memory, for faster copies to a GPU.
        worker_init_fn: Called in each loader process with its index.
    """
    index = dataset.index
    names = [image.path for image in index.images]
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=DetrCollator(len(index.categories), names),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=worker_init_fn,
    )


def build_eval_loader(
    index: DetectionIndex,
    transform: SampleTransform | None,
    accelerator: "Accelerator",
    *,
    batch_size: int,
    masks: bool = False,
    max_pixels: int | None = None,
    num_workers: int = 0,
    worker_init_fn: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """Build a loader for evaluation. Its batches do not depend on the number of processes.

    Args:
        index: The dataset; its labels are the model's.
        transform: Resizes the images; None: they keep their size.
        accelerator: Provides the number of processes, the index of this one, and its device.
        batch_size: Images per batch.
        masks: Load masks too.
        max_pixels: Upper limit for the pixels of a batch, including padding; None: no limit.
        num_workers: See `build_loader`.
        worker_init_fn: See `build_loader`.
    """
    dataset = DetectionDataset(index, transform, masks=masks)
    sampler = EvalBatchSampler(
        dataset,
        batch_size,
        max_pixels=max_pixels,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    return build_loader(
        dataset,
        sampler,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=worker_init_fn,
    )
