"""The dataset that PyTorch's loader reads from: one augmented sample at a time, the same on any worker."""

import difflib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from modeling_detr.data.images import read_image
from modeling_detr.data.transforms import GeometryPlan, GeometryPolicy, SampleTransform
from modeling_detr.structures_detr import DetectionIndex, DetectionSample, DetectionTarget


class SampleKey(NamedTuple):
    """Which image, by its position in the index, and in which epoch: together with the seed, all that its random
    numbers depend on."""

    position: int
    epoch: int = 0


def sample_seed(seed: int, key: SampleKey) -> int:
    """One whole number for every (seed, epoch, position)."""
    return (seed % 2**32) << 96 | (key.epoch % 2**32) << 64 | key.position


class DetectionDataset(Dataset[DetectionSample]):
    """Samples of a `DetectionIndex`; crowd regions are left out.

    Attributes:
        index: The images and annotations.
        transform: What is done to each sample; None: nothing.
        seed: Of the random numbers of the transform.
        masks: Whether samples have masks, which are read with the image.
        no_flip_labels: Labels of the classes whose images are not mirrored, whatever is drawn (given by their names,
            `no_flip_classes`).

    Raises:
        ValueError: Masks are wanted and the index has none; or no class has such a name, or the transform is one that
            cannot be told what not to mirror.
    """

    def __init__(
        self,
        index: DetectionIndex,
        transform: SampleTransform | None = None,
        seed: int = 0,
        masks: bool = False,
        no_flip_classes: Sequence[str] = (),
    ) -> None:
        if masks and index.annotations.masks is None:
            raise ValueError(
                f"{index.name} has no masks; open it with task='instance' or 'panoptic', or choose a dataset that has "
                f"them (COCO with segmentations, COCO panoptic, the built-in shapes)."
            )
        self.index = index
        self.transform = transform
        self.seed = seed
        self.masks = masks
        self.no_flip_labels = self._labels_of(no_flip_classes)

    def _labels_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        if names and not isinstance(self.transform, GeometryPolicy):
            raise ValueError(
                f"no_flip_classes is for the policies original, light and none; the transform "
                f"{type(self.transform).__qualname__} flips by itself, tell it there."
            )
        label_of = {category.name: label for label, category in enumerate(self.index.categories)}
        for name in names:
            if name not in label_of:
                near = difflib.get_close_matches(name, label_of, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(label_of)}."
                raise ValueError(f"no_flip_classes: {self.index.name} has no class '{name}'{hint}")
        return np.array([label_of[name] for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | SampleKey) -> DetectionSample:
        """The sample of a position (epoch 0) or of a `SampleKey`.

        Raises:
            IndexError: There is no such position.
            OSError: The image or its masks cannot be read; the message names the file.
            ValueError: The image is not of the size that its annotations say, or the transform returned no sample.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(int(key))
        if not 0 <= key.position < len(self.index):
            raise IndexError(f"{self.index.name} has {len(self.index)} images; there is none at {key.position}.")
        sample = self._read(key.position)
        try:
            return self._transform(sample, key)
        except Exception as error:
            error.add_note(f"while transforming {self.index.images[key.position].path}")
            raise

    def plan(self, key: SampleKey) -> GeometryPlan:
        """What will be done to a sample, without reading it. Where the transform makes no plans, nothing is."""
        record = self.index.images[key.position]
        if not isinstance(self.transform, GeometryPolicy):
            return GeometryPlan(record.height, record.width)
        plan = self.transform.plan(record.height, record.width, random.Random(sample_seed(self.seed, key)))
        if plan.flip and len(self.no_flip_labels):
            labels = self.index.annotations.label[self.index.annotation_rows(key.position)]
            plan = plan._replace(flip=not np.isin(labels, self.no_flip_labels).any())
        return plan

    def _read(self, position: int) -> DetectionSample:
        record, table = self.index.images[position], self.index.annotations
        rows = self.index.annotation_rows(position)
        objects = np.flatnonzero(~table.is_crowd[rows]) + rows.start
        boxes = torch.from_numpy(table.boxes_xyxy[objects].astype(np.float32))
        target: DetectionTarget = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(record.height, record.width)),
            "class_labels": torch.from_numpy(table.label[objects]),
            "area": torch.from_numpy(table.area[objects].astype(np.float32)),
            "image_index": position,
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(self.index.read_masks(position, objects)))
        return {"image": read_image(record), "target": target}

    def _transform(self, sample: DetectionSample, key: SampleKey) -> DetectionSample:
        if self.transform is None:
            return sample
        if isinstance(self.transform, GeometryPolicy):
            return self.transform.apply(sample, self.plan(key))
        with _global_seed(sample_seed(self.seed, key)):
            transformed = self.transform(sample)
        _check_sample(transformed, self.transform)
        return transformed


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds the global random states of Python, NumPy and PyTorch (CPU), and puts them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (others draw from it)
    own = random.Random(seed)
    random.seed(own.getrandbits(64))
    np.random.seed(own.getrandbits(32))  # noqa: NPY002
    torch.default_generator.manual_seed(own.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _check_sample(sample: DetectionSample, transform: SampleTransform) -> None:
    """Raises a ValueError if a transform from outside did not return what the collator takes."""
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    try:
        image, target = sample["image"], sample["target"]
        boxes, labels, area, _ = target["boxes"], target["class_labels"], target["area"], target["image_index"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"The transform {name} returned a {type(sample).__name__} that lacks {error}; wanted a DetectionSample: "
            f"image, and target with boxes, class_labels, area and image_index."
        ) from error
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        got = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"The transform {name} returned the image as {got}; wanted a uint8 tensor (3, H, W): they are "
            f"normalised later."
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(labels) == len(area):
        raise ValueError(
            f"The transform {name} returned boxes of shape {tuple(boxes.shape)} with {len(labels)} class_labels and "
            f"{len(area)} areas; wanted (N, 4), N and N. If it drops boxes, drop the other fields too: "
            f"SanitizeBoundingBoxes(labels_getter=lambda sample: (sample['target']['class_labels'], "
            f"sample['target']['area']))."
        )
    masks = target.get("masks")
    if masks is not None and masks.shape != (len(boxes), *image.shape[-2:]):
        raise ValueError(
            f"The transform {name} returned masks of shape {tuple(masks.shape)} for {len(boxes)} boxes and an image "
            f"of {image.shape[-2]}x{image.shape[-1]}; wanted (N, H, W). If it drops boxes, drop their masks too."
        )
    box_format = getattr(boxes, "format", None)
    if box_format is not None and box_format != tv_tensors.BoundingBoxFormat.XYXY:
        raise ValueError(f"The transform {name} returned boxes as {box_format.value}; wanted XYXY, corners in pixels.")
