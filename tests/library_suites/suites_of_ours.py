"""The library's common suites for our classes; `test_library_suites.py` runs it beside the library's test sources."""

import copy
import unittest

import numpy as np
import torch
from PIL import Image
from tests.test_configuration_common import ConfigTester
from tests.test_image_processing_common import (
    AnnotationFormatTestMixin,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    prepare_image_inputs,
)
from tests.test_modeling_common import ModelTesterMixin

from modeling_detr import (
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    DetrModel,
    DetrTorchvisionImageProcessor,
)
from modeling_detr.image_processing_detr import resize_output_size
from modeling_detr.segmentation_detr import DetrSegmentationOutput


class DetrModelTester:
    """What the model suite wants to know of a model."""

    batch_size = 2
    image_size = 64
    num_hidden_layers = 1
    num_attention_heads = 8
    hidden_size = 128
    encoder_seq_length = 4
    seq_length = decoder_seq_length = num_queries = 6
    is_training = True

    def get_config(self):
        return DetrConfig(
            backbone="resnet10t",
            backbone_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8, "zero_init_last": False},
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=self.num_queries,
            num_labels=91,
        )

    def prepare_config_and_inputs_for_common(self):
        size = (self.batch_size, self.image_size, self.image_size)
        inputs = {
            "pixel_values": torch.randn(size[0], 3, *size[1:]),
            "pixel_mask": torch.ones(size, dtype=torch.int64),
        }
        return self.get_config(), inputs


class TestModel(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DetrModel, DetrForObjectDetection, DetrForSegmentation)
    is_encoder_decoder = True
    test_resize_embeddings = False
    test_missing_keys = False
    test_torch_exportable = False

    def setUp(self):
        self.model_tester = DetrModelTester()
        self.config_tester = ConfigTester(self, config_class=DetrConfig, has_text_modality=False)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is not DetrModel:
            target = {
                "class_labels": torch.ones(3, dtype=torch.int64),
                "boxes": torch.full((3, 4), 0.4),
                "masks": torch.ones(3, 64, 64, dtype=torch.bool),
            }
            inputs["labels"] = [copy.deepcopy(target) for _ in range(self.model_tester.batch_size)]
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_bc_torch_dtype(self):
        # it has the parameters of the others, each of which the suite formats for a message, many times
        self.all_model_classes = (DetrForSegmentation,)
        super().test_bc_torch_dtype()


class DetrProcessorTester:
    """What the image-processing suites want to know of a processor."""

    batch_size = 7
    num_channels = 3
    image_processing_classes = {"torchvision": DetrTorchvisionImageProcessor}  # noqa: RUF012

    def __init__(self, parent):
        self.parent = parent

    def prepare_image_processor_dict(self):
        return {
            "do_resize": True,
            "size": {"shortest_edge": 18, "longest_edge": 1333},
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_pad": True,
        }

    def expected_output_image_shape(self, images):
        sizes = []
        for image in images:
            if isinstance(image, Image.Image):
                width, height = image.size
            elif isinstance(image, np.ndarray):
                height, width = image.shape[:2]
            else:
                height, width = image.shape[1:]
            sizes.append(resize_output_size(height, width, 18, 1333))
        return 3, max(height for height, _ in sizes), max(width for _, width in sizes)

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=400,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )

    def prepare_post_process_semantic_segmentation_inputs(self):
        outputs = DetrSegmentationOutput(
            logits=torch.randn(self.batch_size, 5, 3 + 1), pred_masks=torch.randn(self.batch_size, 5, 20, 30)
        )
        return {"outputs": outputs}, {"num_labels": 3, "height": 20, "width": 30}


class TestImageProcessor(
    AnnotationFormatTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    ImageProcessingTestMixin,
    unittest.TestCase,
):
    image_processor_tester_class = DetrProcessorTester

    # As the library's own since 5.23; older suites look for the classes by the name of their folder
    def setUp(self):
        self.image_processor_tester = DetrProcessorTester(self)

    @property
    def image_processing_classes(self):
        return self.image_processor_tester.image_processing_classes

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()
