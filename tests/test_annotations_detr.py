"""COCO annotations become labels for the loss."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor


def test_annotations_become_labels_relative_to_the_unpadded_image() -> None:
    objects = [
        {"bbox": [10, 20, 40, 20], "category_id": 7, "area": 500.0, "iscrowd": 0, "id": 1},
        {"bbox": [0, 0, 50, 50], "category_id": 8, "iscrowd": 1},  # a crowd region
        {"bbox": [90, -10, 40, 30], "category_id": 9},  # reaches past the image
        {"bbox": [100, 0, 20, 20], "category_id": 9},  # lies outside it
        {"bbox": [5, 5, 0, 20], "category_id": 9},  # has no area
    ]
    images = [Image.new("RGB", (100, 50)), Image.new("RGB", (300, 300))]
    annotations = [{"image_id": 42, "annotations": objects}, {"image_id": 43, "annotations": []}]
    batch = DetrTorchvisionImageProcessor(size=100)(images, annotations)
    first, second = batch["labels"]
    assert first["class_labels"].tolist() == [7, 9]
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.3, 0.6, 0.4, 0.4], [0.95, 0.2, 0.1, 0.4]]))
    torch.testing.assert_close(first["area"], torch.tensor([500.0 * 4, 40 * 30 * 4]))
    assert first["image_id"].tolist() == [42]
    assert first["orig_size"].tolist() == [50, 100]
    assert first["size"].tolist() == [100, 200]
    assert second["boxes"].shape == (0, 4)
    assert second["class_labels"].dtype == torch.int64
    padded = DetrTorchvisionImageProcessor(size=100, pad_size=400)(images, annotations)
    torch.testing.assert_close(padded["labels"][0]["boxes"], first["boxes"])


def test_segmentations_become_masks_of_the_unpadded_image() -> None:
    square = [20.0, 10.0, 40.0, 10.0, 40.0, 30.0, 20.0, 30.0]
    plain = {"size": [50, 100], "counts": [50 * 20, 20, 4980 - 50 * 20]}
    objects = [
        {"bbox": [20, 10, 20, 20], "category_id": 1, "segmentation": [square]},
        {"bbox": [200, 10, 20, 20], "category_id": 1, "segmentation": [square]},  # its box lies outside the image
        {"bbox": [20, 0, 1, 20], "category_id": 2, "segmentation": plain},
    ]
    processor = DetrTorchvisionImageProcessor(size=100, return_segmentation_masks=True)
    images = [Image.new("RGB", (100, 50)), Image.new("RGB", (300, 300))]
    first, second = processor(images, [{"annotations": objects}, {"annotations": []}])["labels"]

    assert first["masks"].dtype == torch.bool
    assert first["masks"].shape == (2, 100, 200)
    assert first["masks"][0, 20:60, 40:80].all()
    assert first["masks"].sum((1, 2)).tolist() == [40 * 40, 2 * 40]
    assert second["masks"].shape == (0, 100, 100)
    for segmentation in (None, [[1, 2]], {"size": [4, 4], "counts": [16]}):
        with pytest.raises(ValueError, match="image 0: the segmentation of annotation 9"):
            processor(images[0], [{"annotations": [{**BOX, "id": 9, "segmentation": segmentation}]}])
    assert "masks" not in DetrTorchvisionImageProcessor()(images[0], [{"annotations": objects}])["labels"][0]


BOX = {"bbox": [0, 0, 5, 5], "category_id": 1}
bad_annotations = [
    ([], "annotations: got 0 for 1 images, expected one dict per image"),
    (["x"], "image 0: the annotation is not a dict, expected {'image_id'"),
    (
        {"image_id": 1, "segments_info": []},
        r"image 0: the annotation has the keys \['image_id', 'segments_info'\], expected",
    ),
    ({"image_id": "a", "annotations": []}, "image 0: got image_id 'a', expected an integer"),
    ({"annotations": [BOX, {"bbox": [0, 0, 5, 5]}]}, "image 0: annotation 1 has no category_id"),
    ({"annotations": [{**BOX, "bbox": [0, 0, 5]}]}, "annotation 0 has bbox .* expected four finite numbers"),
    ({"annotations": [{**BOX, "bbox": [0, 0, 5, float("nan")]}]}, "annotation 0 has bbox"),
    ({"annotations": [{**BOX, "bbox": "0 0 5 5"}]}, "annotation 0 has bbox 0 0 5 5, expected four finite numbers"),
    ({"annotations": [{**BOX, "category_id": "cat"}]}, "annotation 0 has category_id 'cat', expected an integer"),
    ({"annotations": [{**BOX, "category_id": 1.5}]}, "annotation 0 has category_id 1.5, expected an integer"),
    ({"annotations": {"bbox": [[0, 0, 5, 5]], "category_id": [1]}}, "'annotations' is dict, expected a list"),
    ({"annotations": None}, "'annotations' is NoneType, expected a list"),
    ({"annotations": [3]}, "annotation 0 is int, expected"),
    (3, "annotations: got int, expected one dict per image"),
]


@pytest.mark.parametrize(("annotations", "message"), bad_annotations)
def test_a_malformed_annotation_is_named(annotations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetrTorchvisionImageProcessor(size=20)(torch.ones(3, 5, 7), annotations)


def test_numbers_of_numpy_pytorch_and_pandas_are_read() -> None:
    objects = [
        {"bbox": np.array([0, 0, 5, 5]), "category_id": np.int64(1)},
        {"bbox": torch.tensor([0.0, 0.0, 5.0, 5.0]), "category_id": torch.tensor(2)},
        {"bbox": (0, 0, 5, 5), "category_id": 3.0},
    ]
    (labels,) = DetrTorchvisionImageProcessor(size=20)(torch.ones(3, 10, 10), {"annotations": objects})["labels"]
    assert labels["class_labels"].tolist() == [1, 2, 3]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(3, 1))
