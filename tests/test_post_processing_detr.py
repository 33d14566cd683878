"""Masks into segments: the original's numbers, padding, the pipeline."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import REFERENCE
from safetensors.torch import load_file
from transformers import pipeline

from modeling_detr import DetrForObjectDetection, DetrForSegmentation, DetrTorchvisionImageProcessor


PROCESSOR = DetrTorchvisionImageProcessor()


def golden():
    """The original's outputs, and what its two post-processors made of them."""
    values = json.loads((REFERENCE / "golden" / "panoptic_postprocess.json").read_text())
    tensors = load_file(REFERENCE / "golden" / "panoptic_postprocess.safetensors")
    outputs = SimpleNamespace(
        logits=tensors["pred_logits"], pred_boxes=tensors["pred_boxes"], pred_masks=tensors["pred_masks"]
    )
    return values, tensors, outputs


def made_outputs(masks, labels, num_classes=3, confidence=9.0, **further):
    """Outputs of one image whose queries are sure of their labels (C for no object)."""
    logits = torch.zeros(1, len(labels), num_classes + 1)
    logits[0, torch.arange(len(labels)), torch.tensor(labels)] = confidence
    boxes = torch.full((1, len(labels), 4), 0.5)
    return SimpleNamespace(logits=logits, pred_boxes=boxes, pred_masks=masks[None], **further)


def half_planes(size=8):
    """Masks of the left and of the right half."""
    masks = torch.full((2, size, size), -6.0)
    masks[0, :, : size // 2] = 6
    masks[1, :, size // 2 :] = 6
    return masks


def test_panoptic_segments_are_the_originals():
    values, tensors, outputs = golden()
    results = PROCESSOR.post_process_panoptic_segmentation(
        outputs,
        values["threshold"],
        label_ids_to_fuse=range(91, 250),
        target_sizes=values["target_sizes"],
        processed_sizes=values["processed_sizes"],
    )
    for image, result in enumerate(results):
        assert torch.equal(result["segmentation"], tensors[f"segmentation{image}"].long())
        wanted = values["segments_info"][image]
        assert [(s["id"], s["label_id"]) for s in result["segments_info"]] == [
            (s["id"], s["category_id"]) for s in wanted
        ]
        areas = [int((result["segmentation"] == s["id"]).sum()) for s in result["segments_info"]]
        assert areas == [s["area"] for s in wanted]


def test_nothing_above_the_threshold_is_no_segment():
    values, _, outputs = golden()
    results = PROCESSOR.post_process_panoptic_segmentation(
        outputs, 1.0, target_sizes=values["target_sizes"], processed_sizes=values["processed_sizes"]
    )
    for result, size in zip(results, values["target_sizes"], strict=True):
        assert result["segments_info"] == values["nothing_above_threshold"]["segments_info"]
        assert result["segmentation"].unique().tolist() == values["nothing_above_threshold"]["unique_ids"]
        assert list(result["segmentation"].shape) == size


def test_instance_masks_are_the_originals():
    values, tensors, outputs = golden()
    results = PROCESSOR.post_process_instance_segmentation(
        outputs,
        0.0,
        values["instance_mask_threshold"],
        target_sizes=values["target_sizes"],
        processed_sizes=values["processed_sizes"],
    )
    for image, result in enumerate(results):
        packed = np.packbits(result["masks"].flatten(1).numpy(), axis=1)
        assert np.array_equal(packed, tensors[f"instance_masks{image}_packed"].numpy())


@pytest.mark.parametrize("image_size", [(48, 64), (45, 61)])
def test_padding_changes_no_segment(image_size):
    height, width = image_size
    cells = (-(-height // 4), -(-width // 4))
    alone = torch.randn(6, *cells, generator=torch.Generator().manual_seed(0)) * 4
    padded = torch.full((6, 20, 24), 50.0)  # what lies in the padding is louder than any mask
    padded[:, : cells[0], : cells[1]] = alone
    labels = [0, 1, 1, 2, 2, 0]
    sizes = {"image_sizes": torch.tensor([image_size]), "stuff_labels": torch.tensor([2])}
    outputs = [
        made_outputs(masks, labels, canvas_size=torch.tensor(canvas), **sizes)
        for masks, canvas in ((alone, image_size), (padded, (78, 94)))
    ]
    for process in (PROCESSOR.post_process_panoptic_segmentation, PROCESSOR.post_process_instance_segmentation):
        results = [process(output, target_sizes=[(97, 131)])[0] for output in outputs]
        assert torch.equal(results[0]["segmentation"], results[1]["segmentation"])
        assert results[0]["segments_info"] == results[1]["segments_info"]
    semantic = [
        PROCESSOR.post_process_semantic_segmentation(output, target_sizes=[(97, 131)])[0] for output in outputs
    ]
    assert torch.equal(*semantic)


def test_masks_of_one_stuff_are_one_segment_and_things_stay_apart():
    outputs = made_outputs(half_planes(), [1, 1])
    (apart,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(16, 16)])
    (fused,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(16, 16)], label_ids_to_fuse={1})
    assert [segment["was_fused"] for segment in apart["segments_info"]] == [False, False]
    assert apart["segmentation"].unique().tolist() == [0, 1]
    assert [segment["was_fused"] for segment in fused["segments_info"]] == [True]
    assert fused["segmentation"].unique().tolist() == [0]


def test_thresholds_of_masks_leave_pixels_without_a_segment():
    masks = half_planes()
    masks[:, :2] = -6  # nobody claims the upper rows
    outputs = made_outputs(masks, [0, 1])
    (everything,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(8, 8)])
    (claimed,) = PROCESSOR.post_process_panoptic_segmentation(outputs, mask_threshold=0.5, target_sizes=[(8, 8)])
    assert (everything["segmentation"] >= 0).all()
    assert (claimed["segmentation"][:2] == -1).all()
    assert (claimed["segmentation"][2:] >= 0).all()

    behind = torch.stack([masks[0], masks[0] - 1])  # the second lies behind the first, but for a corner
    behind[0, -2:, :4], behind[1, -2:, :4] = 0.2, 6
    outputs = made_outputs(behind, [0, 1])
    kept = [
        [
            segment["label_id"]
            for segment in PROCESSOR.post_process_panoptic_segmentation(
                outputs, overlap_mask_area_threshold=share, target_sizes=[(8, 8)]
            )[0]["segments_info"]
        ]
        for share in (0.0, 0.8)
    ]
    assert kept == [[0, 1], [0]]


def test_the_instance_in_front_is_the_one_with_the_higher_score():
    masks = torch.full((2, 8, 8), 6.0)
    masks[1, :, 4:] = -6
    outputs = made_outputs(masks, [0, 1])
    outputs.logits[0, 0] /= 3
    (result,) = PROCESSOR.post_process_instance_segmentation(outputs, target_sizes=[(8, 8)])
    assert result["masks"].sum((1, 2)).tolist() == [64, 32]
    assert (result["segmentation"][:, :4] == 1).all()
    assert (result["segmentation"][:, 4:] == 0).all()
    (result,) = PROCESSOR.post_process_instance_segmentation(
        outputs, overlap_mask_area_threshold=0.6, target_sizes=[(8, 8)]
    )
    assert [segment["id"] for segment in result["segments_info"]] == [1]


def test_instances_are_things_only():
    outputs = made_outputs(half_planes(), [0, 1], stuff_labels=torch.tensor([1]))
    (result,) = PROCESSOR.post_process_instance_segmentation(outputs, target_sizes=[(8, 8)])
    assert result["labels"].tolist() == [0]


def test_every_pixel_has_its_likeliest_class():
    outputs = made_outputs(half_planes(), [0, 2])
    (labels,) = PROCESSOR.post_process_semantic_segmentation(outputs, target_sizes=[(8, 8)])
    assert (labels[:, :4] == 0).all()
    assert (labels[:, 4:] == 2).all()


def test_outputs_without_masks_say_how_to_get_them():
    outputs = made_outputs(half_planes(), [0, 1])
    outputs.pred_masks = None
    with pytest.raises(ValueError, match=r"no pred_masks.*predict_masks=functools.partial"):
        PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(8, 8)])
    outputs = made_outputs(half_planes(), [0, 1])
    with pytest.raises(ValueError, match=r"target_sizes has shape \(1,\) for 1 images"):
        PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[8])


