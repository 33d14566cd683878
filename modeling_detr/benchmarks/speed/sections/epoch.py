"""Training from JPEG files: loader and optimizer steps together."""

from collections.abc import Iterator, Sequence

import numpy as np

from modeling_detr.benchmarks.speed.agreement import check_agreement
from modeling_detr.benchmarks.speed.contenders import build_contenders, coco_config
from modeling_detr.benchmarks.speed.generated_images import coco_sizes, write_coco_dataset
from modeling_detr.benchmarks.speed.loaders import (
    original_dataset,
    original_loader,
    original_policy,
    our_loader,
    read_generated,
)
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, RATE, STOCK, Measurement
from modeling_detr.benchmarks.speed.original_checkout import NUM_LABELS
from modeling_detr.benchmarks.speed.sections.step import TOLERANCE
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work
from modeling_detr.benchmarks.speed.training import Trainings, build_trainings
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.structures_detr import DetectionIndex


BATCH_SIZES = (2, 8)
SHORTEST, LONGEST = 320, 400  # the largest edges of an image
NOTES = (
    "Stock has no loop of this kind: Transformers' Trainer needs a loader and augmentation of the user's own.",
    "Compared are loss and gradients of the first batch. Sizes are drawn from the same policy; those of the original "
    "are padded more.",
)


def measure(
    settings: SpeedSettings,
    config: DetrConfig | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    shortest_edge: int = SHORTEST,
    longest_edge: int = LONGEST,
) -> Iterator[Measurement]:
    """Measures epochs of generated images of COCO's sizes, in float32."""
    config = config or coco_config()
    policy = OriginalPolicy(**OriginalPolicy.sizes_for(shortest_edge, longest_edge))
    for batch_size in batch_sizes[:1] if settings.quick else batch_sizes:
        count = batch_size * (3 if settings.quick else 4)
        folder = settings.folder / f"epoch_{batch_size}"
        write_coco_dataset(folder, coco_sizes(count, np.random.default_rng(0)), NUM_LABELS)
        index = read_generated(folder)
        trainings = build_trainings(build_contenders(config, settings), settings)
        work = f"{config.backbone}, batch {batch_size}, edges {min(policy.scales)}-{longest_edge}, {count} images"
        batch = next(iter(our_loader(index, policy, batch_size)))
        outputs = trainings.outputs(batch)
        del outputs[STOCK]
        differences = check_agreement(work, outputs, TOLERANCE[False])
        samples = settings.time(_epochs(trainings, settings, index, policy, batch_size))
        rates = {name: [count / seconds for seconds in values] for name, values in samples.items()}
        yield Measurement(work, RATE, rates, differences)


def _epochs(
    trainings: Trainings, settings: SpeedSettings, index: DetectionIndex, policy: OriginalPolicy, batch_size: int
) -> dict[str, Work]:
    loader = our_loader(index, policy, batch_size)
    works: dict[str, Work] = {OURS: lambda: trainings.ours.epoch(loader)}
    if settings.original is not None and trainings.original is not None:
        crop = (policy.crop_min, policy.crop_max)
        transforms = original_policy(
            settings.original, [*policy.scales], policy.longest_edge, [*policy.crop_scales], crop
        )
        dataset = original_dataset(settings.original, settings.folder / f"epoch_{batch_size}", transforms)
        original, batches = trainings.original, original_loader(settings.original, dataset, batch_size)
        works[ORIGINAL] = lambda: original.epoch(batches)
    return works
