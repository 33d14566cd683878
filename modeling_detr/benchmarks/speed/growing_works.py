"""Pieces of work whose size can be chosen, each with the smallest model and the least data that show how it grows.

Each function prepares the work of one size, and returns it to be measured.
"""

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from modeling_detr.benchmarks.speed.contenders import coco_config, draw_weights
from modeling_detr.benchmarks.speed.generated_images import (
    MEAN,
    STD,
    draw_boxes,
    random_batch,
    random_index,
    random_predictions,
    write_coco_annotations,
)
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.data.augmentation.original import OriginalPolicy
from modeling_detr.data.batch import DetrCollator
from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.data.formats.coco import read_coco
from modeling_detr.data.sampler import EvalBatchSampler, TrainBatchSampler
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.loss_detr import HungarianMatcher, SetCriterion
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.post_processing_detr import DetrPostProcessor
from modeling_detr.structures_detr import DetectionResult, DetectionSample


Prepare = Callable[[SpeedSettings, int], Work]
"""Prepares the work of a size."""

NUM_LAYERS = 6  # of the decoder, whose losses are computed together
BATCH_SIZE = 16
_SIDE = 256  # of an image, where the size of images does not grow
_WIDTH = 64  # of the transformer
_OBJECTS = 7


# The model


def small_config(**keys: Any) -> DetrConfig:
    """A DETR with all parts, each as small as its growth allows."""
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 2 * _WIDTH, "decoder_ffn_dim": 2 * _WIDTH}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return coco_config(**{"backbone": "resnet18", "d_model": _WIDTH, **layers, **heads, **keys})


def step_of_pixels(settings: SpeedSettings, pixels: int) -> Work:
    """Forward and backward pass of one square image."""
    return _step(settings, small_config(), 1, round(pixels**0.5))


def step_of_batch(settings: SpeedSettings, images: int) -> Work:
    """Forward and backward pass of a batch of small images."""
    return _step(settings, small_config(), images, _SIDE)


def inference_of_batch(settings: SpeedSettings, images: int) -> Work:
    """Forward pass of a batch of small images in evaluation mode."""
    model = _model(settings, small_config()).eval()
    pixels = torch.randn(images, 3, _SIDE, _SIDE, device=settings.device)

    def work() -> object:
        with torch.inference_mode():
            return model(pixels)

    return work


def _step(settings: SpeedSettings, config: DetrConfig, images: int, side: int) -> Work:
    model = _model(settings, config).train()
    batch = random_batch([(side, side)] * images, _OBJECTS, config.num_classes)
    inputs = batch_to_device(batch, settings.device, MEAN, STD)

    def work() -> None:
        model.zero_grad()
        model(**inputs).loss.backward()

    return work


def _model(settings: SpeedSettings, config: DetrConfig) -> DetrForObjectDetection:
    model = DetrForObjectDetection(config)
    draw_weights(model, seed=0)
    torch.nn.Module.to(model, settings.device)
    return model


def encoder_of_tokens(settings: SpeedSettings, tokens: int) -> Work:
    """Forward pass of an encoder layer in evaluation mode; a tenth of its tokens is padding."""
    encoder = _model(settings, small_config()).model.encoder.eval()
    states, positions, mask = _tokens(settings, tokens)

    def work() -> None:
        with torch.inference_mode():
            encoder(states, positions, mask, False, False)

    return work


def encoder_step_of_tokens(settings: SpeedSettings, tokens: int) -> Work:
    """Forward and backward pass of an encoder layer with dropout."""
    encoder = _model(settings, small_config()).model.encoder.train()
    states, positions, mask = _tokens(settings, tokens)

    def work() -> None:
        encoder(states, positions, mask, False, False).memory.sum().backward()

    return work


