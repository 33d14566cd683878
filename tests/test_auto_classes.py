"""`import modeling_detr` is light, and Transformers' Auto classes find our classes whichever is imported first."""

import pickle
import subprocess
import sys
import textwrap

import pytest

import modeling_detr
from modeling_detr import DetrTorchvisionImageProcessor


IMPORT_AUTO_CLASSES = """
import torch
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageSegmentation, AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection, AutoModelForUniversalSegmentation,
)
"""
FIND_OURS = """
import pickle, sys
folder, pickled = sys.argv[1:]
config, processor = pickle.loads(bytes.fromhex(pickled))
assert type(AutoConfig.from_pretrained(folder)) is type(config) is modeling_detr.DetrConfig
assert type(AutoImageProcessor.from_pretrained(folder)) is type(processor)
assert type(processor) is modeling_detr.DetrTorchvisionImageProcessor
with torch.device("meta"):
    assert type(AutoModel.from_config(config)) is modeling_detr.DetrModel
    assert type(AutoModelForObjectDetection.from_config(config)) is modeling_detr.DetrForObjectDetection
    for auto in AutoModelForUniversalSegmentation, AutoModelForImageSegmentation, AutoModelForInstanceSegmentation:
        assert type(auto.from_config(config)) is modeling_detr.DetrForSegmentation
"""


def run(script, *arguments):
    code = textwrap.dedent(script)
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_import_of_the_package_loads_no_large_library_and_offers_all_names_and_pipelines_find_its_classes():
    run("""
        import sys, modeling_detr
        assert not {"torch", "torchvision", "transformers", "timm", "scipy", "numpy", "PIL"} & sys.modules.keys()
        assert {*modeling_detr.__all__} <= {*dir(modeling_detr)}
        assert modeling_detr.modeling_detr.DetrModel is modeling_detr.DetrModel
        from transformers.pipelines import SUPPORTED_TASKS
        for task in "object-detection", "image-segmentation":
            assert any(modeling_detr.DetrConfig in auto._model_mapping for auto in SUPPORTED_TASKS[task]["pt"])
    """)


@pytest.mark.parametrize("package_first", [True, False])
def test_auto_classes_find_our_classes(package_first, tmp_path, tiny_segmenter):
    config, processor = tiny_segmenter().config, DetrTorchvisionImageProcessor()
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    imports = ["import modeling_detr", IMPORT_AUTO_CLASSES]
    script = "\n".join([*(imports if package_first else reversed(imports)), FIND_OURS])
    run(script, str(tmp_path), pickle.dumps((config, processor)).hex())


def test_our_classes_are_registered_with_transformers_itself_if_it_has_moved_its_auto_classes():
    run("""
        import modeling_detr
        calls = []
        modeling_detr.auto_classes.REGISTRATIONS = {"transformers.moved.auto": lambda: calls.append(1)}
        import transformers
        assert calls == [1]
    """)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'modeling_detr' has no attribute 'DetrForClassification'"):
        modeling_detr.DetrForClassification  # noqa: B018
