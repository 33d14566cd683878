"""Training from JPEG files: loader and optimizer steps together."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from modeling_detr.benchmarks.speed.agreement import check_agreement
from modeling_detr.benchmarks.speed.contenders import build_contenders, coco_config
from modeling_detr.benchmarks.speed.generated_images import coco_sizes, write_coco_dataset
from modeling_detr.benchmarks.speed.loaders import (
    SomeSteps,
    original_dataset,
    original_loader,
    original_policy,
    read_generated,
)
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, RATE, STOCK, Measurement
from modeling_detr.benchmarks.speed.original_checkout import NUM_LABELS, OriginalCheckout
from modeling_detr.benchmarks.speed.sections.step import TOLERANCE
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work
from modeling_detr.benchmarks.speed.training import OriginalTraining, build_trainings
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.data.loaders import BatchLoader


BATCH_SIZES = (2, 8)
NUM_IMAGES = 256  # from which batches are made: the more there are, the less padding
SHORTEST, LONGEST = 320, 400  # the largest edges of an image
NOTES = (
    "Stock has no loop of this kind: Transformers' Trainer needs a loader and augmentation of the user's own.",
    "Each round takes a few steps of an epoch of 256 images (64 with --quick): those of this package have about the "
    "epoch's average size, those of the original are random.",
    "Compared are loss and gradients of the first batch, in float64. Sizes are drawn from the same policy; those of "
    "the original are padded more.",
)


def measure(
    settings: SpeedSettings,
    config: DetrConfig | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    shortest_edge: int = SHORTEST,
    longest_edge: int = LONGEST,
    num_images: int = NUM_IMAGES,
) -> Iterator[Measurement]:
    """Measures steps of an epoch of generated images of COCO's sizes, in float32."""
    config = config or coco_config()
    num_images = num_images // 4 if settings.quick else num_images
    folder, steps = settings.folder / "epoch", 3 if settings.quick else 4
    write_coco_dataset(folder, coco_sizes(num_images, np.random.default_rng(0)), NUM_LABELS)
    index = read_generated(folder)
    policy = OriginalPolicy(**OriginalPolicy.sizes_for(shortest_edge, longest_edge))
    for batch_size in batch_sizes[:1] if settings.quick else batch_sizes:
        trainings = build_trainings(build_contenders(config, settings), settings)
        work = f"{config.backbone}, batch {batch_size}, edges {min(policy.scales)}-{longest_edge}, {num_images} images"
        dataset = DetectionDataset(index, policy)
        loader = BatchLoader(dataset, SomeSteps(dataset, batch_size, steps))
        batch = next(iter(loader))
        outputs = trainings.outputs(batch)
        del outputs[STOCK]
        differences = check_agreement(work, outputs, TOLERANCE[False])
        works: dict[str, Work] = {OURS: partial(trainings.ours.epoch, loader)}
        if settings.original is not None and trainings.original is not None:
            works[ORIGINAL] = _original_steps(trainings.original, settings.original, folder, policy, batch_size, steps)
        samples = settings.time(works)
        rates = {name: [batch_size * steps / seconds for seconds in values] for name, values in samples.items()}
        yield Measurement(work, RATE, rates, differences)


def _original_steps(
    training: OriginalTraining,
    checkout: OriginalCheckout,
    folder: Path,
    policy: OriginalPolicy,
    batch_size: int,
    steps: int,
) -> Work:
    crop = (policy.crop_min, policy.crop_max)
    transforms = original_policy(checkout, [*policy.scales], policy.longest_edge, [*policy.crop_scales], crop)
    loader = original_loader(checkout, original_dataset(checkout, folder, transforms), batch_size, steps)
    return partial(training.epoch, loader)
