"""`DetrForSegmentation`: masks of chosen queries, their loss, and errors."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_detr import DetrForObjectDetection, DetrForSegmentation
from modeling_detr.segmentation_detr import DetrSegmentationOutput


OPTIONS = {
    "num_queries": 6,
    "num_labels": 3,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}


@pytest.fixture(scope="module")
def model(tiny_segmenter):
    return tiny_segmenter(**OPTIONS)


def batch(sizes=((64, 96), (96, 64)), counts=(2, 1), seed=0):
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(size[side] for size in sizes) for side in (0, 1))
    pixel_values, pixel_mask = torch.zeros(len(sizes), 3, height, width), torch.zeros(len(sizes), height, width).long()
    labels = []
    for row, ((h, w), count) in enumerate(zip(sizes, counts, strict=True)):
        pixel_values[row, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        pixel_mask[row, :h, :w] = 1
        labels.append(
            {
                "class_labels": torch.arange(count),
                "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]])[:count],
                "masks": torch.rand(count, h, w, generator=generator) < 0.3,
            }
        )
    return pixel_values, pixel_mask, labels


def test_masks_of_chosen_queries_equal_those_of_all_queries(model):
    pixel_values, pixel_mask, _ = batch()
    with torch.no_grad():
        everything = model(pixel_values, pixel_mask)
        outputs = model(pixel_values, pixel_mask, output_masks=False)
        keep = torch.zeros(2, 6, dtype=torch.bool)
        keep[0, 4] = keep[1, 0] = keep[1, 3] = True
        chosen = model.predict_masks(outputs, keep)
    assert outputs.pred_masks is None
    assert everything.pred_masks.shape == (2, 6, 24, 24)  # the largest map has a quarter of the canvas
    torch.testing.assert_close(chosen, everything.pred_masks[keep], atol=1e-6, rtol=0)


def test_the_loss_of_matched_masks_equals_that_from_all_masks(model):
    pixel_values, pixel_mask, labels = batch()
    with torch.no_grad():
        matched = model(pixel_values, pixel_mask, labels, output_masks=False)
        everything = model(pixel_values, pixel_mask, labels, output_masks=True)
        matches = model.criterion.matcher(matched.logits, matched.pred_boxes, labels)
        of_all = torch.cat([masks[match.queries] for masks, match in zip(everything.pred_masks, matches, strict=True)])
        _, terms = model.mask_criterion(of_all, labels, matches, (96, 96))
    assert matched.pred_masks is None
    assert terms["loss_mask"].item() == pytest.approx(matched.loss_dict["loss_mask"].item(), rel=1e-6)
    assert terms["loss_dice"].item() == pytest.approx(matched.loss_dict["loss_dice"].item(), rel=1e-6)


def loss_of_matched_masks(model, pixel_values, pixel_mask, labels):
    return model(pixel_values, pixel_mask, labels, output_masks=False).loss


def loss_from_all_masks(model, pixel_values, pixel_mask, labels):
    """Compute the mask of every query, as the original does, and the loss from those of the matched queries."""
    output = model(pixel_values, pixel_mask)
    layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
    logits, boxes = (torch.stack([layer[name] for layer in layers]) for name in ("logits", "pred_boxes"))
    detection_loss, _, assignments = model.criterion(logits, boxes, labels)
    matched = [masks[match.queries] for masks, match in zip(output.pred_masks, assignments[-1], strict=True)]
    canvas_size = tuple(pixel_values.shape[-2:])
    mask_loss, _ = model.mask_criterion(torch.cat(matched), labels, assignments[-1], canvas_size)
    return detection_loss + mask_loss


def cost_of_step(model, compute_loss):
    """Return the loss, its floating point operations, and the bytes kept for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
        loss = compute_loss(model, *batch())
        loss.backward()
    return loss.item(), counter.get_total_flops(), sum(kept.values())


def test_a_step_costs_several_times_less_than_with_the_masks_of_all_queries(tiny_segmenter):
    model = tiny_segmenter(**OPTIONS | {"num_queries": 50}).train()
    loss, operations, memory = cost_of_step(model, loss_of_matched_masks)
    loss_from_all, operations_for_all, memory_for_all = cost_of_step(model, loss_from_all_masks)
    assert loss_from_all == pytest.approx(loss, rel=1e-6)
    assert operations_for_all > 3 * operations
    assert memory_for_all > 3 * memory


def test_a_step_with_very_many_masks_computes_them_in_parts_with_the_same_gradient(tiny_segmenter):
    model = tiny_segmenter(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).double().train()
    pixel_values, pixel_mask, labels = batch(counts=(2, 2))
    gradients = []
    for max_pixels in (2**27, 1):
        model.mask_criterion.max_pixels = max_pixels
        model.zero_grad()
        model(pixel_values.double(), pixel_mask, labels).loss.backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    whole, in_parts = gradients
    assert whole.keys() == in_parts.keys()
    for name, gradient in whole.items():
        assert float((in_parts[name] - gradient).norm()) <= 1e-10 * float(gradient.norm()) + 1e-14, name


