"""The PyTorch dataset: reads and augments one sample at a time, with the same result in any worker."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from modeling_detr.data.augmentation import POLICIES
from modeling_detr.data.augmentation.geometry import GeometryPlan, apply_plan, clip_boxes
from modeling_detr.data.augmentation.mosaic import Mosaic, MosaicLayout, compose
from modeling_detr.data.augmentation.policy import GeometryPolicy, SampleTransform
from modeling_detr.data.formats import FORMATS
from modeling_detr.data.image_decoding import read_image
from modeling_detr.data.teacher_objects import add_teacher_objects, objects_of
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError, did_you_mean
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex, DetectionSample, DetectionTarget


_MAX_UNREADABLE = 10  # consecutive images; if there are more, their disk is gone
_MAX_MASK_BYTES = 8 << 30  # of an image, decoded


class SampleKey(NamedTuple):
    """A sample: an image, by its index in the `DetectionIndex`, in an epoch.

    The random numbers of a sample depend only on its key and the dataset's seed.
    """

    image_index: int
    epoch: int = 0


# Streams of random numbers of a sample, so that the geometry is the same with and without the others.
_GEOMETRY, _PHOTOMETRY, _MOSAIC, _TILES = range(4)  # _TILES + n: of tile n


def sample_seed(seed: int, key: SampleKey, stream: int = _GEOMETRY) -> int:
    """A unique integer for each (stream, seed, epoch, image index)."""
    return stream << 128 | (seed % 2**32) << 96 | (key.epoch % 2**32) << 64 | key.image_index


class DetectionDataset(Dataset[DetectionSample]):
    """Samples of a `DetectionIndex`; crowd regions are left out.

    Attributes:
        index: The images and annotations.
        transform: Applied to each sample; None: no transform.
        seed: Seed of the transform's random numbers.
        masks: Whether samples have masks, which are read with the image.
        no_flip_labels: Labels of `no_flip_classes`: images with an object of such a class are never flipped.
        replace_unreadable: Whether another image takes the place of one that cannot be read.
        teacher: What a teacher predicts in the images, with the attribute `score`; these objects are added to the
            annotated ones, see `teacher_objects`. None: there is no teacher.
        mosaic: Which samples are mosaics of four images; None: none. Transforms other than policies get them as input.

    Raises:
        DatasetError: `masks` is True and the index has none; a class in `no_flip_classes` does not exist; or there are
            such classes and the transform is not a `GeometryPolicy`, so that its flips cannot be prevented.
    """

    def __init__(
        self,
        index: DetectionIndex,
        transform: SampleTransform | None = None,
        seed: int = 0,
        masks: bool = False,
        no_flip_classes: Sequence[str] = (),
        replace_unreadable: bool = False,
        teacher: AnnotationTable | None = None,
        mosaic: Mosaic | None = None,
    ) -> None:
        if masks and index.annotations.masks is None:
            able = [name for name, entry in FORMATS.items() if "instance" in entry.tasks]
            remedy = f"open it with the task 'instance' or 'panoptic'; formats with masks: {', '.join(able)}"
            raise DatasetError(index.name, "has no masks", remedy)
        self.index = index
        self.transform = transform
        self.seed = seed
        self.masks = masks
        self.no_flip_labels = self._labels_of(no_flip_classes)
        self.replace_unreadable = replace_unreadable
        self.teacher = teacher
        self.mosaic = mosaic
        self._stuff_labels = [label for label, category in enumerate(index.categories) if not category.is_thing]

    def _labels_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        if names and not isinstance(self.transform, GeometryPolicy):
            raise DatasetError(
                "no_flip_classes",
                f"not supported by the transform {type(self.transform).__qualname__}, which flips by its own rules",
                f"configure flips in the transform, or use one of the policies {', '.join(POLICIES)}",
            )
        label_of = {category.name: label for label, category in enumerate(self.index.categories)}
        for name in names:
            if name not in label_of:
                raise DatasetError(
                    "no_flip_classes", f"{self.index.name} has no class '{name}'", did_you_mean(name, label_of)
                )
        return np.array([label_of[name] for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | SampleKey) -> DetectionSample:
        """Read and transform the sample of an image index (epoch 0) or of a `SampleKey`.

        With `replace_unreadable`, the next readable image takes the place of an unreadable one, and the sample has
        both in `unreadable`.

        Raises:
            IndexError: The image index is out of range.
            OSError: The image or its masks cannot be read; the message names the file.
            ValueError: The size of the image differs from the size in its annotations, or the transform did not return
                a valid sample.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(int(key))
        if not 0 <= key.image_index < len(self.index):
            expected = f"0 to {len(self.index) - 1}"
            raise IndexError(f"{self.index.name}: got image index {key.image_index}, expected {expected}.")
        unreadable: dict[int, str] = {}
        sample = self._read_or_replace(key.image_index, unreadable)
        key = key._replace(image_index=sample["target"]["image_index"])
        layout = self.mosaic_layout(key)
        if layout is not None:
            sample = self._compose(sample, layout, key, unreadable)
        with self._named_errors(key.image_index):
            if layout is None and isinstance(self.transform, GeometryPolicy):
                sample = self.transform.apply(sample, self.plan(key))
            sample = self._transform(sample, key)
        if self.teacher is not None:
            _check_teacher_scores(sample["target"], self.transform)
        if unreadable:
            sample["unreadable"] = unreadable
        return sample

    def plan(self, key: SampleKey) -> GeometryPlan:
        """Plan the geometry of a sample without reading it; the image's own size if the transform cannot plan.

        A mosaic has the planned size; crop and flips are then those of the first image before it becomes a tile.
        """
        return self._plan(key.image_index, self._generator(key, _GEOMETRY))

    def is_mosaic(self, key: SampleKey) -> bool:
        """Whether a sample is a mosaic."""
        return self.mosaic_layout(key) is not None

    def count_objects(self, key: SampleKey) -> int:
        """Count the objects of a sample without reading it; those of its image if the transform cannot plan.

        In a mosaic, stuff of one class counts once for each tile.
        """
        layout = self.mosaic_layout(key)
        if layout is None:
            return self._num_visible(key.image_index, self.plan(key), layout)
        images = enumerate([key.image_index, *layout.partners])
        plans = [(image_index, self.plan_tile(number, image_index, layout, key)) for number, image_index in images]
        return sum(self._num_visible(image_index, plan, layout) for image_index, plan in plans)

    def _num_visible(self, image_index: int, plan: GeometryPlan, layout: MosaicLayout | None) -> int:
        rows = self._objects(image_index)
        if plan.crop is None:
            return len(rows)
        boxes = torch.from_numpy(self.index.annotations.boxes_xyxy[rows].astype(np.float32))
        labels = torch.from_numpy(self.index.annotations.label[rows])
        return int(clip_boxes(boxes, plan.crop, self._min_visibility(labels, layout))[1].sum())

    def mosaic_layout(self, key: SampleKey) -> MosaicLayout | None:
        """The layout of a mosaic; None if the sample is plain."""
        if self.mosaic is None or not self.mosaic.in_epoch(key.epoch):
            return None
        plan = self.plan(key)
        size = plan.height, plan.width
        return self.mosaic.draw(key.image_index, len(self.index), size, self._generator(key, _MOSAIC))

    def _generator(self, key: SampleKey, stream: int) -> random.Random:
        return random.Random(sample_seed(self.seed, key, stream))

    def _plan(self, image_index: int, generator: random.Random) -> GeometryPlan:
        height, width = self.index.image_sizes[image_index].tolist()
        if not isinstance(self.transform, GeometryPolicy):
            return GeometryPlan(height, width)
        plan = self.transform.plan(height, width, generator)
        if (plan.flip or plan.vertical_flip) and len(self.no_flip_labels):
            labels = self.index.annotations.label[self.index.annotation_rows(image_index)]
            if self.teacher is not None:
                labels = np.concatenate([labels, objects_of(self.teacher, image_index).label])
            if np.isin(labels, self.no_flip_labels).any():
                plan = plan._replace(flip=False, vertical_flip=False)
        return plan

    def _read_or_replace(self, image_index: int, unreadable: dict[int, str]) -> DetectionSample:
        """Read an image, or with `replace_unreadable` the next readable one; add the others to `unreadable`."""
        failed: dict[int, str] = {}
        while True:
            try:
                sample = self._read(image_index)
            except (DatasetReadError, DatasetNotFoundError) as error:
                failed[image_index] = f"{error.where}: {error.problem}"
                image_index = (image_index + 1) % len(self.index)
                if not self.replace_unreadable or len(failed) == _MAX_UNREADABLE or image_index in failed:
                    raise
            else:
                unreadable.update(failed)
                return sample

    def _objects(self, image_index: int) -> NDArray[np.int64]:
        """The rows of an image's annotations that are not crowd regions."""
        rows = self.index.annotation_rows(image_index)
        objects: NDArray[np.int64] = np.flatnonzero(~self.index.annotations.is_crowd[rows]) + rows.start
        return objects

    def _read(self, image_index: int) -> DetectionSample:
        record, table = self.index.images[image_index], self.index.annotations
        objects = self._objects(image_index)
        boxes = torch.from_numpy(table.boxes_xyxy[objects].astype(np.float32))
        target: DetectionTarget = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(record.height, record.width)),
            "class_labels": torch.from_numpy(table.label[objects]),
            "area": torch.from_numpy(table.area[objects].astype(np.float32)),
            "image_index": image_index,
        }
        if self.masks:
            if len(objects) * record.height * record.width > _MAX_MASK_BYTES:
                raise DatasetError(
                    record.path,
                    f"{len(objects)} masks of {record.width}x{record.height} pixels (width x height), more than "
                    f"{_MAX_MASK_BYTES >> 30} GiB",
                    "cut the image into tiles, or train on boxes only",
                )
            target["masks"] = tv_tensors.Mask(torch.from_numpy(self.index.read_masks(image_index, objects)))
        if self.teacher is not None:
            target = add_teacher_objects(target, objects_of(self.teacher, image_index))
        return {"image": read_image(record), "target": target}

    @contextmanager
    def _named_errors(self, image_index: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(f"while transforming {self.index.images[image_index].path}")
            raise

    def _compose(
        self, first: DetectionSample, layout: MosaicLayout, key: SampleKey, unreadable: dict[int, str]
    ) -> DetectionSample:
        """Compose a mosaic of the image of its first tile and those that are read for the others."""
        parts = []
        for number in range(len(layout.tiles)):
            sample = first if number == 0 else self._read_or_replace(layout.partners[number - 1], unreadable)
            image_index, labels = sample["target"]["image_index"], sample["target"]["class_labels"]
            with self._named_errors(image_index):
                plan = self.plan_tile(number, image_index, layout, key)
                parts.append(apply_plan(sample, plan, self._min_visibility(labels, layout)))
        return compose(parts, layout.tiles, self._stuff_labels)

    def plan_tile(self, number: int, image_index: int, layout: MosaicLayout, key: SampleKey) -> GeometryPlan:
        """Plan the tile, by its `number` in the layout of a mosaic, that shows an image."""
        generator = self._generator(key, _TILES + number)
        # the first image is seen as in the plain sample, which gave the mosaic its size
        plan = self._plan(image_index, generator) if number else self.plan(key)
        size = tuple(self.index.image_sizes[image_index].tolist())
        return cast(Mosaic, self.mosaic).plan_tile(plan, size, layout.tiles[number], generator)

    def _min_visibility(self, labels: Tensor, layout: MosaicLayout | None) -> float | Tensor:
        """The share of an object that must remain visible; in a mosaic that of each (N,), 0 for stuff."""
        least = self.transform.min_visibility if isinstance(self.transform, GeometryPolicy) else 0.0
        if layout is None:
            return least
        is_stuff = torch.isin(labels, torch.tensor(self._stuff_labels, dtype=torch.int64))
        return torch.where(is_stuff, least, max(least, cast(Mosaic, self.mosaic).min_visibility))

    def _transform(self, sample: DetectionSample, key: SampleKey) -> DetectionSample:
        """Apply what comes after the geometry: jitter of a policy, or all of another transform."""
        if self.transform is None:
            return sample
        if isinstance(self.transform, GeometryPolicy):
            photometry = self.transform.draw_photometry(self._generator(key, _PHOTOMETRY))
            return sample if photometry is None else photometry.apply(sample)
        with _global_seed(sample_seed(self.seed, key)):
            transformed = self.transform(sample)
        _check_sample(transformed, self.transform)
        return transformed


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global random states of Python, NumPy and PyTorch (CPU), and restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (transforms draw from it)
    seeds = random.Random(seed)
    random.seed(seeds.getrandbits(64))
    np.random.seed(seeds.getrandbits(32))  # noqa: NPY002
    torch.default_generator.manual_seed(seeds.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _check_teacher_scores(target: DetectionTarget, transform: SampleTransform | None) -> None:
    """Raise a ValueError if rows have lost their `teacher_scores`: those of a teacher would count as annotated."""
    num_boxes, num_scores = len(target["boxes"]), len(target.get("teacher_scores", ()))
    if num_scores != num_boxes:
        raise ValueError(
            f"{_name_of(transform)}: returned {num_boxes} boxes with {num_scores} teacher_scores, expected one for "
            f"each; if it drops boxes, drop their scores too: SanitizeBoundingBoxes(labels_getter=lambda sample: "
            f"(sample['target']['class_labels'], sample['target']['area'], sample['target']['teacher_scores']))."
        )


def _name_of(transform: SampleTransform | None) -> str:
    return f"transform {getattr(transform, '__qualname__', type(transform).__qualname__)}"


def _check_sample(sample: DetectionSample, transform: SampleTransform) -> None:
    """Raise a ValueError if a custom transform did not return what the collator expects."""
    where = _name_of(transform)
    try:
        image, target = sample["image"], sample["target"]
        boxes, labels, area, _ = target["boxes"], target["class_labels"], target["area"], target["image_index"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{where}: returned a {type(sample).__name__} without {error}, expected a DetectionSample: image, and "
            f"target with boxes, class_labels, area and image_index."
        ) from error
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        got = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"{where}: returned the image as {got}, expected a uint8 tensor (3, H, W); images are normalised later."
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(labels) == len(area):
        raise ValueError(
            f"{where}: returned boxes of shape {tuple(boxes.shape)} with {len(labels)} class_labels and {len(area)} "
            f"areas, expected (N, 4), N and N; if it drops boxes, drop the other fields too: "
            f"SanitizeBoundingBoxes(labels_getter=lambda sample: (sample['target']['class_labels'], "
            f"sample['target']['area']))."
        )
    masks = target.get("masks")
    if masks is not None and masks.shape != (len(boxes), *image.shape[-2:]):
        raise ValueError(
            f"{where}: returned masks of shape {tuple(masks.shape)} for {len(boxes)} boxes and an image of "
            f"{image.shape[-2]}x{image.shape[-1]}, expected (N, H, W); if it drops boxes, drop their masks too."
        )
    box_format = getattr(boxes, "format", None)
    if box_format is not None and box_format != tv_tensors.BoundingBoxFormat.XYXY:
        raise ValueError(f"{where}: returned boxes as {box_format.value}, expected XYXY, corners in pixels.")