def _tokens(settings: SpeedSettings, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (1, S, D), their positions (1, S, D), and a mask (1, 1, 1, S)."""
    states, positions = torch.randn(2, 1, tokens, _WIDTH, device=settings.device)
    return states, positions, (torch.arange(tokens, device=settings.device) < 0.9 * tokens)[None, None, None]


def decoder_step_of_queries(settings: SpeedSettings, queries: int) -> Work:
    """Forward and backward pass of decoder layers with dropout, which read 400 tokens."""
    decoder = _model(settings, small_config()).model.decoder.train()
    memory, memory_positions = torch.randn(2, 1, 400, _WIDTH, device=settings.device)
    contents, positions = torch.randn(2, 1, queries, _WIDTH, device=settings.device)

    def work() -> None:
        output = decoder(contents, positions, memory, memory_positions, None, None, False, False)
        output.intermediate.sum().backward()

    return work


# Loss and results


def loss_of_queries(settings: SpeedSettings, queries: int) -> Work:
    """Matching and loss of 4 images of 60 objects."""
    return _loss(settings, images=4, queries=queries, objects=60, classes=91)


def loss_of_objects(settings: SpeedSettings, objects: int) -> Work:
    """Matching and loss of an image with 1,000 queries."""
    return _loss(settings, images=1, queries=1000, objects=objects, classes=91)


def loss_of_images(settings: SpeedSettings, images: int) -> Work:
    """Matching and loss of images of 7 objects."""
    return _loss(settings, images=images, queries=100, objects=_OBJECTS, classes=91)


def loss_of_classes(settings: SpeedSettings, classes: int) -> Work:
    """Matching and loss of 2 images of 7 objects."""
    return _loss(settings, images=2, queries=100, objects=_OBJECTS, classes=classes)


def _loss(settings: SpeedSettings, images: int, queries: int, objects: int, classes: int) -> Work:
    criterion = SetCriterion(HungarianMatcher())
    logits, boxes, labels = random_predictions(NUM_LAYERS, images, queries, objects, classes, settings.device)
    logits, boxes = logits.requires_grad_(), boxes.requires_grad_()

    def work() -> None:
        logits.grad = boxes.grad = None
        criterion(logits, boxes, labels).loss.backward()

    return work


def detections_of_classes(settings: SpeedSettings, classes: int) -> Work:
    """Heads and post-processing of 4 images of 100 queries."""
    model = _model(settings, small_config(num_labels=classes)).eval()
    states = torch.randn(1, 4, 100, _WIDTH, device=settings.device)  # (L, B, Q, D)
    processor = DetrPostProcessor()

    def work() -> None:
        with torch.inference_mode():
            logits, boxes = model.predict(states)
            outputs = SimpleNamespace(logits=logits[-1], pred_boxes=boxes[-1])
            processor.post_process_object_detection(outputs, 0.0, [(480, 640)] * 4)

    return work


# Data


def sample_of_objects(_settings: SpeedSettings, objects: int) -> Work:
    """Augmenting and collating an image in memory, with the original's policy at half its sizes."""
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(draw_boxes(objects, _SIDE, _SIDE, rng)).float()
    sample: DetectionSample = {
        "image": tv_tensors.Image(torch.randint(0, 256, (3, _SIDE, _SIDE), dtype=torch.uint8)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(_SIDE, _SIDE)),
            "class_labels": torch.from_numpy(rng.integers(0, 91, objects)),
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "image_index": 0,
        },
    }
    policy = OriginalPolicy(**OriginalPolicy.sizes_for(400, 666))
    collate = DetrCollator(91)
    generators = np.random.SeedSequence(0).generate_state(8).tolist()

    def work() -> None:
        for seed in generators:
            collate([policy(sample, random.Random(seed))])

    return work


def reading_of_images(settings: SpeedSettings, images: int) -> Work:
    """Opening an annotation file in COCO's format; the images themselves are not looked for."""
    file = settings.folder / f"growth_{images}.json"
    write_coco_annotations(random_index(images, 1, 80), file)
    return lambda: read_coco(Path(file), require_images=False)


def epoch_of_images(_settings: SpeedSettings, images: int) -> Work:
    """Planning the batches of an epoch, by the sizes that the original's policy gives."""
    sampler = TrainBatchSampler(DetectionDataset(random_index(images, 1, 80), OriginalPolicy()), BATCH_SIZE)
    return lambda: deque(sampler, maxlen=0)


def evaluation_of_images(_settings: SpeedSettings, images: int) -> Work:
    """Planning the batches of an evaluation."""
    dataset = DetectionDataset(random_index(images, 1, 80))
    return lambda: EvalBatchSampler(dataset, BATCH_SIZE)


# Evaluation


def metrics_of_images(_settings: SpeedSettings, images: int) -> Work:
    """COCO's metrics of images of 7 objects."""
    return _metrics(images, _OBJECTS, 80)


def metrics_of_objects(_settings: SpeedSettings, objects: int) -> Work:
    """COCO's metrics of 10 images."""
    return _metrics(10, objects, 80)


def metrics_of_classes(_settings: SpeedSettings, classes: int) -> Work:
    """COCO's metrics of 100 images of 7 objects."""
    return _metrics(100, _OBJECTS, classes)


def _metrics(images: int, objects: int, classes: int) -> Work:
    """COCO's metrics of 100 predictions an image."""
    index = random_index(images, objects, classes)
    rng = np.random.default_rng(0)
    results: list[DetectionResult] = [
        {
            "scores": torch.from_numpy(rng.random(100, np.float32)),
            "labels": torch.from_numpy(rng.integers(0, classes, 100)),
            "boxes": torch.from_numpy(draw_boxes(100, record.height, record.width, rng)).float(),
        }
        for record in index.images
    ]

    def work() -> object:
        evaluator = CocoEvaluator(index)
        evaluator.update(range(len(results)), results)
        return evaluator.compute()

    return work
