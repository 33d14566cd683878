"""A sample depends on seed, epoch and index, and on nothing else."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from modeling_detr.data import DetectionDataset, SampleKey, open_dataset, train_transform
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex


@pytest.fixture
def index() -> DetectionIndex:
    return open_dataset("shapes?train=12&val=2", "train")


def _equal(first, second) -> bool:
    return torch.equal(first["image"], second["image"]) and torch.equal(
        first["target"]["boxes"], second["target"]["boxes"]
    )


def test_a_sample_has_types_that_torchvision_transforms_handle(index):
    sample = DetectionDataset(index)[3]
    assert isinstance(sample["image"], tv_tensors.Image)
    assert isinstance(sample["target"]["boxes"], tv_tensors.BoundingBoxes)
    assert sample["target"]["boxes"].canvas_size == (128, 128)
    assert sample["target"]["image_index"] == 3
    rows = index.annotation_rows(3)
    np.testing.assert_allclose(sample["target"]["boxes"].numpy(), index.annotations.boxes_xyxy[rows], rtol=1e-6)
    assert sample["target"]["class_labels"].tolist() == index.annotations.label[rows].tolist()


def test_crowds_are_dropped(index):
    table = index.annotations
    crowded = AnnotationTable(
        table.image_index, table.label, table.boxes_xyxy, table.area, np.ones(len(table), dtype=bool)
    )
    sample = DetectionDataset(DetectionIndex("crowd", index.images, index.categories, crowded))[0]
    assert sample["target"]["boxes"].shape == (0, 4)


def _mirror_or_turn(sample):
    if random.random() < 0.5 and np.random.random() < 0.9:  # noqa: NPY002
        sample = v2.functional.horizontal_flip(sample["image"]), sample["target"]
        sample = {"image": sample[0], "target": sample[1]}
    return v2.ColorJitter(brightness=0.5)(sample)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("transform", [train_transform(scales=(96, 128)), _mirror_or_turn])
def test_augmentation_does_not_depend_on_workers(index, transform: Callable):
    dataset = DetectionDataset(index, transform, seed=5)
    keys = [[SampleKey(position, 2)] for position in range(6)]
    alone = [dataset[key] for (key,) in keys]
    for workers in (1, 3):
        loader = DataLoader(dataset, batch_sampler=keys, collate_fn=lambda samples: samples[0], num_workers=workers)
        assert all(_equal(mine, theirs) for mine, theirs in zip(alone, loader, strict=True))
    assert all(_equal(dataset[key], mine) for (key,), mine in reversed(list(zip(keys, alone, strict=True))))


@pytest.mark.parametrize("transform", [train_transform(scales=(96, 128)), _mirror_or_turn])
def test_augmentation_changes_with_seed_and_epoch(index, transform: Callable):
    dataset, other = DetectionDataset(index, transform, seed=1), DetectionDataset(index, transform, seed=2)
    assert not all(_equal(dataset[SampleKey(k, 0)], dataset[SampleKey(k, 1)]) for k in range(6))
    assert not all(_equal(dataset[k], other[k]) for k in range(6))
    assert all(_equal(dataset[k], dataset[SampleKey(k, 0)]) for k in range(6))


def test_the_global_random_states_do_not_change(index):
    dataset = DetectionDataset(index, _mirror_or_turn, seed=1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    dataset[0], dataset[1]
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected  # noqa: NPY002


def test_planned_sizes_are_the_actual_sizes(index):
    dataset = DetectionDataset(index, train_transform(scales=(96, 112, 128)), seed=3)
    for position in range(12):
        key = SampleKey(position, 1)
        plan = dataset.plan(key)
        assert dataset[key]["image"].shape == (3, plan.height, plan.width)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda sample: sample["image"], "returned a Image without"),
        (lambda sample: {"image": sample["image"]}, "without 'target'"),
        (lambda sample: {**sample, "image": sample["image"].float()}, "torch.float32 of shape .*expected a uint8"),
        (
            lambda sample: {**sample, "target": {**sample["target"], "area": torch.zeros(99)}},
            r"99 areas, .*SanitizeBoundingBoxes\(labels_getter=",
        ),
        (
            lambda sample: v2.ConvertBoundingBoxFormat("CXCYWH")(sample),
            "returned boxes as CXCYWH, expected XYXY",
        ),
    ],
)
def test_errors_in_a_transformed_sample_are_named(index, transform, message):
    with pytest.raises(ValueError, match=message) as caught:
        DetectionDataset(index, transform)[0]
    assert "while transforming shapes?" in caught.value.__notes__[0]


def test_an_index_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError, match="got image index 12, expected 0 to 11"):
        DetectionDataset(index)[12]


def test_torchvision_pipelines_that_drop_boxes_work(index):
    pipeline = v2.Compose(
        [
            v2.RandomIoUCrop(),
            v2.SanitizeBoundingBoxes(
                labels_getter=lambda sample: (sample["target"]["class_labels"], sample["target"]["area"])
            ),
        ]
    )
    dataset = DetectionDataset(index, pipeline, seed=0)
    counts = [len(dataset[position]["target"]["area"]) for position in range(12)]
    assert sum(counts) < len(index.annotations)


def test_images_with_a_no_flip_class_are_never_flipped(coco_folder: Path) -> None:
    index = open_dataset(coco_folder, "train")  # cat and dog, dog
    always = train_transform("light", flip_probability=1)
    dataset = DetectionDataset(index, always, no_flip_classes=["cat"])
    assert [dataset.plan(SampleKey(position)).flip for position in (0, 1)] == [False, True]
    with pytest.raises(ValueError, match="has no class 'catt'; did you mean 'cat'"):
        DetectionDataset(index, always, no_flip_classes=["catt"])
    with pytest.raises(ValueError, match="flips by its own rules"):
        DetectionDataset(index, lambda sample: sample, no_flip_classes=["cat"])
