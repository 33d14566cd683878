"""`handler.py` is called as an Inference Endpoint calls it: loaded from its folder, where the package is absent."""

import base64
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from noise_images import picture

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.deployment import export_detector
from modeling_detr.endpoint_files import OF_MODEL, write_endpoint_files
from modeling_detr.predicting import Detector


ENDPOINT = """
import importlib.util, json, sys
sys.modules["modeling_detr"] = None  # is not installed there
folder, image = sys.argv[1:]
sys.path.insert(0, folder)
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(spec)
sys.modules["handler"] = handler
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
"""


def call(folder: Path, image: Path, requests: str) -> list:
    """The answers to requests, in a process of its own."""
    script = ENDPOINT + textwrap.dedent(requests)
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(image)], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


REQUESTS = """
    import base64
    from PIL import Image
    everything = {"threshold": 0.0}
    content = open(image, "rb").read()
    text = base64.b64encode(content).decode()
    lines = base64.encodebytes(content).decode()
    for inputs in (Image.open(image), content, text, lines, [text, text]):
        print(json.dumps(endpoint({"inputs": inputs, "parameters": everything})))
    print(json.dumps(endpoint({"inputs": text, "parameters": {"threshold": 1.0}})))
"""


@pytest.fixture(params=["saved", "exported"])
def folder(request: pytest.FixtureRequest, model_folder: Path, tmp_path: Path) -> Path:
    if request.param == "saved":
        write_endpoint_files(model_folder, OF_MODEL)
        return model_folder
    detector = Detector.from_pretrained(model_folder, device="cpu")
    size = (64, 96)  # that of the picture, resized; a model of one size is exported in half the time
    export_detector(detector.model, detector.processor, tmp_path / "exported", to="torch", fixed_size=size)
    return tmp_path / "exported"


@pytest.mark.slow
def test_a_model_answers_where_the_package_is_absent(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    *answers, several, none = call(folder, image, REQUESTS)
    expected = Detector.from_pretrained(model_folder, device="cpu")(image, threshold=0.0)
    assert none == []
    for answer in (*answers, *several):
        assert [one["label"] for one in answer] == expected.names
        assert [one["score"] for one in answer] == pytest.approx(expected.scores.tolist(), abs=1e-5)
        boxes = [[one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for one in answer]
        assert boxes == [pytest.approx(box, abs=0.51) for box in expected.boxes.tolist()]


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({}, "inputs: got NoneType, expected an image in base64"),
        ({"inputs": "no base64!"}, "the text is not base64"),
        ({"inputs": base64.b64encode(b"%!PS-Adobe EPSF").decode()}, "not an image that can be read"),
        ({"inputs": ["aaaa"] * 33}, "got 33 images, expected at most 32"),
        ({"inputs": "aaaa", "parameters": {"threshold": "high"}}, "threshold: got 'high'"),
        ({"inputs": "aaaa", "parameters": {"threshold": True}}, "threshold: got True"),
    ],
)
def test_a_malformed_request_says_what_is_expected(model_folder: Path, request_body: dict, message: str) -> None:
    from modeling_detr.endpoint_files.handler import EndpointHandler

    endpoint = EndpointHandler.__new__(EndpointHandler)
    endpoint.detect = lambda *_: []
    with pytest.raises(ValueError, match=message):
        endpoint(request_body)


def test_the_folder_lists_what_it_needs(model_folder: Path) -> None:
    write_endpoint_files(model_folder, OF_MODEL)
    assert "transformers>=5.17,<6" in (model_folder / "requirements.txt").read_text().splitlines()
    assert DetrTorchvisionImageProcessor.from_pretrained(model_folder)
