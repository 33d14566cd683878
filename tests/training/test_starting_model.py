import re

import pytest
import torch

from modeling_detr.training.starting_model import build_model, build_processor, compile_parts, head_note


NAMES = {0: "circle", 1: "square"}


def test_a_model_config_that_removes_layers_is_refused(tiny_recipe, tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(model=str(tmp_path / "model"), model_config={"decoder_layers": 1})
    with pytest.raises(ValueError, match=r"weights have no place in .*, first 'model\.decoder\.layers\.1\."):
        build_model(recipe, NAMES)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_queries", "lots", "model_config.num_queries: got 'lots', expected an integer."),
        ("num_querys", 3, "model_config.num_querys: unknown key; did you mean 'num_queries'?"),
        ("backbone", "resnet51", "model_config: timm has no model 'resnet51'; did you mean 'resnet51q'?"),
    ],
)
def test_errors_in_the_model_config_name_the_key(tiny_recipe, key, value, message):
    recipe = tiny_recipe()
    changed = {name: other for name, other in recipe.model_config.items() if name != "backbone_kwargs"}
    with pytest.raises(ValueError, match=r".") as error:
        build_model(tiny_recipe(model_config={**changed, key: value}), NAMES)
    assert str(error.value).removeprefix("model_config: ") == message.removeprefix("model_config: ")


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


def test_a_new_processor_has_the_statistics_of_the_backbone(tiny_recipe, tiny_config):
    recipe = tiny_recipe()
    assert tuple(build_processor(recipe, tiny_config()).image_mean) == (0.485, 0.456, 0.406)
    processor = build_processor(recipe, tiny_config(backbone="tf_efficientnet_lite0", backbone_kwargs=None))
    assert tuple(processor.image_mean) == (0.5, 0.5, 0.5)
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 64}


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        ({0: "a", 1: "b"}, {}, "the class head is kept; it has all classes of the dataset"),
        ({0: "b", 1: "a"}, {}, r"2 moved \(b 1 → 0, a 0 → 1\)"),
        ({0: "a", 1: "c", 2: "b"}, {}, r"1 kept \(a\), 1 moved \(b 1 → 2\), 1 new, .* \(c\)"),
        ({0: "a", 1: "c", 2: "d"}, {"label_mapping": {"b": "d"}}, r"1 moved \(d 1 → 2\)"),
        ({0: "b", 1: "a"}, {"head_init": "fresh"}, "is kept, but the names or the order of its 2 classes differ"),
        ({0: "a", 1: "b", 2: "c"}, {"head_init": "fresh"}, "new class head: .* has 2 classes and the dataset 3"),
        ({0: "a", 1: "b"}, {"model_config": {"num_queries": 9}}, "queries: 7 kept, 2 added"),
    ],
)
def test_the_plan_describes_the_class_head(tiny_recipe, tiny_detector, tmp_path, names, changes, says):
    tiny_detector(num_labels=2, id2label={0: "a", 1: "b"}).save_pretrained(tmp_path / "model")
    assert re.search(says, head_note(tiny_recipe(**{"model": str(tmp_path), "model_config": {}, **changes}), names))
    assert head_note(tiny_recipe(), names) is None


def test_class_head_rows_are_reused_by_name_or_initialised(tiny_recipe, tiny_detector, tmp_path):
    before = tiny_detector(num_labels=2, id2label={0: "square", 1: "disc"})
    before.save_pretrained(tmp_path / "model")
    start = {"model": str(tmp_path / "model"), "model_config": {}}
    names, rows = {0: "circle", 1: "star", 2: "square"}, before.class_labels_classifier.weight
    moved = build_model(tiny_recipe(**start, label_mapping={"disc": "circle"}), names).class_labels_classifier.weight
    assert torch.equal(moved, rows[[1, 2, 0, 2]])  # "star" points where "no object" does; its bias is lower
    fresh = build_model(tiny_recipe(**start, head_init="fresh"), names).class_labels_classifier.weight
    assert not torch.isin(fresh, rows).any()


def test_a_model_config_that_would_discard_weights_is_refused(tiny_recipe, tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(model=str(tmp_path / "model"), model_config={"encoder_ffn_dim": 40})
    with pytest.raises(ValueError, match=r"3 weights .* first 'model.encoder.layers.0.fc1.bias'"):
        build_model(recipe, NAMES)


def test_patterns_freeze_parameters_and_one_without_a_match_is_an_error(tiny_recipe):
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
def test_compiled_modules_compute_the_same_without_graph_breaks(tiny_detector, monkeypatch):
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


def test_a_model_without_a_processor_is_one_clear_sentence(tiny_recipe, tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(model=str(tmp_path / "model"))
    with pytest.raises(
        FileNotFoundError, match=r"model: no preprocessor_config\.json; copy it from the model's source"
    ):
        build_processor(recipe, tiny_detector().config)
