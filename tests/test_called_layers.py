"""Layers are called as modules, so that they can be hooked, adapted, quantised, offloaded or replaced."""

import copy

import pytest
import torch
from accelerate import disk_offload
from torch import nn


HEADS = ("class_labels_classifier", *(f"bbox_predictor.layers.{index}" for index in range(3)))
# In training mode nothing else calls them, because it computes only the matched queries' masks.
MASK_HEAD = tuple(f"mask_head.lay{index}" for index in range(1, 6))


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


class LowRankAdapter(nn.Module):
    """What PEFT puts in the place of a linear layer: the layer, and a product of two small matrices beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, states):
        return self.base_layer(states) + self.up(self.down(states))

    def merged(self):
        layer = copy.deepcopy(self.base_layer)
        layer.weight.data += self.up.weight @ self.down.weight
        return layer


class EightBitLinear(nn.Module):
    """What bitsandbytes puts in the place of a linear layer: integer weights, which only its forward scales."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, states):
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale.to(states.dtype), self.bias)


def replace_linear(model, kind, only=""):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and only in name:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, kind(layer))
    return model


@pytest.mark.parametrize(
    "name", [*HEADS, "model.query_position_embeddings", "model.encoder.layers.0.self_attn.q_proj"]
)
def test_hooks_fire(tiny_detector, pixel_values, name):
    model, calls = tiny_detector(), []
    model.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    model(pixel_values)
    assert calls


@pytest.mark.parametrize("name", [*MASK_HEAD, "bbox_attention.q_linear", "bbox_attention.k_linear"])
def test_hooks_of_the_mask_head_fire_and_change_nothing(tiny_segmenter, pixel_values, name):
    model, calls = tiny_segmenter(), []
    before = model(pixel_values).pred_masks
    model.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    assert torch.allclose(model(pixel_values).pred_masks, before, atol=1e-4)
    assert calls


@pytest.mark.parametrize("name", HEADS)
def test_an_adapter_has_the_same_effect_before_and_after_it_is_merged(tiny_detector, pixel_values, name):
    model = tiny_detector()
    untouched = model(pixel_values)
    adapted = replace_linear(copy.deepcopy(model), LowRankAdapter, only=name)
    merged = copy.deepcopy(model)
    parent, _, attribute = name.rpartition(".")
    setattr(merged.get_submodule(parent), attribute, adapted.get_submodule(name).merged())
    before, after = adapted(pixel_values), merged(pixel_values)
    field = "logits" if name in HEADS[:1] else "pred_boxes"
    assert not torch.allclose(before[field], untouched[field], atol=1e-4)
    for key in ("logits", "pred_boxes"):
        assert torch.allclose(before[key], after[key], atol=1e-5)


def test_eight_bit_layers_change_little(tiny_detector, pixel_values):
    model = tiny_detector()
    quantised = replace_linear(copy.deepcopy(model), EightBitLinear)
    assert isinstance(quantised.class_labels_classifier, EightBitLinear)
    for key in ("logits", "pred_boxes"):
        assert torch.allclose(quantised(pixel_values)[key], model(pixel_values)[key], atol=0.05)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantiz")
def test_dynamic_quantisation_reaches_the_transformer(tiny_detector, pixel_values):
    model = tiny_detector()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(quantised.model.encoder.layers[0].self_attn.q_proj).__module__
    assert "quantized" in type(quantised.model.decoder.layers[0].fc1).__module__
    assert torch.allclose(quantised(pixel_values).logits, model(pixel_values).logits, atol=0.1)


@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_weights_on_the_disk(tiny_segmenter, pixel_values, tmp_path, positions):
    model = tiny_segmenter(position_embedding_type=positions)
    expected = model(pixel_values)
    offloaded = disk_offload(copy.deepcopy(model), tmp_path, execution_device="cpu", offload_buffers=True)
    assert offloaded.mask_head.lay1.weight.is_meta
    with torch.no_grad():
        outputs = offloaded(pixel_values)
    for key in ("logits", "pred_boxes", "pred_masks"):
        assert torch.allclose(outputs[key], expected[key], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_are_in_float32(tiny_detector, pixel_values, dtype):
    """Half precision would shift boxes of large images by pixels."""
    model = tiny_detector().to(dtype)
    states = torch.randn(2, 7, 32, dtype=dtype)
    logits, boxes = model.predict(states)
    exact_logits, exact_boxes = copy.deepcopy(model).double().predict(states.double())
    assert logits.dtype == boxes.dtype == torch.float32
    assert torch.allclose(logits.double(), exact_logits, atol=1e-5)
    assert torch.allclose(boxes.double(), exact_boxes, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, model.predict(states), (logits, boxes)))
