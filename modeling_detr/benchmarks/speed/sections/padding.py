"""The share of padding in the pixels of training batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.benchmarks.speed.agreement import check_agreement
from modeling_detr.benchmarks.speed.generated_images import coco_sizes
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, SHARE, STOCK, Measurement
from modeling_detr.benchmarks.speed.original_checkout import OriginalCheckout
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.data.sampler import Batching, TrainBatchSampler, planned_sizes
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


BATCH_SIZES = (2, 8, 16)
NUM_IMAGES = (256, 4096)
NOTES = (
    "The original and stock batch images at random. Stock has no policy of its own; its column has the same sizes as "
    "this package's, in random batches.",
    "Images are grouped in pools of 4,096, so larger datasets have the same share as this number of images. The "
    "original's share is that of up to 1,024 images, since the number makes no difference to random batches.",
    "Compared is the average number of pixels of an image without padding, which random numbers let differ by a few "
    "per cent.",
)
_ROUNDS = 3
_ORIGINAL_IMAGES = 1024
_TOLERANCE = 0.1

# (height, width) of the images of each batch
_Batches = Sequence[NDArray[np.int64]]


def measure(
    settings: SpeedSettings, num_images: Sequence[int] = NUM_IMAGES, batch_sizes: Sequence[int] = BATCH_SIZES
) -> Iterator[Measurement]:
    """Computes the shares over several epochs of datasets with images of COCO's sizes."""
    for number in num_images:
        yield from _measure_dataset(settings, number, batch_sizes)


def _measure_dataset(settings: SpeedSettings, num_images: int, batch_sizes: Sequence[int]) -> Iterator[Measurement]:
    dataset = DetectionDataset(_index(coco_sizes(num_images, np.random.default_rng(0))), OriginalPolicy())
    originals = _original_sizes(settings.original, dataset.index) if settings.original is not None else []
    for batch_size in batch_sizes:
        work = f"batch {batch_size}, {num_images:,} images of COCO's sizes"
        contenders: dict[str, Callable[[int], _Batches]] = {
            OURS: partial(_planned, dataset, batch_size, "size"),
            STOCK: partial(_planned, dataset, batch_size, "random"),
        }
        if originals:
            contenders[ORIGINAL] = partial(_shuffled, originals, batch_size)
        epochs = {name: [batches(epoch) for epoch in range(_ROUNDS)] for name, batches in contenders.items()}
        differences = check_agreement(work, _mean_pixels(epochs), _TOLERANCE)
        shares = {name: [*map(padding_share, values)] for name, values in epochs.items()}
        yield Measurement(work, SHARE, shares, differences)


def padding_share(batches: _Batches) -> float:
    """The share of the pixels of padded batches, given as (height, width) of their images, that is padding."""
    pixels = sum(int(batch.prod(1).sum()) for batch in batches)
    padded = sum(len(batch) * int(batch.max(0).prod()) for batch in batches)
    return 1 - pixels / padded


def _mean_pixels(epochs: Mapping[str, Sequence[_Batches]]) -> dict[str, dict[str, float]]:
    means = {}
    for name, batches in epochs.items():
        sizes = np.concatenate([batch for epoch in batches for batch in epoch])
        means[name] = {"the average number of pixels of an image": float(sizes.prod(1).mean())}
    return means


def _planned(dataset: DetectionDataset, batch_size: int, batching: Batching, epoch: int) -> _Batches:
    sampler = TrainBatchSampler(dataset, batch_size, batching=batching)
    sampler.set_epoch(epoch)
    return [planned_sizes(dataset, np.array([key.image_index for key in keys]), epoch) for keys in sampler]


def _original_sizes(checkout: OriginalCheckout, index: DetectionIndex) -> list[NDArray[np.int64]]:
    """The sizes (N, 2) of the images after the original's transform, for each epoch."""
    # the transform without the conversion to tensors, of blank images
    flip, select, _ = checkout.coco.make_coco_transforms("train").transforms
    epochs = []
    for _ in range(_ROUNDS):
        images = [Image.new("L", (image.width, image.height)) for image in index.images[:_ORIGINAL_IMAGES]]
        resized = [select(*flip(image, {}))[0] for image in images]
        epochs.append(np.array([(image.height, image.width) for image in resized]))
    return epochs


def _shuffled(epochs: Sequence[NDArray[np.int64]], batch_size: int, epoch: int) -> _Batches:
    sizes = epochs[epoch]
    order = np.random.default_rng(epoch).permutation(len(sizes))
    return [sizes[order[start : start + batch_size]] for start in range(0, len(order) - batch_size + 1, batch_size)]


def _index(sizes: Sequence[tuple[int, int]]) -> DetectionIndex:
    """Images of these sizes without files and objects."""
    images = [ImageRecord(number, str(Path(f"{number}.jpg")), *size) for number, size in enumerate(sizes)]
    return DetectionIndex("generated", tuple(images), (Category(0, "object"),), AnnotationTable.concatenate([]))
