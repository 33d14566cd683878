"""The choices of `detr train auto`, each from the facts it looks at; and choices that a plug-in adds."""

import dataclasses

import numpy as np
import pytest

from modeling_detr.data import open_dataset
from modeling_detr.data.splits import training_splits
from modeling_detr.errors_detr import DatasetError
from modeling_detr.training.auto import CHOICES
from modeling_detr.training.auto.facts import DataFacts
from modeling_detr.training.auto.situation import Pace, Situation, flattened, nested
from modeling_detr.training.auto.splits import choose_eval_images


CELLS = DataFacts(
    name="cells",
    num_images=205,
    num_eval_images=87,
    num_objects=2804,
    classes=("Platelets", "RBC", "WBC"),
    most_objects=28,
    usual_most_objects=25,
    median_objects=14,
    median_side=0.21,
    smallest_class="Platelets",
    small_side=0.08,
    width=640,
    height=480,
    aspect=4 / 3,
)
NEW = {
    "model_config.backbone": "resnet10t",
    "model_config.d_model": 128,
    "model_config.out_indices": [3],
    "backbone_weights": "resnet10t.c3_in1k",
    "batch_size": 4,
    "learning_rate": 7e-4,
}


def situation(facts=CELLS, minutes=60.0, seconds_per_step=0.3, settings=(), **changes) -> Situation:
    """A run on one CPU core whose step takes `seconds_per_step` at 320x240, and in proportion to the pixels."""

    def measure(values) -> Pace:
        size = values["processor_config.size"]
        pixels = size["shortest_edge"] * size["longest_edge"]
        return Pace(
            max(1, facts.num_images // values["batch_size"]), seconds_per_step * pixels / (320 * 240), 5.0, 0.1
        )

    return Situation(
        **{
            "data": facts,
            "settings": {**NEW, **dict(settings)},
            "given": frozenset(),
            "minutes": minutes,
            "device": "cpu",
            "cores": 1,
            "has_bf16": False,
            "num_processes": 1,
            "pretrained": None,
            "pretrained_size": None,
            "measure": measure,
            **changes,
        }
    )


def test_twice_as_many_queries_as_objects_and_a_limit_for_crowds():
    choose = CHOICES["model_config.num_queries"]
    assert choose(situation()).value == 60
    single = dataclasses.replace(CELLS, most_objects=1, usual_most_objects=1)
    assert choose(situation(single)).value == 20
    crowded = dataclasses.replace(CELLS, most_objects=900, usual_most_objects=800)
    assert choose(situation(crowded)).value == 1130
    endless = dataclasses.replace(CELLS, most_objects=9000, usual_most_objects=8000)
    assert choose(situation(endless)).value == 1500
    outlier = dataclasses.replace(CELLS, most_objects=2000, usual_most_objects=40)
    assert choose(situation(outlier)).value == 80


def test_more_time_buys_larger_images_once_there_are_enough_steps():
    choose = CHOICES["processor_config.size"]
    edges = [choose(situation(minutes=minutes)).value["shortest_edge"] for minutes in (2, 30, 60, 600)]
    assert edges == sorted(edges)
    assert edges[0] == 224
    assert edges[-1] == 416  # two cells for the smallest class, not the images' own 480
    assert "time is short" in choose(situation(minutes=2)).reason


def test_objects_that_stay_too_small_are_said_to_be():
    tiny = dataclasses.replace(CELLS, small_side=0.004, width=6000, height=4000, aspect=1.5)
    settings = {"model_config.out_indices": CHOICES["model_config.out_indices"](situation(tiny)).value}
    choice = CHOICES["processor_config.size"](situation(tiny, settings=settings.items()))
    assert settings == {"model_config.out_indices": [2]}  # stride 8
    assert "cut the images into tiles" in choice.reason
    assert choice.value["shortest_edge"] <= 800


def test_epochs_fill_the_time_and_a_few_images_are_not_repeated_for_ever():
    settings = {"processor_config.size": {"shortest_edge": 240, "longest_edge": 320}}
    chosen = CHOICES["epochs"](situation(settings=settings.items()))
    seconds = chosen.value * 51 * 0.3 + 12 * 5.1
    assert 0.95 * 3600 < seconds < 3600
    few = dataclasses.replace(CELLS, num_images=4)
    limited = CHOICES["epochs"](situation(few, minutes=6000, settings=settings.items()))
    assert limited.value == 3000
    assert "more hardly help" in limited.reason


def test_less_than_an_epoch_is_a_part_of_one():
    many = dataclasses.replace(CELLS, num_images=100_000)
    settings = {"processor_config.size": {"shortest_edge": 240, "longest_edge": 320}, "epochs": 1}
    now = situation(many, minutes=2, settings=settings.items())
    assert CHOICES["epochs"](now).value == 1
    assert 300 < CHOICES["max_steps"](now).value < 400


@pytest.mark.parametrize(("epochs", "mosaics"), [(12, False), (83, True)])
def test_images_that_are_seen_often_are_also_shown_in_mosaics(epochs, mosaics):
    settings = {"epochs": epochs}.items()
    choice = CHOICES["mosaic_probability"](situation(settings=settings))
    assert (choice is not None and choice.value > 0) == mosaics
    assert CHOICES["mosaic_probability"](situation(settings=settings, pretrained=object())) is None


@pytest.mark.parametrize(("queries", "weight"), [(60, 0.3), (1000, 0.1), (20, 0.5)])
def test_no_object_weighs_as_much_as_the_objects_of_an_image_within_limits(queries, weight):
    settings = {"model_config.num_queries": queries}.items()
    assert CHOICES["model_config.eos_coefficient"](situation(settings=settings)).value == weight
    assert CHOICES["model_config.eos_coefficient"](situation(settings=settings, pretrained=object())) is None


def test_rates_follow_the_batch_and_the_average_follows_the_steps():
    assert CHOICES["learning_rate"](situation()).value == pytest.approx(7e-4)
    assert CHOICES["learning_rate"](situation(settings={"batch_size": 8}.items())).value == pytest.approx(9.9e-4)
    assert CHOICES["backbone_learning_rate"](situation()).value == pytest.approx(3.5e-4)
    random = situation(settings={"backbone_weights": None}.items())
    assert CHOICES["backbone_learning_rate"](random).value == 7e-4
    assert CHOICES["model_config.freeze_batch_norm"](random).value is False
    decays = [CHOICES["ema_decay"](situation(settings={"epochs": epochs}.items())).value for epochs in (2, 100, 9000)]
    assert decays == [0.95, 0.999, 0.9998]


def test_classes_of_one_side_are_not_mirrored():
    arrows = dataclasses.replace(CELLS, classes=("turn left", "turn_right", "bright", "stop"))
    assert CHOICES["no_flip_classes"](situation(arrows)).value == ["turn left", "turn_right"]
    assert CHOICES["no_flip_classes"](situation()) is None


def test_the_facts_leave_crowd_regions_out():
    train, evaluation = training_splits(open_dataset("shapes?size=64&train=12&val=4"))
    facts = DataFacts.of(train, evaluation)
    assert (facts.num_images, facts.num_eval_images, facts.num_objects) == (12, 4, len(train.annotations))
    crowds = dataclasses.replace(train.annotations, is_crowd=np.arange(len(train.annotations)) > 0)
    assert DataFacts.of(dataclasses.replace(train, annotations=crowds), evaluation).num_objects == 1
    assert "12 images of 64x64 to train on, 4 to evaluate on" in facts.describe()


def test_without_a_validation_split_a_part_is_held_out():
    index = open_dataset("shapes?size=64&train=12&val=4")
    assert choose_eval_images(index, None)[:2] == ("eval_split", "val")
    unsplit = dataclasses.replace(index, splits={})
    assert choose_eval_images(unsplit, None)[:2] == ("eval_fraction", 0.2)
    test_only = dataclasses.replace(index, splits={"train": np.arange(12), "test": np.arange(12, 16)})
    assert "optimistic" in choose_eval_images(test_only, None).reason
    with pytest.raises(DatasetError, match="has 1 image to train on, expected at least 2"):
        choose_eval_images(unsplit.select([0]), None)


def test_settings_survive_flattening():
    values = {"epochs": 3, "model_config": {"backbone": "resnet18", "backbone_kwargs": {"a": 1}}, "label_mapping": {}}
    assert nested(flattened(values)) == values
    assert nested({"processor_config.size": {"a": 1}, "processor_config.size.b": 2}) == {
        "processor_config": {"size": {"a": 1, "b": 2}}
    }
