"""Segmentations on which pycocotools' C code crashes or fills the memory are errors of the image processor."""

import numpy as np
import pytest

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.coco_masks_detr import decode_coco_mask


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 1e9, 0, 1e9, 1e9]],  # killed the process
        [[0, 0, 1e18, 0, 1e18, 1e18]],
        [[float("nan")] * 6],
        [[0, 0, 9, 0, 9, 9]] * 20_000,
        {"size": [10**9, 10**9], "counts": "0"},
        {"size": [60, 80], "counts": [-5, 10]},
        {"size": [60, 80], "counts": [10]},
        {"size": [60, 80], "counts": [0, 10**12]},
        {"size": [60, 80], "counts": b"\xff\xfe\x00~~~~~"},
        {"size": [60, 80], "counts": ""},
        "abcdefg",
        5,
    ],
)
def test_a_segmentation_that_crashes_pycocotools_is_an_error(segmentation):
    annotation = {"annotations": [{"bbox": [1, 1, 9, 9], "category_id": 1, "segmentation": segmentation}]}
    with pytest.raises(ValueError, match=r"image 0: the segmentation of annotation .* cannot be read"):
        DetrTorchvisionImageProcessor()(
            np.zeros((60, 80, 3), np.uint8), annotations=annotation, return_segmentation_masks=True
        )


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 4, 1, 4, 3, 2, 3]],
        [[2, 1, 4, 1, 4, 3, 2, 3, 7]],  # an odd number
        {"size": [4, 6], "counts": [9, 2, 2, 2, 9]},
        {"size": [4, 6], "counts": [*np.array([9, 2, 2, 2, 9])]},
    ],
)
def test_a_segmentation_of_each_kind_is_decoded(segmentation):
    expected = np.zeros((4, 6), bool)
    expected[1:3, 2:4] = True
    assert (decode_coco_mask(segmentation, 4, 6) == expected).all()
