"""`DetrConfig`: defaults, saving and loading, errors."""

import json
import logging

import pytest

from modeling_detr import DetrConfig


def test_defaults_are_the_papers():
    config = DetrConfig()
    assert (config.num_queries, config.d_model, config.encoder_layers, config.decoder_layers) == (100, 256, 6, 6)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.1, 0.1)
    assert config.auxiliary_loss
    assert config.eos_coefficient == 0.1


def test_a_saved_config_loads_unchanged(tmp_path):
    config = DetrConfig(
        backbone_kwargs={"channels": [8, 16]}, out_indices=[3], id2label={0: "cat", 1: "dog"}, dropout=0, pre_norm=True
    )
    config.save_pretrained(tmp_path)
    loaded = DetrConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.id2label == {0: "cat", 1: "dog"}
    assert loaded.model_type == "modeling_detr"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_querys": 5}, "unknown key 'num_querys'; did you mean 'num_queries'"),
        ({"d_model": 250}, "d_model=250 is not divisible by encoder_attention_heads=8"),
        ({"decoder_attention_heads": 7}, "d_model=256 is not divisible by decoder_attention_heads=7"),
        ({"position_embedding_type": "sinus"}, "expected 'sine' or 'learned'"),
        ({"num_queries": 0}, "num_queries: got 0, expected at least 1"),
        ({"encoder_layers": -1}, "encoder_layers: got -1, expected at least 0"),
        ({"eos_coefficient": -3}, "eos_coefficient: got -3, expected at least 0"),
        ({"activation_function": "rellu"}, "activation_function: unknown name 'rellu'; did you mean 'relu'"),
        (
            {"backbone_kwargs": {"pretrained": True}},
            "backbone_kwargs: 'pretrained' is not allowed; building .* never downloads",
        ),
        ({"backbone_kwargs": {"chanels": [8]}}, "'chanels' is not allowed.*did you mean 'channels'"),
        ({"position_temperature": 0}, "position_temperature: got 0, expected a number above 1"),
        ({"dropout": 1.5}, "dropout: got 1.5, expected a probability"),
        ({"out_indices": [3, 1]}, "expected ascending"),
        ({"num_queries": "many"}, "num_queries"),
    ],
)
def test_errors_name_the_key_and_the_expected_value(arguments, message):
    with pytest.raises(Exception, match=message) as caught:
        DetrConfig(**arguments)
    assert isinstance(caught.value, (ValueError, TypeError)) or "Validation" in type(caught.value).__name__


def test_unknown_keys_in_a_file_are_kept_with_a_warning(tmp_path, caplog):
    """Transformers and its tools write keys of their own into config.json."""
    DetrConfig(num_queries=7).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "use_cache": False, "transformers.js_config": {"a": 1}})
    )
    with caplog.at_level(logging.WARNING):
        config = DetrConfig.from_pretrained(tmp_path, num_labels=3)
    assert "unknown key 'transformers.js_config'" in caplog.text  # each key once in a process
    assert config.num_queries == 7
    assert config.num_labels == config.num_classes == 3
    assert config.to_dict()["transformers.js_config"] == {"a": 1}
    config.save_pretrained(tmp_path / "again")
    assert DetrConfig.from_pretrained(tmp_path / "again").use_cache is False


def test_class_names_are_in_the_order_of_their_labels():
    config = DetrConfig(id2label={1: "dog", 0: "cat"})
    assert config.class_names == ("cat", "dog")
    assert config.num_classes == 2


@pytest.mark.parametrize(("kind", "width", "divisor"), [("sine", 18, 4), ("learned", 9, 2)])
def test_a_width_that_positions_cannot_share_is_refused_with_what_fits(kind, width, divisor):
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    with pytest.raises(ValueError, match=f"d_model={width} is not divisible by {divisor}; .* choose a multiple of"):
        DetrConfig(d_model=width, position_embedding_type=kind, **heads)
