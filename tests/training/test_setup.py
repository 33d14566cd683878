import re

import numpy as np
import pytest
import torch

from modeling_detr.data import open_dataset
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex
from modeling_detr.training.setup import (
    build_model,
    build_processor,
    compile_parts,
    head_note,
    number_labels,
    open_splits,
)


NAMES = {0: "circle", 1: "square"}


def test_splits_are_found_by_their_usual_names_or_held_out(tiny_recipe):
    train, evaluation = open_splits(tiny_recipe())
    assert (len(train), len(evaluation)) == (20, 4)
    train, evaluation = open_splits(tiny_recipe(eval_fraction=0.2))
    assert (len(train), len(evaluation)) == (16, 4)
    train, evaluation = open_splits(tiny_recipe(train_split="train+val", eval_split="val"))
    assert (len(train), len(evaluation)) == (24, 4)


def test_data_without_a_split_to_evaluate_on_says_what_to_do(tiny_recipe, monkeypatch):
    whole = open_dataset("shapes?size=64&train=8&val=2")
    only_train = DetectionIndex(
        whole.name, whole.images, whole.categories, whole.annotations, {"train": whole.splits["train"]}
    )
    monkeypatch.setattr("modeling_detr.training.setup.open_dataset", lambda *_, **__: only_train)
    with pytest.raises(ValueError, match=r"or hold out some images \(eval_split='train', eval_fraction=0\.1\)"):
        open_splits(tiny_recipe())


def test_data_without_any_split_is_held_out_of_or_says_so_at_once(tiny_recipe, monkeypatch):
    whole = open_dataset("shapes?size=64&train=8&val=2")
    undivided = DetectionIndex(whole.name, whole.images, whole.categories, whole.annotations, {UNSPLIT: np.arange(10)})
    monkeypatch.setattr("modeling_detr.training.setup.open_dataset", lambda *_, **__: undivided)
    train, evaluation = open_splits(tiny_recipe(eval_fraction=0.2))
    assert (len(train), len(evaluation)) == (8, 2)
    with pytest.raises(ValueError, match=r"has no splits; hold out some images .* \(eval_fraction=0\.1\)"):
        open_splits(tiny_recipe())


def test_a_misspelt_transform_is_told_before_weights_are_fetched(tiny_recipe, monkeypatch):
    def fetch(*_):
        raise AssertionError("fetched")

    monkeypatch.setattr("modeling_detr.modeling_detr.DetrModel.load_backbone_weights", fetch)
    for wrong in ({"transform": "lite"}, {"processor_config": {"sise": 3}}):
        with pytest.raises(ValueError, match=r"lite|sise"):
            build_model(tiny_recipe(backbone_weights="resnet10t.c3_in1k", **wrong), NAMES)


def test_a_model_config_that_takes_layers_away_is_refused(tiny_recipe, tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(model=str(tmp_path / "model"), model_config={"decoder_layers": 1})
    with pytest.raises(ValueError, match=r"of its weights have no place, first 'model\.decoder\.layers\.1\."):
        build_model(recipe, NAMES)


def test_a_model_to_start_from_keeps_its_weights_and_gets_a_head_for_the_dataset(tiny_recipe, tiny_detector, tmp_path):
    pretrained = tiny_detector()
    pretrained.save_pretrained(tmp_path / "pretrained")
    recipe = tiny_recipe(model=str(tmp_path / "pretrained"), model_config={"dropout": 0.25})
    model = build_model(recipe, NAMES)
    assert model.config.id2label == NAMES
    assert model.class_labels_classifier.weight.shape[0] == 3
    assert model.config.dropout == 0.25
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, pretrained.model.get_parameter(name)), name


def test_the_same_seed_makes_the_same_model(tiny_recipe):
    one, two = (build_model(tiny_recipe(seed=5), NAMES) for _ in range(2))
    other = build_model(tiny_recipe(seed=6), NAMES)
    assert torch.equal(one.model.query_position_embeddings.weight, two.model.query_position_embeddings.weight)
    assert not torch.equal(one.model.query_position_embeddings.weight, other.model.query_position_embeddings.weight)


def test_gradient_checkpointing_is_switched_on(tiny_recipe):
    model = build_model(tiny_recipe(gradient_checkpointing=True), NAMES)
    assert model.model.encoder.layers[0].gradient_checkpointing


