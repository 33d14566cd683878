"""`app.py` without Gradio, which cannot be installed beside the versions of this package's tests: its own part."""

import importlib
import sys
from types import ModuleType

import pytest
from PIL import Image


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a model that finds one object, which exceeds the image."""
    found = [{"score": 0.876, "label": "cat", "box": {"xmin": -3, "ymin": 5, "xmax": 500, "ymax": 40}}]
    handler, gradio = ModuleType("handler"), ModuleType("gradio")
    handler.EndpointHandler = lambda _folder: lambda request: found * (request["parameters"]["threshold"] < 0.8)
    gradio.Image = gradio.Slider = gradio.AnnotatedImage = lambda *_arguments, **_options: None
    gradio.Interface = lambda *arguments, **options: (arguments, options)
    monkeypatch.setitem(sys.modules, "handler", handler)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.delitem(sys.modules, "modeling_detr.endpoint_files.app", raising=False)
    return importlib.import_module("modeling_detr.endpoint_files.app")


def test_objects_are_labelled_boxes_inside_the_image(app: ModuleType) -> None:
    image, boxes = app.detect(Image.new("RGB", (90, 60)), 0.5)
    assert image.size == (90, 60)
    assert boxes == [((0, 5, 90, 40), "cat 0.88")]
    assert app.detect(Image.new("RGB", (90, 60)), 0.9)[1] == []


def test_without_an_image_nothing_is_shown(app: ModuleType) -> None:
    assert app.detect(None, 0.5) is None
