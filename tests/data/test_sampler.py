"""Batches hold each image once, images of similar size, and the same ones however the work is split."""

from pathlib import Path

import numpy as np
import pytest

from modeling_detr.data import (
    DetectionDataset,
    EvalBatchSampler,
    TrainBatchSampler,
    eval_transform,
    open_dataset,
    train_transform,
)
from modeling_detr.data.sampler import pack_by_size, planned_sizes
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


def coco_like(number: int, transform=None, seed: int = 0) -> DetectionDataset:
    """Make an index with image sizes as in COCO; there are no image files."""
    generator = np.random.default_rng(0)
    usual = [(480, 640), (427, 640), (640, 480), (640, 427), (426, 640), (375, 500), (612, 612), (333, 500)]
    chances = np.array([30, 20, 10, 8, 5, 4, 3, 3])
    images = []
    for position in range(number):
        if generator.random() < chances.sum() / 100:
            height, width = usual[generator.choice(len(usual), p=chances / chances.sum())]
        else:
            side = int(generator.integers(300, 641))
            height, width = (side, 640) if generator.random() < 0.75 else (640, side)
        images.append(ImageRecord(position, f"{position}.jpg", height, width))
    index = DetectionIndex("coco-like", tuple(images), (Category(0, "thing"),), AnnotationTable.concatenate([]))
    return DetectionDataset(index, transform or train_transform(), seed=seed)


def _padding(dataset: DetectionDataset, batches: list) -> float:
    """Return the fraction of pixels that are padding."""
    image_pixels = batch_pixels = 0
    for batch in batches:
        sizes = np.array([(plan.height, plan.width) for plan in map(dataset.plan, batch)])
        image_pixels += sizes.prod(1).sum()
        batch_pixels += len(batch) * sizes.max(0).prod()
    return 1 - image_pixels / batch_pixels


@pytest.mark.parametrize(
    ("num_images", "batch_size", "most", "random_least"),
    [(2048, 2, 0.01, 0.15), (2048, 8, 0.03, 0.35), (2048, 16, 0.05, 0.4), (256, 8, 0.10, 0.35)],
)
def test_batches_have_little_padding(num_images, batch_size, most, random_least):
    dataset = coco_like(num_images)
    assert _padding(dataset, list(TrainBatchSampler(dataset, batch_size))) < most
    assert _padding(dataset, list(TrainBatchSampler(dataset, batch_size, batching="random"))) > random_least


@pytest.mark.parametrize("batching", ["size", "random"])
def test_an_epoch_repeats_no_image_and_drops_a_different_remainder_each_time(batching):
    sampler = TrainBatchSampler(coco_like(101), 8, batching=batching)
    rests = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 12
        positions = [key.image_index for batch in batches for key in batch]
        assert len(set(positions)) == len(positions) == 96
        assert {key.epoch for batch in batches for key in batch} == {epoch}
        rests.append(frozenset(range(101)) - set(positions))
    assert len(set(rests)) == 3


@pytest.mark.parametrize("batching", ["size", "random"])
def test_a_step_has_the_same_images_however_it_is_split(batching):
    dataset = coco_like(300)

    def steps(processes: int, batch_size: int, accumulation: int) -> list[frozenset[int]]:
        samplers = [
            TrainBatchSampler(
                dataset,
                batch_size,
                num_processes=processes,
                process_index=index,
                accumulation=accumulation,
                batching=batching,
            )
            for index in range(processes)
        ]
        parts = [list(sampler) for sampler in samplers]
        assert {len(part) for part in parts} == {37 * accumulation}
        assert all(len(batch) == batch_size for part in parts for batch in part)
        joined = []
        for step in range(37):
            span = slice(step * accumulation, (step + 1) * accumulation)
            images = [key.image_index for part in parts for batch in part[span] for key in batch]
            assert len(set(images)) == 8
            joined.append(frozenset(images))
        return joined

    assert steps(1, 8, 1) == steps(2, 4, 1) == steps(1, 4, 2) == steps(2, 2, 2)


