"""Loaders of training images: this package's and the original's, both in this process."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from modeling_detr.benchmarks.speed.generated_images import MEAN, STD
from modeling_detr.benchmarks.speed.original_checkout import OriginalCheckout
from modeling_detr.data.augmentation.policy import SampleTransform
from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.data.formats.coco import read_coco
from modeling_detr.data.loaders import BatchLoader
from modeling_detr.data.sampler import TrainBatchSampler
from modeling_detr.structures_detr import DetectionBatch, DetectionIndex


def read_generated(folder: Path) -> DetectionIndex:
    """The dataset that `write_coco_dataset` has written."""
    return read_coco(folder / "annotations/instances_train2017.json", images=folder / "train2017")


def our_loader(index: DetectionIndex, transform: SampleTransform, batch_size: int) -> Iterable[DetectionBatch]:
    """This package's loader: batches of images of similar size."""
    dataset = DetectionDataset(index, transform)
    return BatchLoader(dataset, TrainBatchSampler(dataset, batch_size))


class SomeSteps(TrainBatchSampler):
    """The batches of a few steps of an epoch, from small to large images, whose average size is that of the epoch."""

    def __init__(self, dataset: DetectionDataset, batch_size: int, steps: int) -> None:
        super().__init__(dataset, batch_size)
        self._steps_taken = steps

    def __len__(self) -> int:
        return self._steps_taken

    def __iter__(self) -> Iterator[list[SampleKey]]:
        batches = sorted(super().__iter__(), key=self._pixels)
        for step in range(self._steps_taken):
            yield batches[(2 * step + 1) * len(batches) // (2 * self._steps_taken)]

    def _pixels(self, batch: list[SampleKey]) -> int:
        return sum(plan.height * plan.width for plan in map(self.dataset.plan, batch))


def original_dataset(checkout: OriginalCheckout, folder: Path, transforms: Any) -> Any:
    """The original's dataset, with any of its transforms."""
    annotations = folder / "annotations/instances_train2017.json"
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        return checkout.coco.CocoDetection(str(folder / "train2017"), str(annotations), transforms, False)


def original_loader(
    checkout: OriginalCheckout, dataset: Any, batch_size: int, steps: int | None = None
) -> Iterable[Any]:
    """The original's loader for training, as its `main` builds it: random batches, `steps` of them or all."""
    images = RandomSampler(dataset, num_samples=None if steps is None else steps * batch_size)
    sampler = BatchSampler(images, batch_size, drop_last=True)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=checkout.misc.collate_fn, num_workers=0)


def original_policy(
    checkout: OriginalCheckout, scales: list[int], longest_edge: int, crop_scales: list[int], crop: tuple[int, int]
) -> Any:
    """The original's policy for training with other sizes; it writes those for COCO into its code."""
    transforms = checkout.transforms
    resize = transforms.RandomResize(scales, max_size=longest_edge)
    cropped = transforms.Compose([transforms.RandomResize(crop_scales), transforms.RandomSizeCrop(*crop), resize])
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize([*MEAN], [*STD])])
    return transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomSelect(resize, cropped), normalise])


def pixels_in_grey_levels(pixel_values: torch.Tensor) -> torch.Tensor:
    """Normalised pixels (3, H, W) as grey levels, a share of 1."""
    mean, std = torch.tensor([MEAN, STD])[..., None, None]
    grey_levels: torch.Tensor = pixel_values * std + mean
    return grey_levels
