"""Predictions for one image."""

import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.prediction import predict_objects, predict_segments, task_of


PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
PIXELS = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_task_of_a_model_is_the_most_that_it_can_do(tiny_detector, tiny_segmenter):
    assert task_of(tiny_detector()) == "detection"
    assert task_of(tiny_segmenter(stuff_labels=[])) == "instance"
    assert task_of(tiny_segmenter(stuff_labels=[1])) == "panoptic"


def test_objects_are_sorted_by_score_and_filtered_by_the_threshold(tiny_detector):
    model = tiny_detector()
    everything = predict_objects(model, PROCESSOR, PIXELS, threshold=0)
    scores = everything["scores"].tolist()
    assert len(scores) == model.config.num_queries
    assert scores == sorted(scores, reverse=True)
    assert "masks" not in everything
    best = predict_objects(model, PROCESSOR, PIXELS, threshold=scores[2])
    assert torch.equal(best["boxes"], everything["boxes"][:3])


def test_objects_of_a_segmentation_model_have_masks_at_the_size_of_the_image(tiny_segmenter):
    model = tiny_segmenter(certain_label=0, stuff_labels=[])
    objects = predict_objects(model, PROCESSOR, PIXELS.permute(1, 2, 0).numpy())
    assert objects["masks"].shape == (model.config.num_queries, 60, 90)
    assert not objects["boxes"].requires_grad


def test_the_prediction_equals_the_post_processed_output(tiny_segmenter):
    model = tiny_segmenter(certain_label=1, stuff_labels=[1])
    segments = predict_segments(model, PROCESSOR, to_rgb(PIXELS))
    with torch.no_grad():
        outputs = model(**PROCESSOR(PIXELS))
    (expected,) = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(60, 90)])
    assert torch.equal(segments["segmentation"], expected["segmentation"])
    assert segments["segments_info"] == expected["segments_info"]


def test_16_bits_change_predictions_little(tiny_detector, tiny_segmenter):
    model = tiny_detector()
    exact, half = (predict_objects(model, PROCESSOR, PIXELS, 0, dtype) for dtype in ("float32", "bfloat16"))
    assert not torch.equal(exact["scores"], half["scores"])
    assert torch.allclose(exact["scores"], half["scores"], atol=0.02)
    segmenter = tiny_segmenter(certain_label=1, stuff_labels=[1])
    for dtype in ("float32", "bfloat16"):
        assert predict_segments(segmenter, PROCESSOR, PIXELS, dtype=dtype)["segmentation"].shape == (60, 90)
    assert predict_objects(segmenter, PROCESSOR, PIXELS, dtype="bfloat16")["masks"].dtype == torch.bool
