import pytest

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.deployment.preprocessing import preprocessing_of
from modeling_detr.errors_detr import ModelError


def test_a_filter_that_exported_models_do_not_have_is_an_error():
    processor = DetrTorchvisionImageProcessor(resample=1)
    with pytest.raises(ModelError, match=r"resample is 1 \(lanczos\), but exported models resize with bilinear or bi"):
        preprocessing_of(processor)
    preprocessing_of(DetrTorchvisionImageProcessor(resample=1, do_resize=False))
