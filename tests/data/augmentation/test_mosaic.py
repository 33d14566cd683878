"""Mosaics: boxes and masks are where the pixels are, and a sample depends on its key only."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_detr.data import DetectionDataset, SampleKey, TrainBatchSampler, train_transform
from modeling_detr.data.augmentation.mosaic import Mosaic
from modeling_detr.data.sampler import planned_sizes
from modeling_detr.errors_detr import DatasetReadError
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, MaskColumn


ALWAYS = Mosaic(1.0)
POLICIES = ["original", "light", "strong", "none"]
WITHOUT_JITTER = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
SIZES = [(96, 128), (128, 96), (100, 100), (90, 130), (96, 128), (96, 128)]  # height, width
PER_IMAGE = 4


def _colour(row: int) -> tuple[int, int, int]:
    """A colour for each object, at least 60 grey levels from those of the others and from black, in some channel."""
    return 63 * (row % 4) + 60, 63 * (row // 4 % 4) + 60, 63 * (row // 16 % 4) + 60


def _boxes(image: int) -> list[tuple[int, int, int, int]]:
    """Four objects of an image that do not touch: corners in pixels."""
    height, width = SIZES[image]
    corners = [(6 + image, 8), (6, width // 2 + 4), (height // 2 + 4, 8), (height // 2 + 6, width // 2 + 4)]
    return [(left, top, left + width // 2 - 16, top + height // 2 - 14) for top, left in corners]


def _draw(path: str) -> np.ndarray:
    image = int(path)
    pixels = np.zeros((*SIZES[image], 3), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(_boxes(image)):
        pixels[y0:y1, x0:x1] = _colour(PER_IMAGE * image + number)
    return pixels


@dataclass
class _Masks:
    def read(self, rows):
        images = [_draw(str(row // PER_IMAGE)) for row in rows.tolist()]
        return np.stack([(image == _colour(row)).all(-1) for image, row in zip(images, rows.tolist(), strict=True)])


@pytest.fixture
def index() -> DetectionIndex:
    """Images with objects in colours of their own; the label of an object is its number in its image."""
    count = PER_IMAGE * len(SIZES)
    boxes = np.array([box for image in range(len(SIZES)) for box in _boxes(image)], np.float64)
    table = AnnotationTable(
        np.repeat(np.arange(len(SIZES)), PER_IMAGE),
        np.arange(count) % PER_IMAGE,
        boxes,
        (boxes[:, 2:] - boxes[:, :2]).prod(1),
        np.zeros(count, bool),
        MaskColumn.of(_Masks(), count),
    )
    images = tuple(ImageRecord(number, str(number), *size, reader=_draw) for number, size in enumerate(SIZES))
    return DetectionIndex("coloured", images, tuple(Category(k, name) for k, name in enumerate("abcd")), table)


def _transform(name: str, **options):
    return train_transform(name, size=(96, 160), **{**WITHOUT_JITTER, **options})


def _same(first, second) -> bool:
    targets = first["target"], second["target"]
    return torch.equal(first["image"], second["image"]) and all(
        torch.equal(*(torch.as_tensor(target[name]) for target in targets)) for name in targets[0]
    )


@pytest.mark.parametrize("name", POLICIES)
def test_boxes_and_masks_are_where_the_pixels_of_their_objects_are(index, name):
    dataset = DetectionDataset(index, _transform(name), masks=True, mosaic=ALWAYS)
    num_boxes = 0
    for key in (SampleKey(image, epoch) for image in range(len(index)) for epoch in range(6)):
        sample = dataset[key]
        target, height, width = sample["target"], *sample["image"].shape[-2:]
        for box, label, area, mask in zip(
            target["boxes"], target["class_labels"], target["area"], target["masks"], strict=True
        ):
            x0, y0, x1, y1 = box.tolist()
            assert 0 <= x0 < x1 <= width + 1e-3
            assert 0 <= y0 < y1 <= height + 1e-3
            assert float(area) == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-3)
            if min(x1 - x0, y1 - y0) < 4:
                continue
            inside = sample["image"][:, round(y0 + 1) : round(y1 - 1), round(x0 + 1) : round(x1 - 1)]
            colour = inside.flatten(1).median(1).values
            rows = [row for row in range(PER_IMAGE * len(SIZES)) if torch.equal(colour, torch.tensor(_colour(row)))]
            assert [row % PER_IMAGE for row in rows] == [int(label)]
            assert (inside == colour[:, None, None]).float().mean() > 0.95
            columns, lines = mask.any(0).nonzero(), mask.any(1).nonzero()
            extent = [columns.min(), lines.min(), columns.max() + 1, lines.max() + 1]
            assert torch.tensor(extent).sub(box).abs().max() <= 2
            assert mask[round(y0 + 1) : round(y1 - 1), round(x0 + 1) : round(x1 - 1)].all()
            num_boxes += 1
    assert num_boxes > 100


@pytest.mark.parametrize("name", POLICIES)
def test_objects_that_a_tile_hardly_shows_are_dropped_and_all_others_kept(index, name):
    dataset = DetectionDataset(index, _transform(name, min_visibility=0) if name != "none" else _transform(name))
    for least in (0.0, 0.25, 0.9):
        dataset.mosaic = Mosaic(1.0, min_visibility=least)
        keys = [SampleKey(image, epoch) for image in range(len(index)) for epoch in range(4)]
        counts = [len(dataset[key]["target"]["boxes"]) for key in keys]
        assert counts == [dataset.count_objects(key) for key in keys]
        shares = [share for key in keys for share in _visible_shares(dataset, key)]
        assert sum(counts) == sum(share >= least * (1 - 1e-5) for share in shares)
        assert least == 0 or sum(counts) < len(shares)


def _visible_shares(dataset: DetectionDataset, key: SampleKey) -> list[float]:
    """The shares of the objects' areas that the tiles of a mosaic show, where they show any."""
    layout = dataset.mosaic_layout(key)
    shares = []
    for number, image in enumerate([key.image_index, *layout.partners]):
        top, left, height, width = dataset.plan_tile(number, image, layout, key).crop
        seen = np.zeros(SIZES[image], bool)
        seen[top : top + height, left : left + width] = True
        shares += [seen[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in _boxes(image)]
    return [share for share in shares if share > 0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("name", ["light", "strong"])
def test_a_mosaic_depends_on_seed_epoch_and_image_only(index, name):
    transform = train_transform(name, size=(96, 160))
    dataset = DetectionDataset(index, transform, seed=5, masks=True, mosaic=ALWAYS)
    keys = [[SampleKey(image, 2)] for image in range(len(index))]
    alone = [dataset[key] for (key,) in keys]
    loader = DataLoader(dataset, batch_sampler=keys, collate_fn=lambda samples: samples[0], num_workers=2)
    assert all(_same(mine, theirs) for mine, theirs in zip(alone, loader, strict=True))
    assert all(_same(dataset[key], mine) for (key,), mine in reversed(list(zip(keys, alone, strict=True))))
    other_seed = DetectionDataset(index, transform, seed=6, mosaic=ALWAYS)
    for (key,), sample in zip(keys, alone, strict=True):
        assert not torch.equal(dataset[key._replace(epoch=3)]["image"], sample["image"])
        assert not torch.equal(other_seed[key]["image"], sample["image"])


@pytest.mark.parametrize("name", POLICIES)
def test_epochs_after_the_last_with_mosaics_equal_those_of_a_run_without(index, name):
    transform = train_transform(name, size=(96, 160))
    plain = DetectionDataset(index, transform, seed=3, masks=True)
    dataset = DetectionDataset(index, transform, seed=3, masks=True, mosaic=Mosaic(1.0, num_epochs=2))
    for image in range(len(index)):
        assert [dataset.is_mosaic(SampleKey(image, epoch)) for epoch in range(4)] == [True, True, False, False]
        assert not torch.equal(dataset[SampleKey(image, 1)]["image"], plain[SampleKey(image, 1)]["image"])
        for epoch in (2, 3):
            assert _same(dataset[SampleKey(image, epoch)], plain[SampleKey(image, epoch)])


def test_the_probability_is_the_share_of_mosaics_and_the_others_are_plain(index):
    transform = _transform("light")
    plain, dataset = DetectionDataset(index, transform), DetectionDataset(index, transform, mosaic=Mosaic(0.3))
    keys = [SampleKey(image, epoch) for image in range(len(index)) for epoch in range(200)]
    assert 0.25 < np.mean([dataset.is_mosaic(key) for key in keys]) < 0.35
    for key in keys[:20]:
        assert dataset.is_mosaic(key) != _same(dataset[key], plain[key])


@pytest.mark.parametrize("name", POLICIES)
def test_sizes_and_steps_are_those_of_the_plain_samples(index, name):
    transform = _transform(name)
    plain, dataset = DetectionDataset(index, transform, seed=1), DetectionDataset(index, transform, 1, mosaic=ALWAYS)
    sizes = planned_sizes(dataset, np.arange(len(index)), epoch=4)
    np.testing.assert_array_equal(sizes, planned_sizes(plain, np.arange(len(index)), epoch=4))
    for image, size in enumerate(sizes.tolist()):
        assert [*dataset[SampleKey(image, 4)]["image"].shape[-2:]] == size
    assert list(TrainBatchSampler(dataset, 2)) == list(TrainBatchSampler(plain, 2))


def test_tiles_show_their_images_smaller_and_hardly_distorted(index):
    dataset, scales = DetectionDataset(index, _transform("none"), mosaic=ALWAYS), []
    for key in (SampleKey(image, epoch) for image in range(len(index)) for epoch in range(40)):
        layout = dataset.mosaic_layout(key)
        for number, image in enumerate([key.image_index, *layout.partners]):
            plan = dataset.plan_tile(number, image, layout, key)
            plain = dataset.transform.plan(*SIZES[image], random.Random(0))
            heights = plan.height / plan.crop.height / (plain.height / SIZES[image][0])
            widths = plan.width / plan.crop.width / (plain.width / SIZES[image][1])
            assert heights == pytest.approx(widths, rel=0.1)  # a tile has whole pixels, of which it may have few
            scales.append(heights)
    assert 0.45 < min(scales) < 0.55
    assert np.mean(np.array(scales) > 1.02) < 0.05  # an image in portrait format in a wide tile


def test_tiles_with_a_no_flip_class_are_not_flipped(index):
    always = {"flip_probability": 1, "vertical_flip_probability": 1}
    one_class = DetectionIndex(index.name, index.images, index.categories, index.annotations.take(slice(1, None)))
    dataset = DetectionDataset(one_class, _transform("light", **always), no_flip_classes=["a"], mosaic=ALWAYS)
    flips = {image: set() for image in range(len(SIZES))}
    for key in (SampleKey(image, epoch) for image in range(len(SIZES)) for epoch in range(5)):
        layout = dataset.mosaic_layout(key)
        for number, image in enumerate([key.image_index, *layout.partners]):
            plan = dataset.plan_tile(number, image, layout, key)
            flips[image].add((plan.flip, plan.vertical_flip))
    assert flips.pop(0) == {(True, True)}  # it has no "a" any more
    assert all(flip == {(False, False)} for flip in flips.values())


def _with_unreadable(index: DetectionIndex, image: int) -> DetectionIndex:
    def fail(path):
        raise OSError("worn out")

    broken = ImageRecord(image, str(image), *SIZES[image], reader=fail)
    images = tuple(broken if record.id == image else record for record in index.images)
    return DetectionIndex(index.name, images, index.categories, index.annotations)


def test_an_unreadable_tile_is_replaced_and_reported(index):
    broken = _with_unreadable(index, 3)
    dataset = DetectionDataset(broken, _transform("light"), replace_unreadable=True, mosaic=ALWAYS)
    strict = DetectionDataset(broken, _transform("light"), mosaic=ALWAYS)
    whole = DetectionDataset(index, _transform("light"), mosaic=ALWAYS)
    num_replaced = 0
    for key in (SampleKey(image, epoch) for image in range(len(index)) for epoch in range(3)):
        sample = dataset[key]
        if 3 not in [key.image_index, *dataset.mosaic_layout(key).partners]:
            assert "unreadable" not in sample
            assert _same(sample, whole[key])
            continue
        num_replaced += 1
        assert sample["unreadable"] == {3: "3: the image cannot be read (OSError: worn out)"}
        assert _same(sample, dataset[key])
        with pytest.raises(DatasetReadError, match="worn out"):
            strict[key]
    assert num_replaced > 3


def test_stuff_of_several_tiles_is_one_region(index):
    categories = (Category(0, "sky", is_thing=False), *index.categories[1:])
    panoptic = DetectionIndex(index.name, index.images, categories, index.annotations)
    things = DetectionDataset(index, _transform("none"), masks=True, mosaic=Mosaic(1.0, min_visibility=0))
    dataset = DetectionDataset(panoptic, _transform("none"), masks=True, mosaic=Mosaic(1.0, min_visibility=0.9))
    joined = 0
    for image in range(len(index)):
        apart, target = things[image]["target"], dataset[image]["target"]
        is_sky, is_joined_sky = apart["class_labels"] == 0, target["class_labels"] == 0
        assert is_joined_sky.sum() == 1
        masks, boxes = apart["masks"][is_sky], torch.as_tensor(apart["boxes"])[is_sky]
        assert torch.equal(torch.as_tensor(target["masks"])[is_joined_sky][0], masks.any(0))  # however little is seen
        expected = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        assert torch.equal(torch.as_tensor(target["boxes"])[is_joined_sky][0], expected)
        assert float(target["area"][is_joined_sky]) == pytest.approx(float(apart["area"][is_sky].sum()))
        assert not (target["masks"].sum(0) > 1).any()
        joined += int(is_sky.sum() > 1)
    assert joined


def test_objects_of_a_teacher_are_moved_with_their_scores_and_are_no_stuff_of_the_annotation(index):
    rows = index.annotations
    teacher = AnnotationTable(
        rows.image_index, rows.label, rows.boxes_xyxy, rows.area, rows.is_crowd, attributes={"score": rows.area / 1e6}
    )
    categories = (Category(0, "sky", is_thing=False), *index.categories[1:])
    panoptic = DetectionIndex(index.name, index.images, categories, rows)
    mosaic = Mosaic(1.0, min_visibility=0)
    dataset = DetectionDataset(panoptic, _transform("light"), masks=True, teacher=teacher, mosaic=mosaic)
    without = DetectionDataset(index, _transform("light"), mosaic=mosaic)
    alone = DetectionDataset(panoptic, _transform("light"), masks=True, mosaic=mosaic)
    for image in range(len(index)):
        target, expected, annotated = (one[image]["target"] for one in (dataset, without, alone))
        of_teacher = target["teacher_scores"] > 0
        boxes = torch.as_tensor(target["boxes"])
        assert torch.equal(boxes[of_teacher], torch.as_tensor(expected["boxes"]))
        assert torch.equal(boxes[~of_teacher], torch.as_tensor(annotated["boxes"]))
        assert torch.equal(torch.as_tensor(target["masks"])[~of_teacher], torch.as_tensor(annotated["masks"]))


def test_another_transform_gets_mosaics_of_the_images_size(index):
    seen = []

    def mirror(sample):
        seen.append(sample)
        return {"image": sample["image"].flip(-1), "target": sample["target"]}

    dataset = DetectionDataset(index, mirror, mosaic=ALWAYS)
    sample = dataset[SampleKey(1, 0)]
    assert sample["image"].shape == (3, *SIZES[1])
    assert torch.equal(sample["image"].flip(-1), seen[0]["image"])
    assert torch.equal(seen[0]["image"], DetectionDataset(index, mosaic=ALWAYS)[SampleKey(1, 0)]["image"])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_images_than_tiles_are_repeated(index, count):
    dataset = DetectionDataset(index.select(range(count)), _transform("light"), mosaic=ALWAYS)
    for image in range(count):
        layout = dataset.mosaic_layout(SampleKey(image))
        assert len(layout.partners) == 3
        assert {image, *layout.partners} == {*range(count)}
        assert len(dataset[image]["target"]["boxes"]) > 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (3, 500)])
def test_images_of_a_few_pixels_have_mosaics(size):
    record = ImageRecord(0, "0", *size, reader=lambda path: np.full((*size, 3), 7, np.uint8))
    index = DetectionIndex("tiny", (record,), (Category(0, "dot"),), AnnotationTable.concatenate([]))
    for transform in (None, train_transform("light", scales=8), train_transform("original", scales=8)):
        dataset = DetectionDataset(index, transform, mosaic=ALWAYS)
        for epoch in range(20):
            plan = dataset.plan(SampleKey(0, epoch))
            image = dataset[SampleKey(0, epoch)]["image"]
            assert image.shape == (3, plan.height, plan.width)
            assert (image == 7).all()


def test_errors_name_the_image_of_the_tile(index, monkeypatch):
    def fail(sample, plan, min_visibility):
        raise ValueError("too odd")

    monkeypatch.setattr("modeling_detr.data.dataset.apply_plan", fail)
    with pytest.raises(ValueError, match="too odd") as caught:
        DetectionDataset(index, _transform("light"), mosaic=ALWAYS)[2]
    assert caught.value.__notes__ == ["while transforming 2"]
