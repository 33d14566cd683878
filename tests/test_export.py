"""Traces, exports and compiled models compute what the model computes, also for batches padded in another way."""

import warnings

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def unpadded():
    pixel_values = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixel_values, "pixel_mask": torch.ones(2, 64, 96, dtype=torch.int64)}


@pytest.fixture(scope="module")
def padded(unpadded):
    mask = unpadded["pixel_mask"].clone()
    mask[0, :, 48:] = 0
    mask[1, 40:] = 0
    return {"pixel_values": unpadded["pixel_values"] * mask[:, None], "pixel_mask": mask}


def assert_equal_outputs(outputs, expected):
    for key in ("logits", "pred_boxes", "pred_masks"):
        if key in expected:
            assert torch.allclose(outputs[key], expected[key], atol=1e-4)


class AsTuple(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask):
        outputs = self.model(pixel_values, pixel_mask)
        return outputs.logits, outputs.pred_boxes


def test_a_trace_of_an_unpadded_batch_keeps_the_mask(tiny_detector, unpadded, padded):
    model = tiny_detector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarnings, one for each shape that is read
        traced = torch.jit.trace(AsTuple(model), (unpadded["pixel_values"], unpadded["pixel_mask"]))
    logits, boxes = traced(**padded)
    assert_equal_outputs({"logits": logits, "pred_boxes": boxes}, model(**padded))
