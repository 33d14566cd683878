"""Padded batches without a mask: what a model says, notes in its config, and does later."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_detr import DetrForObjectDetection


LABELS = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}]
Build = Callable[..., Any]


def padded_image() -> tuple[Tensor, Tensor]:
    """Return an image padded to a square, and its mask."""
    image, mask = torch.zeros(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.int64)
    image[:, :, :64] = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mask[:, :64] = 1
    return image, mask


@pytest.mark.parametrize("build_name", ["tiny_detector", "tiny_segmenter"])
def test_a_model_trained_on_padding_without_a_mask_says_so_and_ignores_masks(
    build_name: str, request: pytest.FixtureRequest, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = request.getfixturevalue(build_name)()
    image, mask = padded_image()
    labels = [{**LABELS[0], "masks": torch.ones(1, 64, 96, dtype=torch.bool)}]
    for _ in range(3):
        model.train()(image, labels=labels)
    assert caplog.text.count("it gets no pixel_mask") == 1
    assert model.config.trained_without_mask
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path)
    caplog.clear()
    with torch.no_grad():
        expected, got = loaded(image), loaded(image, mask)
        loaded(image, mask)
    assert torch.equal(got.pred_boxes, expected.pred_boxes)
    assert caplog.text.count("pixel_mask is ignored") == len(caplog.records) == 1
    if build_name == "tiny_segmenter":
        assert got.image_sizes.tolist() == [[64, 96]]  # masks are still cropped to the image


def test_training_with_masks_brings_them_back(tiny_detector: Build, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_detector(trained_without_mask=True)
    image, mask = padded_image()
    model.train()(image, mask, labels=LABELS)
    assert not model.config.trained_without_mask
    with torch.no_grad():
        assert not torch.equal(model.eval()(image, mask).pred_boxes, tiny_detector().eval()(image).pred_boxes)
    assert not caplog.records[:-1]  # the last is of the call without a mask


def test_a_padded_image_without_a_mask_is_reported_once(
    tiny_detector: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_detector().eval()
    image, _ = padded_image()
    with torch.no_grad():
        model(image)
        model(image.transpose(2, 3))
    assert [record.message.startswith("The images are padded with zeros") for record in caplog.records] == [True]
    assert not model.config.trained_without_mask
    model.train()(image, labels=LABELS)  # training is another matter
    assert model.config.trained_without_mask


def test_right_use_is_silent(tiny_detector: Build, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_detector()
    image, mask = padded_image()
    whole = image[:, :, :64]
    caplog.set_level(logging.WARNING)
    for mode in (True, False):
        model.train(mode)
        model(image, mask, labels=LABELS)
        model(whole, labels=LABELS)
        model(whole, torch.ones_like(whole[:, 0]), labels=LABELS)
        model([whole[0], whole[0, :, :32]], labels=LABELS * 2)  # a list is padded and masked by the model
        model(torch.zeros(1, 3, 64, 64))  # an image without content is a dummy
    assert not caplog.records
    assert not model.config.trained_without_mask


def test_a_graph_keeps_to_the_training(tiny_detector: Build) -> None:
    image, mask = padded_image()
    mask_free = tiny_detector(trained_without_mask=True).eval()
    exported = torch.export.export(mask_free, (image, mask))
    with torch.no_grad():
        assert torch.equal(exported.module()(image, mask).pred_boxes, mask_free(image).pred_boxes)
        compiled = torch.compile(mask_free, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image, mask).pred_boxes, mask_free(image).pred_boxes)


def test_a_batch_without_padding_is_examined_a_few_times_only(tiny_detector: Build) -> None:
    model: DetrForObjectDetection = tiny_detector().eval()
    with torch.no_grad():
        for _ in range(25):
            model(torch.ones(1, 3, 32, 32))
    assert model.model.padding_watch.batches_to_examine == {True: 20, False: 0}
