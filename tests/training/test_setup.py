import numpy as np
import pytest

from modeling_detr.data import SampleKey, open_dataset
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex
from modeling_detr.training.setup import number_labels, open_splits, prepare_run


def test_splits_are_found_by_their_usual_names_or_held_out(tiny_recipe):
    train, evaluation = open_splits(tiny_recipe())
    assert (len(train), len(evaluation)) == (20, 4)
    train, evaluation = open_splits(tiny_recipe(eval_fraction=0.2))
    assert (len(train), len(evaluation)) == (16, 4)
    train, evaluation = open_splits(tiny_recipe(train_split="train+val", eval_split="val"))
    assert (len(train), len(evaluation)) == (24, 4)


def test_data_without_an_evaluation_split_is_an_error_with_a_remedy(tiny_recipe, monkeypatch):
    whole = open_dataset("shapes?size=64&train=8&val=2")
    only_train = DetectionIndex(
        whole.name, whole.images, whole.categories, whole.annotations, {"train": whole.splits["train"]}
    )
    monkeypatch.setattr("modeling_detr.training.setup.open_dataset", lambda *_, **__: only_train)
    with pytest.raises(ValueError, match=r"hold out some images for evaluation \(eval_fraction=0\.1\)"):
        open_splits(tiny_recipe())


def test_data_without_splits_is_divided_or_an_error(tiny_recipe, monkeypatch):
    whole = open_dataset("shapes?size=64&train=8&val=2")
    undivided = DetectionIndex(whole.name, whole.images, whole.categories, whole.annotations, {UNSPLIT: np.arange(10)})
    monkeypatch.setattr("modeling_detr.training.setup.open_dataset", lambda *_, **__: undivided)
    train, evaluation = open_splits(tiny_recipe(eval_fraction=0.2))
    assert (len(train), len(evaluation)) == (8, 2)
    with pytest.raises(ValueError, match=r"has no splits; hold out some images .* \(eval_fraction=0\.1\)"):
        open_splits(tiny_recipe())


def test_a_misspelt_transform_is_reported_before_weights_are_downloaded(tiny_recipe, monkeypatch):
    def fetch(*_):
        raise AssertionError("fetched")

    monkeypatch.setattr("modeling_detr.modeling_detr.DetrModel.load_backbone_weights", fetch)
    for wrong in ({"transform": "lite"}, {"processor_config": {"sise": 3}}):
        with pytest.raises(ValueError, match=r"lite|sise"):
            prepare_run(tiny_recipe(backbone_weights="resnet10t.c3_in1k", **wrong))


def test_the_last_epochs_of_a_run_have_no_mosaics(tiny_recipe):
    def epochs_with_mosaics(**changes):
        run = prepare_run(tiny_recipe(**changes))
        dataset = run.loaders.train.dataset
        assert dataset is run.loaders.train_sampler.dataset
        keys = [[SampleKey(image, epoch) for image in range(20)] for epoch in range(run.schedule.epochs)]
        return [all(map(dataset.is_mosaic, keys_of_epoch)) for keys_of_epoch in keys]

    assert epochs_with_mosaics() == [False] * 2
    assert epochs_with_mosaics(mosaic_probability=1.0, epochs=10) == [True] * 8 + [False] * 2  # 15 %
    assert epochs_with_mosaics(mosaic_probability=1.0, epochs=10, close_mosaic_share=0.5) == [True] * 5 + [False] * 5
    # 5 steps of 4 images are an epoch
    assert epochs_with_mosaics(mosaic_probability=1.0, epochs=100, max_steps=48) == [True] * 8 + [False] * 2


def test_labels_are_dense_raw_or_those_of_the_model(tiny_recipe, tiny_detector, tmp_path):
    whole = open_dataset("shapes?size=64&train=8&val=2&classes=circle,square")
    names = ["star", "square", "triangle", "circle"]
    tiny_detector(num_labels=4, id2label=dict(enumerate(names))).save_pretrained(tmp_path / "knows")

    assert number_labels(tiny_recipe(), whole) is whole
    known = number_labels(tiny_recipe(model=str(tmp_path / "knows")), whole)
    assert list(known.id2label.values()) == names
    assert {category.id for category in known.categories if category.name in ("circle", "square")} == {
        category.id for category in whole.categories
    }
    for row, label in enumerate(whole.annotations.label):
        assert names[known.annotations.label[row]] == whole.id2label[label]
    fresh = tiny_recipe(model=str(tmp_path / "knows"), head_init="fresh")
    assert number_labels(fresh, whole) is whole
    raw = number_labels(tiny_recipe(label_ids="raw"), whole)
    assert len(raw.categories) == max(category.id for category in whole.categories) + 1
