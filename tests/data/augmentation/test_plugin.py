"""An augmentation policy that is added from outside, as a plug-in would do."""

from dataclasses import dataclass

import pytest
from accelerate import Accelerator

from modeling_detr.data import POLICIES, GeometryPolicy, open_dataset, train_transform
from modeling_detr.data.augmentation.geometry import GeometryPlan
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.setup import build_loaders


@dataclass(frozen=True)
class HalvesPolicy(GeometryPolicy):
    """Resizes to a square of the processor's size or half of it."""

    sides: tuple[int, ...] = (7,)

    @classmethod
    def sizes_for(cls, shortest_edge, longest_edge):
        return {"sides": (shortest_edge // 2, shortest_edge)}

    def plan(self, height, width, generator):
        side = generator.choice(self.sides)
        return GeometryPlan(side, side, flip=generator.random() < 0.5)


@pytest.fixture(autouse=True)
def halves(monkeypatch):
    monkeypatch.setitem(POLICIES, "halves", HalvesPolicy)


def test_it_chooses_its_sizes_from_the_processors():
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    index = open_dataset("shapes?size=64&train=12&val=2")
    recipe = Recipe(transform="halves", batch_size=2, num_workers=0)
    loaders = build_loaders(recipe, index.split("train"), index.split("val"), processor, Accelerator(cpu=True))
    dataset = loaders.train_sampler.dataset
    assert {tuple(dataset[image]["image"].shape) for image in range(12)} == {(3, 48, 48), (3, 96, 96)}


def test_sizes_may_also_be_given():
    assert train_transform("halves") == HalvesPolicy((7,))
    assert train_transform("halves", scales=32) == HalvesPolicy((16, 32))
    assert train_transform("halves", size=(96, None), sides=[10]) == HalvesPolicy((10,))


def test_errors_list_it():
    with pytest.raises(ValueError, match=r"no such policy, .*did you mean 'halves'"):
        train_transform("halvs")
    with pytest.raises(ValueError, match="policy 'halves' has no option 'side'; did you mean 'sides'"):
        train_transform("halves", side=3)