@pytest.mark.parametrize("subtask", ["panoptic", "instance", None])
def test_the_pipeline_segments_an_image(subtask, tiny_config):
    torch.manual_seed(0)
    config = tiny_config(d_model=128, encoder_attention_heads=8, decoder_attention_heads=8, stuff_labels=[0])
    model = DetrForSegmentation(config).eval()
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    with torch.no_grad():
        model.detr.class_labels_classifier.bias[1] = 20.0  # sure of something
    found = segment(Image.new("RGB", (90, 60), "red"), subtask=subtask, mask_threshold=0.0)
    assert {entry["label"] for entry in found} == {config.id2label[1]}
    assert all(entry["mask"].size == (90, 60) for entry in found)


@pytest.mark.parametrize("task", ["image-segmentation", "object-detection"])
def test_a_pipeline_takes_any_number_of_images_at_once(task, tiny_config):
    torch.manual_seed(0)
    config = tiny_config(d_model=128, encoder_attention_heads=8, decoder_attention_heads=8, stuff_labels=[0])
    kind = DetrForSegmentation if task == "image-segmentation" else DetrForObjectDetection
    model = kind(config).eval()
    with torch.no_grad():
        (model.detr if kind is DetrForSegmentation else model).class_labels_classifier.bias[1] = 20.0
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    see = pipeline(task, model=model, image_processor=processor)
    images = [
        Image.new("RGB", (90, 60), color) for color in ("red", "green", "blue", "white", "black", "grey", "pink")
    ]
    together, alone = see(images, batch_size=7), [see(image) for image in images]
    assert [[entry["label"] for entry in found] for found in together] == [
        [entry["label"] for entry in found] for found in alone
    ]
