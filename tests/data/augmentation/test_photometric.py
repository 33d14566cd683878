"""Photometric jitter changes pixels only, for every policy, and by the sample's key."""

import random

import pytest
import torch
from torchvision.transforms.v2 import functional

from modeling_detr.data import DetectionDataset, SampleKey, open_dataset, train_transform
from modeling_detr.data.augmentation.mosaic import Mosaic
from modeling_detr.data.augmentation.photometric import Photometry


JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.5, "hue": 0.1}
NO_JITTER = dict.fromkeys(JITTER, 0)


@pytest.fixture(scope="module")
def index():
    return open_dataset("shapes?size=64&train=6&val=2", "train")


@pytest.mark.parametrize("mosaic", [None, Mosaic(1.0)])
@pytest.mark.parametrize("name", ["original", "light", "strong", "none"])
def test_only_pixels_change_and_only_by_the_key(index, name, mosaic):
    plain = DetectionDataset(index, train_transform(name, scales=64, **NO_JITTER), mosaic=mosaic)
    dataset = DetectionDataset(index, train_transform(name, scales=64, **JITTER), mosaic=mosaic)
    for key in (SampleKey(image, epoch) for image in range(6) for epoch in range(2)):
        before, after = plain[key], dataset[key]
        assert after["image"].dtype == torch.uint8
        assert after["image"].shape == before["image"].shape
        assert not torch.equal(after["image"], before["image"])
        assert torch.equal(after["target"]["boxes"], before["target"]["boxes"])
        assert torch.equal(dataset[key]["image"], after["image"])


def test_the_draws_of_an_image_differ_by_epoch(index):
    dataset = DetectionDataset(index, train_transform("none", scales=64, brightness=0.5))
    means = {round(float(dataset[SampleKey(0, epoch)]["image"].float().mean()), 3) for epoch in range(6)}
    assert len(means) == 6


def test_each_option_changes_its_property():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = {"image": image, "target": {}}
    for name, change in {"brightness": 0.7, "contrast": 1.3, "saturation": 0.6, "hue": 0.1}.items():
        expected = getattr(functional, f"adjust_{name}")(image, change)
        assert torch.equal(Photometry(**{name: change}).apply(sample)["image"], expected)
    assert Photometry().apply(sample)["image"] is image


def test_factors_are_drawn_from_the_given_ranges():
    policy, generator = train_transform("light", **JITTER), random.Random(0)
    draws = [policy.draw_photometry(generator) for _ in range(500)]
    for name, (least, most) in {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.5, 1.5),
        "hue": (-0.1, 0.1),
    }.items():
        values = [getattr(draw, name) for draw in draws]
        assert least <= min(values) < least + 0.02
        assert most - 0.02 < max(values) <= most
    assert train_transform("light").draw_photometry(generator) is None


def test_a_policy_that_is_called_jitters_too(index):
    sample = DetectionDataset(index)[0]
    policy = train_transform("none", scales=64, brightness=0.5)
    assert not torch.equal(policy(sample, random.Random(1))["image"], sample["image"])
    assert torch.equal(policy(sample, random.Random(1))["image"], policy(sample, random.Random(1))["image"])
