"""The weights of a DETR are found in whatever a training script has put around them."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation
from modeling_detr.conversion import ours_to_original
from modeling_detr.conversion.state_dicts import find_weights


FILE = Path("some.pth")
PLAIN = {"query_embed.weight": torch.zeros(2, 1), "class_embed.bias": torch.zeros(3)}
AVERAGED = {name: tensor + 1 for name, tensor in PLAIN.items()}


def prefixed(prefix, weights=PLAIN):
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (PLAIN, []),
        ({"model": PLAIN}, []),
        ({"state_dict": PLAIN, "epoch": 3}, ["read the weights in 'state_dict'"]),
        (
            {"model_state_dict": PLAIN, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
            ["read the weights in 'model_state_dict'"],
        ),
        ({"model": {"net": PLAIN}}, ["read the weights in 'model.net'"]),
        (prefixed("module."), []),
        (prefixed("_orig_mod.module."), []),
        (prefixed("module.model._orig_mod."), ["read the parameters whose names begin with 'model.'"]),
        (prefixed("detr."), ["read the parameters whose names begin with 'detr.'"]),
        ({"ema": {"module": PLAIN}}, ["read the weights in 'ema.module'"]),
        ({"net": PLAIN, "state_dict": PLAIN}, ["read the weights in 'net'"]),
        ({"model": PLAIN, "optimizer": {"exp_avg": AVERAGED, "exp_avg_sq": AVERAGED}}, []),
        (PLAIN | {"epoch": 3, ("a", 1): torch.zeros(1), "_extra_state": None}, []),
        (
            PLAIN | {"criterion.empty_weight": torch.ones(4), "patch2query.bias": torch.zeros(1)},
            ["left out 'criterion.empty_weight' and 1 more, which DETR does not have"],
        ),
        (
            prefixed("model.") | {"metric.total": torch.zeros(1)},
            [
                "read the parameters whose names begin with 'model.'",
                "left out 'metric.total', which DETR does not have",
            ],
        ),
    ],
)
def test_weights_are_found_and_what_was_done_is_noted(content, notes):
    found = find_weights(FILE, content)
    assert found.weights == PLAIN
    assert found.notes == notes


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"model": PLAIN, "model_ema": AVERAGED}, "'model_ema'"),
        ({"ema_state_dict": AVERAGED, "state_dict": PLAIN}, "'ema_state_dict'"),
        (
            {"state_dict": prefixed("model.") | prefixed("ema_model.module.", AVERAGED)},
            "'state_dict' ('ema_model.…')",
        ),
    ],
)
def test_averaged_weights_are_offered_and_can_be_chosen(content, place):
    found = find_weights(FILE, content)
    assert found.weights == PLAIN
    (note,) = [note for note in found.notes if "averaged" in note]
    assert note == f"left out averaged weights (EMA) in {place}; to convert those instead, set ema"
    averaged = find_weights(FILE, content, averaged=True).weights
    assert averaged.keys() == AVERAGED.keys()
    assert all(torch.equal(averaged[name], AVERAGED[name]) for name in AVERAGED)


@pytest.mark.parametrize("model_class", [DetrForObjectDetection, DetrForSegmentation])
@pytest.mark.parametrize("wrapper", ["", "model.", "module.model."])
def test_a_state_dict_of_this_package_or_of_transformers_gets_the_names_of_the_original(model_class, wrapper):
    with torch.device("meta"):
        model = model_class(DetrConfig(backbone="resnet18", encoder_layers=1, decoder_layers=1))
    expected = {name: tensor.shape for name, tensor in ours_to_original(model.state_dict()).items()}
    found = find_weights(FILE, {"state_dict": prefixed(wrapper, model.state_dict())})
    assert {name: tensor.shape for name, tensor in found.weights.items()} == expected


@pytest.mark.parametrize("part", ["ForObjectDetection", "ForSegmentation"])
def test_the_names_that_transformers_has_in_memory_are_understood(part):
    config = transformers.DetrConfig(
        backbone="resnet18", use_timm_backbone=True, use_pretrained_backbone=False, encoder_layers=1, decoder_layers=1
    )
    with torch.device("meta"):
        stock = getattr(transformers, f"Detr{part}")(config)
        ours = (DetrForSegmentation if part == "ForSegmentation" else DetrForObjectDetection)(
            DetrConfig(backbone="resnet18", encoder_layers=1, decoder_layers=1)
        )
    expected = {name: tensor.shape for name, tensor in ours_to_original(ours.state_dict()).items()}
    found = find_weights(FILE, stock.state_dict())
    assert {name: tensor.shape for name, tensor in found.weights.items()} == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"best": PLAIN, "last": AVERAGED}, r"contains several models: 'best' and 'last'"),
        (prefixed("module.") | PLAIN, "names differ only in those of wrapper modules"),
        (
            {"state_dict": nn.Linear(2, 2).state_dict()},
            r"no 'query_embed.weight'; its parameters are 'weight', 'bias'",
        ),
        ([1], "its content is of type list"),
        ({"a": {"b": {"c": {"d": {"e": PLAIN}}}}}, "'a' is of type dict"),
    ],
)
def test_other_content_is_an_error_that_says_what_is_there(content, message):
    with pytest.raises(ValueError, match=message):
        find_weights(FILE, content)


def test_dicts_that_contain_themselves_are_searched_once():
    content = {"model": PLAIN}
    content |= {f"key_{number}": content for number in range(1000)}
    assert find_weights(FILE, content).notes == []
    with pytest.raises(ValueError, match="'key_0' is of type dict"):
        find_weights(FILE, (content.pop("model"), content)[1])


def test_keys_that_cannot_be_printed_do_not_hide_the_error():
    key = ()
    for _ in range(1500):
        key = (key,)
    with pytest.raises(ValueError, match=r"'\(tuple\)' is of type NoneType"):
        find_weights(FILE, {key: None})


def test_averaged_weights_that_are_not_there_are_an_error():
    with pytest.raises(ValueError, match=r"has no averaged weights \(EMA\); convert it without ema"):
        find_weights(FILE, PLAIN, averaged=True)
