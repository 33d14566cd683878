"""Batches: padded with zeros, boxes relative to the unpadded image, labels checked."""

import pytest
import torch
from torchvision import tv_tensors

from modeling_detr.data import DetrCollator
from modeling_detr.data.batch import split_batch
from modeling_detr.image_processing_detr import batch_to_device, normalize
from modeling_detr.padding_detr import pad_images


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _sample(height, width, boxes, labels, image_index):
    torch.manual_seed(image_index)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "class_labels": torch.tensor(labels, dtype=torch.int64),
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "image_index": image_index,
        },
    }


@pytest.fixture
def samples():
    return [_sample(20, 40, [(10, 5, 30, 15)], [2], 0), _sample(30, 25, [], [], 1)]


def test_pixels_are_padded_with_zeros_and_normalised_on_the_device(samples):
    batch = DetrCollator(num_labels=3)(samples)
    assert batch["pixel_values"].dtype == torch.uint8
    assert not batch["pixel_values"][0, :, 20:].any()
    expected, mask = pad_images(
        [normalize(sample["image"].as_subclass(torch.Tensor), MEAN, STD) for sample in samples]
    )
    on_device = batch_to_device(batch, torch.device("cpu"), MEAN, STD)
    torch.testing.assert_close(on_device["pixel_values"], expected, rtol=0, atol=1e-6)
    assert torch.equal(on_device["pixel_mask"].long(), mask)
    assert not on_device["pixel_values"][0, :, 20:].any()


def test_boxes_are_relative_to_the_unpadded_image(samples):
    with_box, empty = DetrCollator(num_labels=3)(samples)["labels"]
    torch.testing.assert_close(with_box["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert with_box["size"].tolist() == [20, 40]
    assert int(with_box["image_index"]) == 0
    assert with_box["area"].tolist() == [200]
    assert empty["boxes"].shape == (0, 4)
    assert empty["class_labels"].dtype == torch.int64


def test_masks_are_those_of_the_image_without_padding(samples):
    samples[0]["target"]["masks"] = tv_tensors.Mask(torch.ones(1, 20, 40, dtype=torch.bool))
    labels = DetrCollator(num_labels=3)(samples)["labels"]
    assert labels[0]["masks"].shape == (1, 20, 40)
    assert int(labels[0]["masks"].sum()) == 20 * 40


def test_a_label_out_of_range_names_the_image(samples):
    with pytest.raises(ValueError, match=r"cat\.jpg: class label 2, but the model has 2 classes"):
        DetrCollator(num_labels=2, names=["cat.jpg", "dog.jpg"])(samples)
    with pytest.raises(ValueError, match=r"image 0 of the dataset: class label 2"):
        DetrCollator(num_labels=2)(samples)


def test_a_batch_is_split_into_parts_of_limited_pixels() -> None:
    sizes = [(20, 30), (4, 5), (40, 10), (5, 5), (40, 50)]
    pixels, mask = torch.zeros((5, 3, 40, 50)), torch.zeros((5, 40, 50), dtype=torch.int64)
    for position, (height, width) in enumerate(sizes):
        pixels[position, :, :height, :width], mask[position, :height, :width] = position + 1, 1
    labels = [{"class_labels": torch.tensor([n]), "boxes": torch.full((1, 4), 0.5)} for n in range(5)]

    parts = split_batch({"pixel_values": pixels, "pixel_mask": mask, "labels": labels}, 800)

    seen = [int(label["class_labels"]) for part in parts for label in part["labels"]]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    for part in parts:
        count, _, height, width = part["pixel_values"].shape
        assert count * height * width <= 800 or count == 1
        assert part["pixel_mask"].shape == (count, height, width)
        for label, image, inside in zip(part["labels"], part["pixel_values"], part["pixel_mask"], strict=True):
            position = int(label["class_labels"])
            assert int(inside.sum()) == sizes[position][0] * sizes[position][1]
            assert float(image.sum()) == 3 * (position + 1) * int(inside.sum())
    whole = {"pixel_values": pixels, "pixel_mask": mask, "labels": labels}
    assert split_batch(whole, 5 * 40 * 50)[0] is whole
