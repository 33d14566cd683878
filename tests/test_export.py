"""Traces, exports and compiled models compute what the model computes, also for batches padded in another way."""

import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim


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
        return tuple(outputs[key] for key in ("logits", "pred_boxes", "pred_masks") if key in outputs)


def test_a_trace_of_an_unpadded_batch_keeps_the_mask(tiny_detector, unpadded, padded):
    model = tiny_detector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarnings, one for each shape that is read
        traced = torch.jit.trace(AsTuple(model), (unpadded["pixel_values"], unpadded["pixel_mask"]))
    logits, boxes = traced(**padded)
    assert_equal_outputs({"logits": logits, "pred_boxes": boxes}, model(**padded))


MODELS = pytest.mark.parametrize("make", ["tiny_detector", "tiny_segmenter"])


@pytest.fixture(scope="module")
def another(padded):
    """A batch of another number of images."""
    return {key: torch.cat([value, value[:1], value.roll(1, 0)]) for key, value in padded.items()}


@pytest.mark.parametrize(("make", "strict"), [("tiny_detector", True), ("tiny_segmenter", False)])
def test_an_exported_model_takes_any_mask(make, strict, request, unpadded, padded):
    model = request.getfixturevalue(make)()
    exported = torch.export.export(model, (), unpadded, strict=strict).module()
    assert_equal_outputs(exported(**padded), model(**padded))


@MODELS
def test_a_model_exports_with_a_batch_of_any_number_of_images_of_any_size(make, request, unpadded, another):
    model = request.getfixturevalue(make)()
    batch, rows, columns = Dim("batch", min=1, max=64), Dim("rows", min=1, max=40), Dim("columns", min=1, max=40)
    mask = {0: batch, 1: 32 * rows, 2: 32 * columns}
    sizes = {"pixel_values": {0: batch, 2: 32 * rows, 3: 32 * columns}, "pixel_mask": mask}
    exported = torch.export.export(model, (), unpadded, dynamic_shapes=sizes, strict=False).module()
    assert_equal_outputs(exported(**another), model(**another))
    larger = {
        "pixel_values": torch.randn(3, 3, 128, 64, generator=torch.Generator().manual_seed(1)),
        "pixel_mask": torch.ones(3, 128, 64, dtype=torch.int64),
    }
    assert_equal_outputs(exported(**larger), model(**larger))


@MODELS
def test_a_model_exports_without_a_mask(make, request, unpadded, another):
    model = request.getfixturevalue(make)()
    sizes = ({0: Dim("batch", min=1, max=64)},)
    exported = torch.export.export(model, (unpadded["pixel_values"],), dynamic_shapes=sizes, strict=False).module()
    assert_equal_outputs(exported(another["pixel_values"]), model(another["pixel_values"]))


@MODELS
def test_a_model_compiles_as_one_graph(make, request, unpadded, padded):
    model = request.getfixturevalue(make)()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (unpadded, padded, {"pixel_values": unpadded["pixel_values"]}):
            assert_equal_outputs(compiled(**batch), model(**batch))


def test_a_segmentation_is_a_tuple_in_the_order_of_its_fields(tiny_segmenter, padded):
    outputs = tiny_segmenter()(**padded)
    assert list(outputs)[:3] == ["logits", "pred_boxes", "pred_masks"]
