"""Detects objects on an Inference Endpoint of Hugging Face, which finds this file beside the model.

A request is an image (`Content-Type: image/jpeg`), or JSON:

    {"inputs": "…the image in base64…", "parameters": {"threshold": 0.5}}

`inputs` may be a list of images. The answer lists the objects of each image by descending score:

    [{"score": 0.98, "label": "cat", "box": {"xmin": 10, "ymin": 20, "xmax": 210, "ymax": 180}}]
"""

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps


Objects = list[dict[str, Any]]

MAX_IMAGES = 32  # of a request


class EndpointHandler:
    """The model in a folder.

    Args:
        path: The folder: one with weights, or one written by `detr export`.
    """

    def __init__(self, path: str = "") -> None:
        folder = Path(path or ".").absolute()
        is_exported = (folder / "export.json").is_file()
        self.detect: Callable[[Image.Image, float], Objects] = (
            _exported_detector(folder) if is_exported else _detector(folder)
        )

    def __call__(self, data: Mapping[str, Any]) -> Objects | list[Objects]:
        """Answers a request.

        Args:
            data: `inputs`, a PIL image, the bytes or the base64 text of an image file, or a list of these; and
                optionally `parameters` with a `threshold` from 0 to 1, .5 by default.

        Returns:
            The objects of the image, or those of each image of a list.

        Raises:
            ValueError: The request is malformed, or not an image.
        """
        threshold = (data.get("parameters") or {}).get("threshold", 0.5)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold: got {threshold!r}, expected a number from 0 to 1.")
        inputs = data.get("inputs")
        if not isinstance(inputs, list):
            return self.detect(_image(inputs), threshold)
        if len(inputs) > MAX_IMAGES:
            raise ValueError(f"inputs: got {len(inputs)} images, expected at most {MAX_IMAGES} in a request.")
        return [self.detect(_image(image), threshold) for image in inputs]


def _detector(folder: Path) -> Callable[[Image.Image, float], Objects]:
    """The model with weights in a folder, and its image processor, with the code that lies beside them."""
    import torch
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForObjectDetection,
        AutoModelForUniversalSegmentation,
    )

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    has_masks = "DetrForSegmentation" in (config.architectures or ())
    auto = AutoModelForUniversalSegmentation if has_masks else AutoModelForObjectDetection
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).to(device).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    stuff = set(getattr(config, "stuff_labels", None) or ())

    def detect(image: Image.Image, threshold: float) -> Objects:
        options = {"output_masks": False} if has_masks else {}
        with torch.inference_mode():
            outputs = model(**processor(image, device=device), **options)
        (found,) = processor.post_process_object_detection(outputs, threshold, [(image.height, image.width)])
        rows = zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True)
        objects = [_object(score, config.id2label[label], box) for score, label, box in rows if label not in stuff]
        return sorted(objects, key=lambda found: -found["score"])

    return detect


def _exported_detector(folder: Path) -> Callable[[Image.Image, float], Objects]:
    """The model in a folder that `detr export` has written, run by the `detect.py` in it."""
    from detect import Detector

    detector = Detector(folder)

    def detect(image: Image.Image, threshold: float) -> Objects:
        return [_object(one["score"], one["name"], one["box_xyxy"]) for one in detector(image, threshold)]

    return detect


def _image(source: Any) -> Image.Image:
    """The image of a request, upright.

    Raises:
        ValueError: It is not an image.
    """
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source).convert("RGB")
    if isinstance(source, str):
        try:
            text = source.partition(",")[2] if source.startswith("data:") else source
            source = base64.b64decode("".join(text.split()), validate=True)  # `base64` breaks lines
        except binascii.Error as error:
            raise ValueError("inputs: the text is not base64, expected an image in base64.") from error
    if not isinstance(source, bytes):
        raise ValueError(f"inputs: got {type(source).__name__}, expected an image in base64, or a list of these.")
    try:
        with Image.open(io.BytesIO(source), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow raises almost anything for a hostile image
        raise ValueError(f"inputs: not an image that can be read ({error}).") from error


def _object(score: float, label: str, box: list[float]) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = (round(corner) for corner in box)
    return {"score": score, "label": label, "box": {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}}
