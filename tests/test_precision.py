"""What a model computes in: what it was told, or 16 bits where the device is fast in them."""

import logging

import pytest
import torch

from modeling_detr.precision import compute_dtype, described_dtype, fastest_dtype, in_precision


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_chosen_yet():
    fastest_dtype.cache_clear()
    yield
    fastest_dtype.cache_clear()


def with_capabilities(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_is_bfloat16_on_a_cpu_that_has_it(monkeypatch, caplog, feature):
    with_capabilities(monkeypatch, **{feature: True})
    with caplog.at_level(logging.INFO):
        assert compute_dtype("auto", CPU) == compute_dtype("auto", CPU) == torch.bfloat16
    assert described_dtype("auto", CPU) == f"bfloat16 (this CPU has {feature})"
    assert caplog.messages == [f"dtype auto: torch.bfloat16, because this CPU has {feature}"]


def test_auto_is_float32_on_any_other_cpu(monkeypatch):
    with_capabilities(monkeypatch, avx512_f=True, avx512_bf16=False)
    assert compute_dtype("auto", CPU) == torch.float32
    assert described_dtype("auto", CPU) == "float32 (this CPU has no bfloat16)"


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_gpu_is_what_it_computes_in(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert compute_dtype("auto", torch.device("cuda")) == dtype


def test_a_precision_may_be_named():
    assert compute_dtype("float16", CPU) == torch.float16
    assert described_dtype("bfloat16", CPU) == "bfloat16"
    with pytest.raises(ValueError, match="dtype: got 'half', expected one of auto, float32, bfloat16, float16"):
        compute_dtype("half", CPU)


def test_16_bits_are_for_products_and_not_for_the_weights_or_the_results(tiny_detector):
    model, pixel_values = tiny_detector(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact, half = (in_precision(model, dtype, CPU)(pixel_values) for dtype in ("float32", "bfloat16"))
    assert exact.last_hidden_state.dtype == half.logits.dtype == half.pred_boxes.dtype == torch.float32
    assert half.encoder_last_hidden_state.dtype != exact.logits.dtype or not torch.equal(half.logits, exact.logits)
    assert torch.allclose(half.logits, exact.logits, atol=0.05)
    assert torch.allclose(half.pred_boxes, exact.pred_boxes, atol=0.01)
    assert model.dtype == torch.float32