def test_resuming_within_an_epoch_continues_it():
    sampler = TrainBatchSampler(coco_like(9000), 4, accumulation=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    for step in (0, 1, 700, sampler.steps_per_epoch - 1, sampler.steps_per_epoch):
        sampler.set_epoch(3, first_step=step)
        assert len(sampler) == len(whole) - 2 * step
        assert list(sampler) == whole[2 * step :]
    with pytest.raises(ValueError, match="first_step: got 1126, expected 0 to 1125"):
        sampler.set_epoch(3, first_step=1126)


def test_resuming_does_not_plan_finished_pools(monkeypatch):
    dataset = coco_like(9000)
    sampler = TrainBatchSampler(dataset, 10)
    sampler.set_epoch(0, first_step=899)
    planned = []
    monkeypatch.setattr(dataset, "plan", lambda key, plan=dataset.plan: planned.append(key) or plan(key))
    assert len(list(sampler)) == 1
    assert len(planned) < 4200


def test_the_order_depends_on_the_seed_alone():
    first, again = TrainBatchSampler(coco_like(100), 4), TrainBatchSampler(coco_like(100), 4)
    assert list(first) == list(again)
    assert list(first) != list(TrainBatchSampler(coco_like(100), 4, seed=1))


def test_batching_by_size_does_not_change_image_sizes():
    dataset = coco_like(200)
    sizes = {tuple(size) for size in planned_sizes(dataset, np.arange(200), 0)}
    batches = list(TrainBatchSampler(dataset, 4))
    drawn = {(dataset.plan(key).height, dataset.plan(key).width) for batch in batches for key in batch}
    assert drawn == sizes


def test_images_of_one_size_are_batched_at_random():
    images = tuple(ImageRecord(k, f"{k}.jpg", 128, 128) for k in range(200))
    index = DetectionIndex("equal", images, (), AnnotationTable.concatenate([]))
    sampler = TrainBatchSampler(DetectionDataset(index, eval_transform(128)), 10)
    first = [frozenset(key.image_index for key in batch) for batch in sampler]
    sampler.set_epoch(1)
    assert not set(first) & {frozenset(key.image_index for key in batch) for batch in sampler}


def test_fewer_images_than_a_step_make_one_smaller_step():
    dataset = coco_like(5)
    assert [len(batch) for batch in TrainBatchSampler(dataset, 16)] == [5]
    parts = [list(TrainBatchSampler(dataset, 16, num_processes=2, process_index=k, accumulation=2)) for k in (0, 1)]
    assert sorted(key.image_index for part in parts for batch in part for key in batch) == [0, 1, 2, 3, 4]
    assert [len(batch) for part in parts for batch in part] == [2, 1, 1, 1]
    with pytest.raises(ValueError, match=r"got 5 images .* at least one for each of the 3 processes x 2 accumulated"):
        TrainBatchSampler(dataset, 1, num_processes=3, accumulation=2)


@pytest.mark.parametrize(("number", "batch_size"), [(1, 4), (50, 8), (64, 8)])
def test_evaluation_uses_every_image_once_in_fixed_batches(number, batch_size):
    dataset = coco_like(number, eval_transform())
    alone = list(EvalBatchSampler(dataset, batch_size))
    assert sorted(key.image_index for batch in alone for key in batch) == list(range(number))
    assert all(len(batch) <= batch_size for batch in alone)
    for processes in (2, 3):
        parts = [
            list(EvalBatchSampler(dataset, batch_size, num_processes=processes, process_index=index))
            for index in range(processes)
        ]
        assert [parts[k % processes][k // processes] for k in range(len(alone))] == alone


def test_evaluation_batches_have_little_padding():
    dataset = coco_like(1000, eval_transform())
    assert _padding(dataset, list(EvalBatchSampler(dataset, 8))) < 0.03


def test_images_are_batched_by_their_sizes_if_the_transform_cannot_plan():
    dataset = coco_like(400, lambda sample: sample)
    assert _padding(dataset, list(TrainBatchSampler(dataset, 8))) < 0.06


def test_packing_keeps_every_image():
    sizes = np.random.default_rng(0).integers(1, 50, (37, 2))
    assert sorted(pack_by_size(sizes, 5).tolist()) == list(range(37))


def test_packing_is_shallow_and_keeps_the_order_if_all_images_have_one_size():
    assert pack_by_size(np.full((20_000, 2), 64), 2).tolist() == list(range(20_000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 2, "process_index": 2, "num_processes": 2}, "process_index: got 2 with 2 processes"),
        ({"batch_size": 2, "accumulation": 0}, "accumulation: got 0"),
        ({"batch_size": 2, "batching": "aspect"}, "batching: got 'aspect', expected size or random"),
    ],
)
def test_invalid_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainBatchSampler(coco_like(10), **options)


def test_evaluation_batches_have_limited_pixels_and_each_image_once(coco_folder: Path) -> None:
    dataset = DetectionDataset(open_dataset(coco_folder), eval_transform(64))
    batches = [[key.image_index for key in batch] for batch in EvalBatchSampler(dataset, 4, max_pixels=12_000)]
    assert sorted(position for batch in batches for position in batch) == [0, 1, 2, 3]
    assert len(batches) > 1
    for batch in batches:
        sizes = planned_sizes(dataset, np.array(batch), 0)
        assert len(batch) == 1 or len(batch) * sizes.max(0).prod() <= 12_000
