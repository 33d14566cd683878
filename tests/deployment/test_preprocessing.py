import numpy as np
import pytest

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.deployment.preprocessing import fitted_processor, preprocessing_of
from modeling_detr.errors_detr import ModelError


def test_a_filter_that_exported_models_do_not_have_is_an_error():
    processor = DetrTorchvisionImageProcessor(resample=1)
    with pytest.raises(ModelError, match=r"resample is 1 \(lanczos\), but exported models resize with bilinear or bi"):
        preprocessing_of(processor)
    preprocessing_of(DetrTorchvisionImageProcessor(resample=1, do_resize=False))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ({"shortest_edge": 800, "longest_edge": 1333}, {"max_height": 480, "max_width": 640}),
        ({"shortest_edge": 320}, {"shortest_edge": 320, "longest_edge": 480}),
        ({"shortest_edge": 320, "longest_edge": 400}, {"shortest_edge": 320, "longest_edge": 400}),
        ({"height": 640, "width": 640}, {"height": 480, "width": 640}),
        ({"max_height": 900, "max_width": 600}, {"max_height": 480, "max_width": 600}),
    ],
)
def test_with_a_fixed_size_every_image_is_resized_to_fit(size, fitted):
    processor = fitted_processor(DetrTorchvisionImageProcessor(size=size, do_pad=False), 480, 640)
    assert preprocessing_of(processor)["size"] == fitted
    for shape in ((75, 110, 3), (110, 75, 3), (900, 900, 3)):
        inputs = processor(np.zeros(shape, np.uint8))
        assert inputs["pixel_values"].shape == (1, 3, 480, 640)
