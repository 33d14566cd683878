"""The plan says what images of very many objects, or very many classes, mean for a run."""

import dataclasses
import re

import numpy as np

from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, MaskColumn
from modeling_detr.training.aids import build_training_model
from modeling_detr.training.capacity import capacity_notes
from modeling_detr.training.plan import plan
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer


class NoMasks:
    def read(self, rows):
        raise AssertionError("the plan reads no masks")


def index_of(*counts, masks=False):
    """Return a dataset of images with the given numbers of objects."""
    total = sum(counts)
    return DetectionIndex(
        name="crowded",
        images=tuple(ImageRecord(number, "", 800, 1333) for number in range(len(counts))),
        categories=(Category(1, "a"),),
        annotations=AnnotationTable(
            image_index=np.repeat(np.arange(len(counts)), counts),
            label=np.zeros(total, np.int64),
            boxes_xyxy=np.tile([0.0, 0, 9, 9], (total, 1)),
            area=np.full(total, 81.0),
            is_crowd=np.zeros(total, np.bool_),
            masks=MaskColumn.of(NoMasks(), total) if masks else None,
        ),
    )


def notes(tiny_detector, index, batch_size=2, config=None, **aids):
    model = build_training_model(tiny_detector(**(config or {})), **aids)
    return capacity_notes(index, model, batch_size, (800, 1333))


def test_usual_data_needs_no_note(tiny_detector):
    index = index_of(3, 0, 60, masks=True)
    assert notes(tiny_detector, index, config={"num_queries": 100}, denoising_groups=3) == []


def test_more_objects_than_queries_are_announced(tiny_detector):
    (note,) = notes(tiny_detector, index_of(3, 12, 5000), config={"num_queries": 10})
    start = "2 images have more objects than the model has queries (10), up to 5,000; 4,992 objects are"
    assert note.startswith(start)


def test_bounded_denoising_is_announced(tiny_detector):
    options = {"config": {"num_queries": 6000}, "denoising_groups": 3}
    assert notes(tiny_detector, index_of(3, 120), **options) == [
        "denoising has at most 300 queries per image, so 1 image with more than 100 objects has fewer than 3 groups."
    ]
    (note,) = notes(tiny_detector, index_of(101, 5000), **options)
    assert "2 images with more than 100 objects have fewer than 3 groups; of more than 300, each step denoises" in note


def test_large_memory_is_announced(tiny_detector):
    load, train = notes(tiny_detector, index_of(3, 2000, masks=True), config={"num_queries": 2000})
    assert load == (
        "loading image 1 with its 2,000 masks takes about 4.3 GB in a loader process. Fewer num_workers take less."
    )
    start = "a batch may have 2,003 masks of 1333x800 (width x height). Steps with more than 125 compute them in parts"
    assert train.startswith(start)
    many = {"num_labels": 10_000, "num_queries": 100, "decoder_layers": 6}
    (note,) = notes(tiny_detector, index_of(3), batch_size=16, config=many)
    assert note.startswith("the class scores of a batch take about 1.5 GB: 6 decoder layers x 16 images x 100 queries")


def test_mosaics_of_more_objects_than_queries_are_announced(tiny_recipe):
    def mosaic_notes(**changes):
        config = {**tiny_recipe().model_config, "num_queries": 6}
        lines = plan(prepare_run(tiny_recipe(model_config=config, **changes))).splitlines()
        return [line for line in lines if "mosaic" in line and line.startswith("note")]

    assert mosaic_notes() == []
    (note,) = mosaic_notes(mosaic_probability=1.0)
    assert re.fullmatch(
        r"note      \d+ of 20 mosaics that were tried have more objects than the model has queries \(6\), up to "
        r"\d+; the surplus is not trained on. Raise model_config.num_queries, or lower mosaic_probability.",
        note,
    )


def test_the_plan_has_these_notes_and_does_not_list_thousands_of_classes(tiny_recipe):
    run = Trainer.from_recipe(tiny_recipe(model_config={**tiny_recipe().model_config, "num_queries": 1})).run
    assert "more objects than the model has queries (1)" in plan(run)
    assert "classes   circle " in plan(run)
    many = tuple(Category(number, f"class {number}") for number in range(1000))
    run = dataclasses.replace(run, train_index=dataclasses.replace(run.train_index, categories=many))
    (line,) = [line for line in plan(run).splitlines() if line.startswith("classes")]
    assert line.startswith("classes   1,000, most frequent class ")
    assert line.endswith(", and 900 more")
