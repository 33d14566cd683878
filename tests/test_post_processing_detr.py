"""Post-processing: boxes, instances, segments and semantic maps, against the original's numbers."""

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
    """The original's outputs, and the results of its two post-processors."""
    values = json.loads((REFERENCE / "golden" / "panoptic_postprocess.json").read_text())
    tensors = load_file(REFERENCE / "golden" / "panoptic_postprocess.safetensors")
    outputs = SimpleNamespace(
        logits=tensors["pred_logits"], pred_boxes=tensors["pred_boxes"], pred_masks=tensors["pred_masks"]
    )
    return values, tensors, outputs


def confident_outputs(masks, labels, num_classes=3, confidence=9.0, **extra_fields):
    """Outputs of one image whose queries predict `labels` with high confidence (C is "no object")."""
    logits = torch.zeros(1, len(labels), num_classes + 1)
    logits[0, torch.arange(len(labels)), torch.tensor(labels)] = confidence
    boxes = torch.full((1, len(labels), 4), 0.5)
    return SimpleNamespace(logits=logits, pred_boxes=boxes, pred_masks=masks[None], **extra_fields)


def half_planes(size=8):
    """Mask logits of two queries: the left half and the right half."""
    masks = torch.full((2, size, size), -6.0)
    masks[0, :, : size // 2] = 6
    masks[1, :, size // 2 :] = 6
    return masks


# Detection


def detection_outputs(logits, boxes):
    return SimpleNamespace(logits=logits, pred_boxes=boxes)


@pytest.mark.parametrize("name", ["tiny-r18", "tiny-r18-prenorm", "tiny-r18-learned", "detr-r50", "detr-r50-dc5"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_detections_equal_the_originals(name, as_tensor):
    golden = load_file(REFERENCE / "golden" / f"{name}.safetensors")
    sizes = json.loads((REFERENCE / "golden" / f"{name}.json").read_text())["post_process_sizes"]
    results = PROCESSOR.post_process_object_detection(
        detection_outputs(golden["pred_logits"], golden["pred_boxes"]), 0, torch.tensor(sizes) if as_tensor else sizes
    )
    assert len(results) == len(sizes)
    for index, result in enumerate(results):
        torch.testing.assert_close(result["scores"], golden[f"post{index}_scores"])
        torch.testing.assert_close(result["boxes"], golden[f"post{index}_boxes"], atol=1e-3, rtol=1e-6)
        assert torch.equal(result["labels"], golden[f"post{index}_labels"])


def test_threshold_keeps_scores_equal_to_or_above_it():
    logits = torch.tensor([[[9.0, 0, 0], [0, 3, 0], [0, 0, 9], [0, 0, 200.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]).expand(1, 4, 4)
    (result,) = PROCESSOR.post_process_object_detection(detection_outputs(logits, boxes))
    assert result["labels"].tolist() == [0, 1]
    torch.testing.assert_close(result["boxes"], torch.tensor([[0.25, 0.25, 0.75, 0.75]] * 2))
    (all_queries,) = PROCESSOR.post_process_object_detection(detection_outputs(logits, boxes), threshold=0)
    assert len(all_queries["scores"]) == 4  # the score of the last one is exactly 0
    (none,) = PROCESSOR.post_process_object_detection(detection_outputs(logits, boxes), threshold=1.1)
    assert none["boxes"].shape == (0, 4)


def test_half_precision_outputs_are_converted_to_float32():
    logits, boxes = torch.randn(1, 4, 3).bfloat16(), torch.rand(1, 4, 4).bfloat16()
    (result,) = PROCESSOR.post_process_object_detection(detection_outputs(logits, boxes), 0, [(1333, 1333)])
    (expected,) = PROCESSOR.post_process_object_detection(
        detection_outputs(logits.float(), boxes.float()), 0, [(1333, 1333)]
    )
    assert result["boxes"].dtype == torch.float32
    assert torch.equal(result["boxes"], expected["boxes"])


@pytest.mark.parametrize("sizes", [[(10, 10)], [(10, 10)] * 3, [10, 10], torch.ones(2, 3)])
def test_target_sizes_must_be_one_pair_per_image(sizes):
    with pytest.raises(
        ValueError, match=r"target_sizes: got shape .* for 2 images, expected \(2, 2\), one \(height, width\)"
    ):
        PROCESSOR.post_process_object_detection(
            detection_outputs(torch.zeros(2, 4, 3), torch.zeros(2, 4, 4)), 0, sizes
        )


# Segmentation


def test_panoptic_segments_equal_the_originals():
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
        expected = values["segments_info"][image]
        assert [(s["id"], s["label_id"]) for s in result["segments_info"]] == [
            (s["id"], s["category_id"]) for s in expected
        ]
        areas = [int((result["segmentation"] == s["id"]).sum()) for s in result["segments_info"]]
        assert areas == [s["area"] for s in expected]


def test_no_score_above_the_threshold_gives_no_segments():
    values, _, outputs = golden()
    results = PROCESSOR.post_process_panoptic_segmentation(
        outputs, 1.0, target_sizes=values["target_sizes"], processed_sizes=values["processed_sizes"]
    )
    for result, size in zip(results, values["target_sizes"], strict=True):
        assert result["segments_info"] == values["nothing_above_threshold"]["segments_info"]
        assert result["segmentation"].unique().tolist() == values["nothing_above_threshold"]["unique_ids"]
        assert list(result["segmentation"].shape) == size


def test_instance_masks_equal_the_originals():
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
    padded = torch.full((6, 20, 24), 50.0)  # logits in the padding exceed those of every mask
    padded[:, : cells[0], : cells[1]] = alone
    labels = [0, 1, 1, 2, 2, 0]
    sizes = {"image_sizes": torch.tensor([image_size]), "stuff_labels": torch.tensor([2])}
    outputs = [
        confident_outputs(masks, labels, canvas_size=torch.tensor(canvas), **sizes)
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


def test_masks_of_a_stuff_class_are_fused_and_things_are_not():
    outputs = confident_outputs(half_planes(), [1, 1])
    (separate,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(16, 16)])
    (fused,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(16, 16)], label_ids_to_fuse={1})
    assert [segment["was_fused"] for segment in separate["segments_info"]] == [False, False]
    assert separate["segmentation"].unique().tolist() == [0, 1]
    assert [segment["was_fused"] for segment in fused["segments_info"]] == [True]
    assert fused["segmentation"].unique().tolist() == [0]


def test_mask_thresholds_leave_pixels_without_a_segment():
    masks = half_planes()
    masks[:, :2] = -6  # no mask covers the top rows
    outputs = confident_outputs(masks, [0, 1])
    (all_pixels,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(8, 8)])
    (covered,) = PROCESSOR.post_process_panoptic_segmentation(outputs, mask_threshold=0.5, target_sizes=[(8, 8)])
    assert (all_pixels["segmentation"] >= 0).all()
    assert (covered["segmentation"][:2] == -1).all()
    assert (covered["segmentation"][2:] >= 0).all()

    behind = torch.stack([masks[0], masks[0] - 1])  # the first mask hides the second except for a corner
    behind[0, -2:, :4], behind[1, -2:, :4] = 0.2, 6
    outputs = confident_outputs(behind, [0, 1])
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


def test_the_instance_with_the_higher_score_is_in_front():
    masks = torch.full((2, 8, 8), 6.0)
    masks[1, :, 4:] = -6
    outputs = confident_outputs(masks, [0, 1])
    outputs.logits[0, 0] /= 3
    (result,) = PROCESSOR.post_process_instance_segmentation(outputs, target_sizes=[(8, 8)])
    assert result["masks"].sum((1, 2)).tolist() == [64, 32]
    assert (result["segmentation"][:, :4] == 1).all()
    assert (result["segmentation"][:, 4:] == 0).all()
    (result,) = PROCESSOR.post_process_instance_segmentation(
        outputs, overlap_mask_area_threshold=0.6, target_sizes=[(8, 8)]
    )
    assert [segment["id"] for segment in result["segments_info"]] == [1]


def test_instances_as_run_lengths_are_those_of_the_map():
    outputs = confident_outputs(half_planes(), [0, 1])
    (result,) = PROCESSOR.post_process_instance_segmentation(
        outputs, target_sizes=[(8, 8)], return_coco_annotation=True
    )
    left, right = result["segmentation"]
    assert left[:4] == [1, 4, 9, 4]  # starts, counted from 1, and lengths, row by row
    assert right[:4] == [5, 4, 13, 4]


@pytest.mark.parametrize("name", ["target_sizes", "processed_sizes"])
def test_an_image_size_of_zero_is_an_error_that_names_the_argument(name):
    sizes = {"target_sizes": [(8, 8)], name: [(8, 0)]}
    for process in (PROCESSOR.post_process_panoptic_segmentation, PROCESSOR.post_process_instance_segmentation):
        with pytest.raises(ValueError, match=f"{name}: .*above 0"):
            process(confident_outputs(half_planes(), [0, 1]), **sizes)


def test_instances_exclude_stuff():
    outputs = confident_outputs(half_planes(), [0, 1], stuff_labels=torch.tensor([1]))
    (result,) = PROCESSOR.post_process_instance_segmentation(outputs, target_sizes=[(8, 8)])
    assert result["labels"].tolist() == [0]


def test_semantic_map_has_the_most_likely_class_of_each_pixel():
    outputs = confident_outputs(half_planes(), [0, 2])
    (labels,) = PROCESSOR.post_process_semantic_segmentation(outputs, target_sizes=[(8, 8)])
    assert (labels[:, :4] == 0).all()
    assert (labels[:, 4:] == 2).all()


def test_outputs_without_masks_are_an_error_with_a_remedy():
    outputs = confident_outputs(half_planes(), [0, 1])
    outputs.pred_masks = None
    with pytest.raises(ValueError, match=r"no pred_masks.*predict_masks=functools.partial"):
        PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(8, 8)])
    outputs = confident_outputs(half_planes(), [0, 1])
    with pytest.raises(ValueError, match=r"target_sizes: got shape \(1,\) for 1 images, expected \(1, 2\)"):
        PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[8])


@pytest.mark.parametrize("subtask", ["panoptic", "instance", None])
def test_the_pipeline_segments_an_image(subtask, tiny_segmenter):
    model = tiny_segmenter(certain_label=1, stuff_labels=[0])
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    segments = segment(Image.new("RGB", (90, 60), "red"), subtask=subtask, mask_threshold=0.0)
    assert {entry["label"] for entry in segments} == {model.config.id2label[1]}
    assert all(entry["mask"].size == (90, 60) for entry in segments)


@pytest.mark.parametrize("task", ["image-segmentation", "object-detection"])
def test_a_pipeline_gives_the_same_results_for_any_batch_size(task, tiny_config):
    torch.manual_seed(0)
    config = tiny_config(d_model=128, encoder_attention_heads=8, decoder_attention_heads=8, stuff_labels=[0])
    model_class = DetrForSegmentation if task == "image-segmentation" else DetrForObjectDetection
    model = model_class(config).eval()
    with torch.no_grad():
        (model.detr if model_class is DetrForSegmentation else model).class_labels_classifier.bias[1] = 20.0
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    predict = pipeline(task, model=model, image_processor=processor)
    images = [
        Image.new("RGB", (90, 60), color) for color in ("red", "green", "blue", "white", "black", "grey", "pink")
    ]
    batched, single = predict(images, batch_size=7), [predict(image) for image in images]
    assert [[entry["label"] for entry in predictions] for predictions in batched] == [
        [entry["label"] for entry in predictions] for predictions in single
    ]
