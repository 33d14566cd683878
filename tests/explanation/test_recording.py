import pytest
import torch

from modeling_detr.explanation.recording import record


PIXELS = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(1, 96, 128, dtype=torch.long)
MASK[:, 64:] = 0
MASK[:, :, 96:] = 0


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("changes", [{}, {"dilation": True}, {"pre_norm": True, "encoder_layers": 2}])
def test_rows_equal_the_maps_that_the_model_returns(tiny_detector, implementation, mask, changes):
    model = tiny_detector(**changes)
    model.set_attn_implementation(implementation)
    recording = record(model, PIXELS, mask)
    expected = model(PIXELS, mask, output_attentions=True)
    queries, tokens = torch.tensor([5, 0, 3]), torch.tensor([7, 1])
    grid = expected.feature_mask.shape[1:]
    assert recording.grid == tuple(grid) == ((6, 8) if changes.get("dilation") else (3, 4))
    cross = torch.cat(expected.cross_attentions)[:, :, queries].permute(2, 0, 1, 3).unflatten(-1, grid)
    torch.testing.assert_close(recording.cross_attention(queries), cross, rtol=0, atol=1e-6)
    encoder = torch.cat(expected.encoder_attentions)[:, :, tokens].permute(2, 0, 1, 3).unflatten(-1, grid)
    torch.testing.assert_close(recording.self_attention(tokens), encoder, rtol=0, atol=1e-6)
    torch.testing.assert_close(recording.outputs.logits, expected.logits)
    if mask is not None:
        assert recording.cross_attention(queries)[..., ~expected.feature_mask[0]].max() == 0


def test_the_detector_of_a_model_with_masks_is_recorded(tiny_segmenter):
    model = tiny_segmenter()
    expected = model(PIXELS, output_masks=False, output_attentions=True).cross_attentions[-1][0, :, 2]
    found = record(model, PIXELS).cross_attention(torch.tensor([2]))[0, -1].flatten(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_relevant_rows_equal_autograd_through_the_maps(tiny_detector, implementation):
    """The gradient by a map is that by the context times the values, so `sdpa`, which has no maps, gives it too."""
    model = tiny_detector()
    model.set_attn_implementation("eager")
    maps = []
    softmax = torch.Tensor.softmax

    def keep(scores, dim):
        weights = softmax(scores, dim)
        if weights.ndim == 4:
            weights.retain_grad()
            maps.append(weights)
        return weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", keep)
        model(PIXELS).logits[0, 3, 2].backward()
    model.set_attn_implementation(implementation)
    recording = record(model, PIXELS, gradients=True)
    recording.differentiate(recording.outputs.logits[0, 3, 2])
    records = [recording.encoder[0]]
    for pair in zip(recording.decoder, recording.cross, strict=True):
        records += pair
    assert len(maps) == len(records) == 5
    for expected, found in zip(maps, records, strict=True):
        gradient = torch.zeros_like(expected) if expected.grad is None else expected.grad
        positive = (gradient * expected).clamp(min=0).mean(1)[0].detach()
        torch.testing.assert_close(found.relevant_rows(torch.arange(len(positive))), positive, rtol=1e-4, atol=1e-8)


def test_nothing_of_the_recording_stays_on_the_model(tiny_detector):
    model = tiny_detector()
    record(model, PIXELS, gradients=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_recorded_is_an_error(tiny_detector):
    model = tiny_detector()
    with pytest.raises(ValueError, match="got 2 images, expected 1"):
        record(model, PIXELS.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="record with gradients=True"):
        record(model, PIXELS).differentiate(torch.zeros(()))
    with pytest.raises(ValueError, match=r"call Recording\.differentiate first"):
        record(model, PIXELS).encoder[0].relevant_rows(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        record(model.train(), PIXELS)
