"""Reading, augmenting and collating JPEG files, with the original's policy, on one core."""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch

from modeling_detr.benchmarks.speed.agreement import Outputs, check_agreement
from modeling_detr.benchmarks.speed.generated_images import MEAN, STD, coco_sizes, write_coco_dataset
from modeling_detr.benchmarks.speed.loaders import (
    original_dataset,
    original_loader,
    our_loader,
    pixels_in_grey_levels,
    read_generated,
)
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, RATE, Measurement
from modeling_detr.benchmarks.speed.original_checkout import NUM_LABELS, OriginalCheckout
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.data.augmentation.transforms import eval_transform
from modeling_detr.data.batch import DetrCollator
from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.structures_detr import DetectionIndex


BATCH_SIZE = 2  # the original's
NOTES = (
    "Stock has no loader for training, and no augmentation.",
    "Compared are pixels and boxes of images resized for evaluation, since the policies draw other random numbers. "
    "Resized pixels may differ by two grey levels.",
    "Measured in the process itself, without loader processes: images a second on one core.",
)
_TOLERANCE = 2.5 / 255


def measure(settings: SpeedSettings, num_images: int | None = None) -> Iterator[Measurement]:
    """Measures passes over generated images of COCO's sizes."""
    count = num_images or (16 if settings.quick else 64)
    folder = write_coco_dataset(settings.folder / "loader", coco_sizes(count, np.random.default_rng(0)), NUM_LABELS)
    index = read_generated(folder)
    loaders: dict[str, Iterable[object]] = {OURS: our_loader(index, OriginalPolicy(), BATCH_SIZE)}
    work = f"original policy, COCO's sizes, {count} images"
    differences: dict[str, float] = {}
    if settings.original is not None:
        differences = _compare(work, settings.original, index, settings)
        transforms = settings.original.coco.make_coco_transforms("train")
        dataset = original_dataset(settings.original, folder, transforms)
        loaders[ORIGINAL] = original_loader(settings.original, dataset, BATCH_SIZE)
    works: dict[str, Work] = {name: partial(_drain, loader) for name, loader in loaders.items()}
    samples = settings.time_on_host(works)
    rates = {name: [count / seconds for seconds in values] for name, values in samples.items()}
    yield Measurement(work, RATE, rates, differences)


def _drain(batches: Iterable[object]) -> None:
    deque(batches, maxlen=0)


def _compare(
    work: str, checkout: OriginalCheckout, index: DetectionIndex, settings: SpeedSettings, num_images: int = 4
) -> dict[str, float]:
    """Compares images and objects of the two evaluation transforms."""
    ours = DetectionDataset(index, eval_transform())
    theirs = original_dataset(checkout, settings.folder / "loader", checkout.coco.make_coco_transforms("val"))
    collate = DetrCollator(NUM_LABELS)
    worst = 0.0
    for number in range(min(num_images, len(index))):
        image, target = theirs[theirs.ids.index(index.images[number].id)]
        expected: Outputs = {"pixels": pixels_in_grey_levels(image), "boxes": target["boxes"]}
        inputs = batch_to_device(collate([ours[SampleKey(number)]]), torch.device("cpu"), MEAN, STD)
        label = inputs["labels"][0]
        outputs: Outputs = {"pixels": pixels_in_grey_levels(inputs["pixel_values"][0]), "boxes": label["boxes"]}
        labels: dict[str, Outputs] = {
            OURS: {"labels": label["class_labels"].double()},
            ORIGINAL: {"labels": target["labels"].double()},
        }
        check_agreement(work, labels, 0.0)
        worst = max(worst, check_agreement(work, {OURS: outputs, ORIGINAL: expected}, _TOLERANCE)[ORIGINAL])
    return {ORIGINAL: worst}
