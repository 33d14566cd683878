"""Detects objects in an image with the exported DETR of this folder.

    python detect.py photo.jpg --threshold 0.5

prints one line of JSON for each detection. In Python: `Detector()("photo.jpg")`. Needs NumPy, Pillow and the runtime
named in `export.json`. The pixels that the model sees, and so its detections, are those of `modeling_detr`.

Sizes are (height, width). Images are (height, width, 3) uint8 RGB.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from modeling_detr.runtimes import open_model


class Detector:
    """Detects objects with an exported model.

    A panoptic model detects things only; for segments of stuff, use `detr predict`.

    Args:
        folder: The exported folder.
    """

    def __init__(self, folder: str | Path = Path(__file__).parent) -> None:
        self.export = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))
        if self.export["format_version"] != 1:
            raise ValueError(f"{folder}: this detect.py cannot read its format_version; use the one in that folder.")
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.may_pad = "pixel_mask" in self.export["inputs"] or config.get("trained_without_mask", False)
        self.run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = open_model(Path(folder), self.export)

    def __call__(self, image: str | Path | Image.Image, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Detects the objects in an image.

        Args:
            image: A path or a PIL image.
            threshold: Objects with a lower score are left out.

        Returns:
            For each object, by descending score: `label` (its index), `name`, `score`, `box_xyxy` in pixels of the
            image, and from a model with masks `mask` (height, width) bool; None if the model was exported for fewer
            masks than there are objects.
        """
        pixels = read_rgb(image)
        size = size_after_resize(pixels.shape[:2], self.export["preprocessing"]["size"])
        inputs = self.prepare(pixels, size, threshold)
        outputs = self.run({name: inputs[name] for name in self.export["inputs"]})
        scores, labels, boxes = self.objects(outputs, pixels.shape[:2])
        kept = (scores >= np.float32(threshold)) & ~np.isin(labels, self.export["stuff_labels"])
        queries = [query for query in np.argsort(-scores, kind="stable").tolist() if kept[query]]
        detections: list[dict[str, Any]] = [
            {
                "label": int(labels[query]),
                "name": self.export["labels"][labels[query]],
                "score": float(scores[query]),
                "box_xyxy": boxes[query].tolist(),
            }
            for query in queries
        ]
        if "pred_masks" in outputs:
            rows = {query: row for row, (_, query) in enumerate(outputs["mask_queries"].tolist())}
            canvas = inputs["pixel_values"].shape[2:]
            for query, detection in zip(queries, detections, strict=True):
                logits = outputs["pred_masks"][rows[query]] if query in rows else None
                detection["mask"] = None if logits is None else enlarge_mask(logits, canvas, size, pixels.shape[:2])
        return detections

    def prepare(self, pixels: np.ndarray, size: tuple[int, int], threshold: float) -> dict[str, np.ndarray]:
        """Resizes, normalises and pads an image: all inputs that a model may have."""
        steps = self.export["preprocessing"]
        canvas = self.export["fixed_size"] or steps["pad_size"] or size
        if size[0] > canvas[0] or size[1] > canvas[1]:
            raise ValueError(
                f"the image has {size[1]}x{size[0]} pixels (width x height) after resizing, but the model was "
                f"exported for at most {canvas[1]}x{canvas[0]}; export it for a larger size, or for any."
            )
        if size != tuple(canvas) and not self.may_pad:
            self.may_pad = True  # one warning is enough
            logging.warning(
                f"The image is padded from {size[1]}x{size[0]} to {canvas[1]}x{canvas[0]} (width x height), but the "
                f"model was exported without pixel_mask, so it takes the padding for a part of the image and its "
                f"boxes are less accurate. Export it with the mask."
            )
        columns = resize_rows(pixels.swapaxes(0, 1), size[1], steps["resample"])
        resized = resize_rows(columns.swapaxes(0, 1), size[0], steps["resample"])
        mean, std = np.array([steps["mean"], steps["std"]], np.float32)
        values = np.zeros((1, 3, *canvas), np.float32)
        values[0, :, : size[0], : size[1]] = ((resized - mean) / std).transpose(2, 0, 1)
        mask = np.zeros((1, *canvas), np.int64)
        mask[0, : size[0], : size[1]] = 1
        return {
            "pixel_values": values,
            "pixel_mask": mask,
            "score_threshold": np.array(threshold - 1e-5, np.float32),  # the model's rounding differs from NumPy's
            "image_sizes": np.array([pixels.shape[:2]], np.int64),
        }

    def objects(
        self, outputs: dict[str, np.ndarray], image_size: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores (Q,), labels (Q,) and boxes (Q, 4) of all queries; boxes are xyxy in pixels of the image."""
        if "scores" in outputs:
            return outputs["scores"][0].astype(np.float32), outputs["labels"][0], outputs["boxes"][0]
        logits = outputs["logits"][0].astype(np.float32)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = (odds / odds.sum(-1, keepdims=True))[:, :-1]  # the last class is "no object"
        centres, sizes = np.split(outputs["pred_boxes"][0].astype(np.float32), 2, axis=-1)
        corners = np.concatenate([centres - 0.5 * sizes, centres + 0.5 * sizes], axis=-1)
        height, width = image_size
        boxes = corners * np.array([width, height, width, height], np.float32)
        return probabilities.max(-1), probabilities.argmax(-1), boxes


def read_rgb(image: str | Path | Image.Image) -> np.ndarray:
    """An image of any 8-bit or 16-bit kind as RGB, upright; alpha is dropped."""
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise FileNotFoundError(f"{image} does not exist or is not a file.")
        with Image.open(image) as opened:
            if opened.format == "EPS":
                raise ValueError(f"{image}: an EPS file is a program, expected an image; convert it to PNG.")
            return read_rgb(opened)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("the image has floating-point values, expected 8 or 16 bits.")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int32)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"the image has values {grey.min()}…{grey.max()}, expected 16-bit grey, 0…65535.")
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)  # 65535 = 255 * 257, rounded
    if image.mode in ("P", "PA", "RGBa", "La"):  # which Pillow cannot convert directly, or warns
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.asarray(image.convert("RGB"))


def size_after_resize(size: tuple[int, ...], rule: dict[str, int] | None) -> tuple[int, int]:
    """The size of an image after resizing by the rule `size` of the preprocessing."""
    height, width = size
    if rule is None:
        return height, width
    if "height" in rule:
        return rule["height"], rule["width"]
    if "max_height" in rule:
        scale = min(rule["max_height"] / height, rule["max_width"] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    short, long = min(height, width), max(height, width)
    if "longest_edge" in rule and long / short > rule["longest_edge"]:
        return (rule["longest_edge"], 1) if width < height else (1, rule["longest_edge"])
    target = rule["shortest_edge"]
    if "longest_edge" in rule and long / short * target > rule["longest_edge"]:
        target = max(1, round(rule["longest_edge"] * short / long))
    if short == target:
        return height, width
    return (int(target * height / width), target) if width < height else (target, int(target * width / height))


def bilinear(distance: np.ndarray) -> np.ndarray:
    """Weight by distance from the centre, in pixels of the smaller image."""
    return np.asarray(np.maximum(1 - distance, 0))


def bicubic(distance: np.ndarray) -> np.ndarray:
    """Weight by distance from the centre, in pixels of the smaller image."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


FILTERS = {"bilinear": (bilinear, 1), "bicubic": (bicubic, 2)}  # and the distance from which on their weight is 0


def resize_rows(pixels: np.ndarray, size: int, resample: str) -> np.ndarray:
    """Resizes the first axis of an image as torchvision does on a CPU, with antialiasing and weights of 16 bits.

    Pillow's own resize differs from it by 1 in about 8 % of the pixels; torchvision's on a GPU computes in float32.
    """
    old_size = len(pixels)
    if size == old_size:
        return pixels
    weight_at, radius = FILTERS[resample]
    shrink = max(old_size / size, 1.0)
    centres = old_size / size * (np.arange(size) + 0.5)
    first = np.maximum((centres - radius * shrink + 0.5).astype(int), 0)
    end = np.minimum((centres + radius * shrink + 0.5).astype(int), old_size)
    rows = first + np.arange((end - first).max())[:, None]  # those that each new row is computed from
    weights = np.where(rows < end, weight_at(np.abs(rows - centres + 0.5) * (1 / shrink)), 0)
    weights /= weights.sum(0)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    weights = np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int32)
    pixels = np.ascontiguousarray(pixels)  # three times as fast
    total = np.full((size, *pixels.shape[1:]), 2**bits // 2, np.int32)
    for row, weight in zip(np.minimum(rows, old_size - 1), weights, strict=True):
        total += pixels[row] * weight[:, None, None]
    return np.asarray(np.clip(total >> bits, 0, 255), np.uint8)


def enlarge_mask(
    logits: np.ndarray, canvas: tuple[int, ...], size: tuple[int, int], image_size: tuple[int, ...]
) -> np.ndarray:
    """Mask logits of the padded canvas as a mask of the original image.

    Args:
        logits: (h, w) cells, whose width in pixels is a power of two.
        canvas: The size of the padded image.
        size: The size of the resized image in it.
        image_size: The size of the original image.
    """
    rows, columns = (
        math.ceil(side / 2 ** math.ceil(math.log2(padded / cells) - 1e-9))
        for side, padded, cells in zip(size, canvas, logits.shape, strict=True)
    )
    enlarged = interpolate_rows(logits[:rows, :columns].astype(np.float32), size[0])
    inside = interpolate_rows(enlarged.T, size[1]).T > 0
    nearest = [
        np.minimum((np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))).astype(int), old - 1)
        for old, new in zip(size, image_size, strict=True)
    ]
    return inside[np.ix_(*nearest)]


def interpolate_rows(values: np.ndarray, size: int) -> np.ndarray:
    """Resizes the first axis linearly, as torch's `interpolate` does with `align_corners=False`."""
    scale = np.float32(len(values)) / np.float32(size)
    positions = np.maximum(scale * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = positions.astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    fraction = (positions - low.astype(np.float32))[:, None]
    return np.asarray(values[low] * (1 - fraction) + values[high] * fraction)


def main() -> None:
    """Prints the detections of one image."""
    parser = argparse.ArgumentParser(description="Detects objects: one line of JSON each, by descending score.")
    parser.add_argument("image", help="an image file")
    parser.add_argument("--threshold", type=float, default=0.5, help="the lowest score to show, 0.5 by default")
    arguments = parser.parse_args()
    try:
        detections = Detector()(arguments.image, arguments.threshold)
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError) as error:
        sys.exit(f"detect.py: {error}")
    except Exception as error:  # whatever a damaged export.json or another model leads to
        sys.exit(f"detect.py: this folder is not as it was exported ({type(error).__name__}: {error}).")
    for detection in detections:
        print(json.dumps({key: value for key, value in detection.items() if key != "mask"}))


if __name__ == "__main__":
    main()