def test_a_new_processor_has_the_mean_of_the_backbone_that_it_serves(tiny_recipe, tiny_config):
    recipe = tiny_recipe()
    assert tuple(build_processor(recipe, tiny_config()).image_mean) == (0.485, 0.456, 0.406)
    processor = build_processor(recipe, tiny_config(backbone="tf_efficientnet_lite0", backbone_kwargs=None))
    assert tuple(processor.image_mean) == (0.5, 0.5, 0.5)
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 64}


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        ({0: "a", 1: "b"}, {}, "the class head is kept, its classes are the dataset's"),
        ({0: "b", 1: "a"}, {}, r"2 moved \(b 1 → 0, a 0 → 1\)"),
        ({0: "a", 1: "c", 2: "b"}, {}, r"1 kept \(a\), 1 moved \(b 1 → 2\), 1 new, .* \(c\)"),
        ({0: "a", 1: "c", 2: "d"}, {"label_mapping": {"b": "d"}}, r"1 moved \(d 1 → 2\)"),
        ({0: "b", 1: "a"}, {"head_init": "fresh"}, "is kept, but its 2 classes have other names .* or another order"),
        ({0: "a", 1: "b", 2: "c"}, {"head_init": "fresh"}, "starts anew: .* has 2 classes, the dataset 3"),
        ({0: "a", 1: "b"}, {"model_config": {"num_queries": 9}}, "queries: 7 kept, 2 added"),
    ],
)
def test_the_plan_says_what_becomes_of_the_class_head(tiny_recipe, tiny_detector, tmp_path, names, changes, says):
    tiny_detector(num_labels=2, id2label={0: "a", 1: "b"}).save_pretrained(tmp_path / "model")
    assert re.search(says, head_note(tiny_recipe(**{"model": str(tmp_path), "model_config": {}, **changes}), names))
    assert head_note(tiny_recipe(), names) is None


def test_rows_of_the_head_move_by_name_or_begin_anew(tiny_recipe, tiny_detector, tmp_path):
    before = tiny_detector(num_labels=2, id2label={0: "square", 1: "disc"})
    before.save_pretrained(tmp_path / "model")
    start = {"model": str(tmp_path / "model"), "model_config": {}}
    names, rows = {0: "circle", 1: "star", 2: "square"}, before.class_labels_classifier.weight
    moved = build_model(tiny_recipe(**start, label_mapping={"disc": "circle"}), names).class_labels_classifier.weight
    assert torch.equal(moved, rows[[1, 2, 0, 2]])  # "star" points where "no object" does; its bias is lower
    fresh = build_model(tiny_recipe(**start, head_init="fresh"), names).class_labels_classifier.weight
    assert not torch.isin(fresh, rows).any()


def test_a_model_config_that_would_throw_weights_away_is_refused(tiny_recipe, tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(model=str(tmp_path / "model"), model_config={"encoder_ffn_dim": 40})
    with pytest.raises(ValueError, match=r"3 of its weights .* first 'model.encoder.layers.0.fc1.bias'"):
        build_model(recipe, NAMES)


def test_labels_are_dense_raw_or_those_of_a_model_that_knows_every_class(tiny_recipe, tiny_detector, tmp_path):
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


def test_patterns_freeze_and_one_that_names_nothing_is_an_error(tiny_recipe):
    def frozen(*patterns):
        model = build_model(tiny_recipe(freeze=list(patterns)), NAMES)
        return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    everything = {name for name, _ in build_model(tiny_recipe(), NAMES).named_parameters()}
    assert frozen("model.encoder") == {name for name in everything if name.startswith("model.encoder.")}
    assert frozen("*.self_attn") == {name for name in everything if ".self_attn." in name}
    assert frozen(r"layers\.0|bbox_predictor") == {
        name for name in everything if ".layers.0." in name or name.startswith("bbox_predictor")
    }
    with pytest.raises(ValueError, match=r"freeze: no parameter matches 'model.encodr', .*; did you mean 'model.enco"):
        frozen("model.encodr")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own look
def test_what_is_compiled_computes_the_same_under_the_same_names_without_a_graph_break(tiny_detector, monkeypatch):
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(  # the code generator takes minutes; what could fail is that the code cannot be traced
        torch.nn.Module, "compile", lambda self: compiled(self, backend="eager", fullgraph=True)
    )
    plain, detector = tiny_detector(), tiny_detector()
    compile_parts(detector)
    assert list(detector.state_dict()) == list(plain.state_dict())
    pixel_mask = torch.ones(2, 64, 96)
    pixel_mask[0, :, 64:] = 0
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    for height, mask in ((64, None), (64, pixel_mask), (96, None)):
        pixels = torch.randn(2, 3, height, 96, generator=torch.Generator().manual_seed(0))
        expected, got = plain(pixels, mask, labels), detector(pixels, mask, labels)
        torch.testing.assert_close(got.logits, expected.logits)
        torch.testing.assert_close(got.loss, expected.loss)
    got.loss.backward()
    assert detector.model.query_position_embeddings.weight.grad is not None
