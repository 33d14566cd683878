"""The graph of an exported model computes what the model computes, for batches unlike the one it was traced with."""

import numpy as np
import pytest
import torch
from timm.layers import padding as timm_padding

from modeling_detr import DetrConfig, DetrForObjectDetection
from modeling_detr.backbone_detr import sample_mask
from modeling_detr.deployment.graph import DetectorGraph, GraphOptions, example_inputs, same_padding, trace_detector
from modeling_detr.errors_detr import ModelError


def assert_equal_to_model(model, options):
    traced = trace_detector(model, options)
    program, graph = traced.program.module(), DetectorGraph(model, options)
    for batch in example_inputs(options, 3, "pred_masks" in traced.outputs):
        inputs = {name: torch.from_numpy(values) for name, values in batch.items()}
        assert tuple(inputs) == traced.inputs
        with torch.no_grad():
            outputs, expected = program(**inputs), graph(**inputs)
        assert tuple(outputs) == traced.outputs
        for name in traced.outputs:
            assert torch.allclose(outputs[name].float(), expected[name].float(), atol=1e-4), name


@pytest.mark.parametrize("options", [GraphOptions(), GraphOptions(pixel_mask=False), GraphOptions(postprocess=True)])
def test_a_detector_takes_any_batch_of_any_size(tiny_detector, options):
    assert_equal_to_model(tiny_detector(), options)


@pytest.mark.parametrize("options", [GraphOptions(), GraphOptions(masks_per_image=3)])
def test_a_segmenter_takes_any_batch_of_any_size(tiny_segmenter, options):
    assert_equal_to_model(tiny_segmenter(), options)


def test_outputs_are_those_of_the_model(tiny_segmenter):
    model = tiny_segmenter()
    inputs = {name: torch.from_numpy(values) for name, values in example_inputs(GraphOptions(), 3, True)[2].items()}
    with torch.no_grad():
        outputs = DetectorGraph(model, GraphOptions())(**inputs)
        expected = model(inputs["pixel_values"], inputs["pixel_mask"])
    assert torch.allclose(outputs["logits"], expected.logits, atol=1e-5)
    assert torch.allclose(outputs["pred_boxes"], expected.pred_boxes, atol=1e-6)
    masks = outputs["pred_masks"].view_as(expected.pred_masks)  # a threshold of -1 selects all queries
    assert torch.allclose(masks, expected.pred_masks, atol=1e-4)


def test_masks_of_queries_above_the_threshold_are_computed_and_at_least_one_per_image(tiny_segmenter):
    graph = DetectorGraph(tiny_segmenter(), GraphOptions())
    batch = example_inputs(GraphOptions(), 3, True)[2]
    inputs = {name: torch.from_numpy(values) for name, values in batch.items()}
    with torch.no_grad():
        scores = graph(**inputs)["logits"].softmax(-1)[..., :-1].amax(-1)
        threshold = scores[0].sort().values[-3]
        selected = graph(**{**inputs, "score_threshold": threshold})["mask_queries"]
        none_above = graph(**{**inputs, "score_threshold": torch.tensor(2.0)})["mask_queries"]
    above = {(image, query) for image, query in (scores > threshold).nonzero().tolist()}
    assert above <= {tuple(pair) for pair in selected.tolist()}
    assert none_above.tolist() == [[image, scores[image].argmax().item()] for image in range(3)]


def test_boxes_after_post_processing_are_pixels_of_the_image(tiny_detector):
    model = tiny_detector()
    batch = example_inputs(GraphOptions(postprocess=True), 3, False)[1]
    batch["image_sizes"] = np.array([[100, 300]])
    inputs = {name: torch.from_numpy(values) for name, values in batch.items()}
    with torch.no_grad():
        outputs = DetectorGraph(model, GraphOptions(postprocess=True))(**inputs)
        raw = model(inputs["pixel_values"], inputs["pixel_mask"])
    probabilities = raw.logits.softmax(-1)[..., :-1].max(-1)
    x, y, width, height = raw.pred_boxes.unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    assert torch.allclose(outputs["scores"], probabilities.values, atol=1e-6)
    assert torch.equal(outputs["labels"], probabilities.indices)
    assert torch.allclose(outputs["boxes"], corners * torch.tensor([300, 100, 300, 100]), atol=1e-3)


@pytest.mark.slow
def test_a_backbone_with_same_padding_is_traced_for_any_size():
    config = DetrConfig(
        backbone="tf_efficientnet_lite0", d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, num_labels=2,
    )  # fmt: skip
    assert_equal_to_model(DetrForObjectDetection(config).eval(), GraphOptions())


def test_a_backbone_for_one_size_says_so_and_is_exported_with_it():
    config = DetrConfig(
        backbone="vit_tiny_patch16_224", d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, num_labels=2,
    )  # fmt: skip
    model = DetrForObjectDetection(config).eval()
    with pytest.raises(ModelError, match=r"any size .* give all images one size \(fixed_size="):
        trace_detector(model)
    assert_equal_to_model(model, GraphOptions(fixed_size=(224, 224)))


def test_same_padding_is_timms():
    for side in range(1, 60):
        for kernel_size, stride, dilation in ((1, 2, 1), (2, 2, 1), (3, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 1)):
            expected = timm_padding.get_same_padding(side, kernel_size, stride, dilation)
            assert same_padding(side, kernel_size, stride, dilation) == expected


def test_the_mask_of_cells_is_that_of_nearest_interpolation():
    for pixels in (1, 7, 33, 129, 257, 800, 1333):
        mask = torch.rand(1, 3, pixels, generator=torch.Generator().manual_seed(pixels)) > 0.5
        for cells in {1, -(-pixels // 32), -(-pixels // 16), pixels}:
            expected = torch.nn.functional.interpolate(mask[:, None].float(), size=(2, cells))[:, 0].bool()
            assert torch.equal(sample_mask(mask.long(), 2, cells), expected)