def test_detections_equal_those_of_the_detector_alone(model):
    pixel_values, pixel_mask, labels = batch()
    detector = DetrForObjectDetection(model.config)
    detector.load_state_dict(model.detr.state_dict())
    with torch.no_grad():
        ours, alone = model(pixel_values, pixel_mask, labels), detector.eval()(pixel_values, pixel_mask, labels)
    assert torch.equal(ours.logits, alone.logits)
    assert torch.equal(ours.pred_boxes, alone.pred_boxes)
    masks = sum(ours.loss_dict[name] for name in ("loss_mask", "loss_dice"))
    assert ours.loss.item() == pytest.approx((alone.loss + masks).item(), rel=1e-6)


def test_the_output_holds_the_size_of_each_image(model):
    pixel_values, pixel_mask, _ = batch()
    with torch.no_grad():
        outputs = model(pixel_values, pixel_mask, output_masks=False)
        whole = model(pixel_values, output_masks=False)
    assert outputs.image_sizes.tolist() == [[64, 96], [96, 64]]
    assert outputs.canvas_size.tolist() == [[96, 96]] * 2
    assert whole.image_sizes.tolist() == [[96, 96], [96, 96]]


def test_a_batch_without_objects_gives_the_mask_head_a_zero_gradient(tiny_segmenter):
    model = tiny_segmenter(**OPTIONS).train()
    pixel_values, pixel_mask, labels = batch(counts=(0, 0))
    output = model(pixel_values, pixel_mask, labels)
    output.loss.backward()
    assert output.loss_dict["loss_mask"] == output.loss_dict["loss_dice"] == 0
    for name, parameter in [*model.mask_head.named_parameters(), *model.bbox_attention.named_parameters()]:
        assert parameter.grad is not None, name  # other processes of a distributed step wait for it
        assert parameter.grad.abs().sum() == 0, name


def test_it_runs_in_float64_and_under_autocast(model):
    pixel_values, pixel_mask, labels = batch()
    double = DetrForSegmentation(model.config)
    double.load_state_dict(model.state_dict())
    with torch.no_grad():
        exact = double.double().eval()(pixel_values.double(), pixel_mask, labels)
        assert exact.loss.dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            half = model(pixel_values, pixel_mask, labels)
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)


def test_a_width_that_the_groups_of_the_mask_head_do_not_divide_is_refused(tiny_segmenter):
    with pytest.raises(ValueError, match=r"widths \[100, 48, .* 100 is not divisible by the 8 groups"):
        tiny_segmenter(d_model=96, encoder_attention_heads=4, decoder_attention_heads=4)


def test_a_backbone_with_another_number_of_maps_is_refused(tiny_segmenter):
    with pytest.raises(ValueError, match=r"out_indices: got \[1, 2, 3\], expected four maps"):
        tiny_segmenter(out_indices=[1, 2, 3])


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050"])
def test_backbones_of_other_families_give_masks(backbone, tiny_segmenter):
    model = tiny_segmenter(backbone=backbone, backbone_kwargs=None)
    with torch.no_grad():
        masks = model(torch.randn(1, 3, 96, 64)).pred_masks
    assert masks.shape == (1, 7, 24, 16)


def test_labels_without_matching_masks_are_refused(model):
    pixel_values, pixel_mask, labels = batch()
    with pytest.raises(ValueError, match=r"image 0 of the batch: its labels lack 'masks'"):
        model(pixel_values, pixel_mask, [{k: v for k, v in label.items() if k != "masks"} for label in labels])
    labels[1]["masks"] = torch.zeros(1, 200, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"image 1 of the batch: masks of shape \(1, 200, 64\) for 1 objects"):
        model(pixel_values, pixel_mask, labels)


def test_a_saved_model_predicts_the_same(model, tmp_path):
    pixel_values, pixel_mask, _ = batch()
    model.save_pretrained(tmp_path)
    again = DetrForSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values, pixel_mask).pred_masks, model(pixel_values, pixel_mask).pred_masks)


def test_output_fields_start_with_the_loss_and_the_predictions():
    """With return_dict=False they are read by their position."""
    names = [field.name for field in dataclasses.fields(DetrSegmentationOutput)]
    assert names[:5] == ["loss", "loss_dict", "logits", "pred_boxes", "pred_masks"]
    batch_level = {"auxiliary_outputs", "intermediate_hidden_states", "feature_maps"}
    assert not batch_level & set(names)  # Transformers' pipelines split fields by image


def test_labels_with_masks_may_be_lists(model):
    pixel_values, pixel_mask, labels = batch()
    lists = [{key: value.tolist() for key, value in label.items()} for label in labels]
    expected = model(pixel_values, pixel_mask, labels=labels).loss
    torch.testing.assert_close(model(pixel_values, pixel_mask, labels=lists).loss, expected)
