"""Detect objects in images, or segment them, and draw what was found.

    detr predict runs/demo/model photo.jpg holiday_photos --output_dir predictions

writes a picture with labelled boxes for each image, in the same sub-folders, and all detections as `predictions.json`:
each with the model's index of the class (`label`), its `name`, the `score`, and the box in pixels of the image; with
masks, if the model has them, as COCO's run lengths. A panoptic model's pictures show all segments instead, which
`predictions.json` lists; each pixel's id is in `segments/…png` (red + 256 green + 256² blue, 0 = none, as in COCO).
An image that cannot be read is reported and left out; the exit code is 1 then.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from modeling_detr.conversion.sources import load_model
from modeling_detr.evaluation.coco import encode_masks
from modeling_detr.evaluation.panoptic import segment_colours
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.prediction import (
    OBJECT_THRESHOLD,
    SEGMENT_THRESHOLD,
    predict_objects,
    predict_segments,
    task_of,
)
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.structures_detr import DetectionResult, PanopticResult
from modeling_detr.visualization import draw_prediction


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="a model's folder, or its name on the Hub")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="image_or_folder", help="folders with all sub-folders")
    parser.add_argument("--output_dir", type=Path, required=True, help="where pictures and predictions.json go")
    parser.add_argument(
        "--threshold", type=float, help="lowest score that counts (default: 0.5, for panoptic segments 0.85)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold: got {arguments.threshold:g}; wanted a score from 0 to 1.")
    check_device(arguments.device)
    images = find_images(arguments.inputs, arguments.output_dir)
    model, processor = load_model(arguments.model)
    model.to(arguments.device)
    names = cast(dict[int, str], model.config.id2label)
    task = task_of(model)
    threshold: float = arguments.threshold
    if threshold is None:
        threshold = SEGMENT_THRESHOLD if task == "panoptic" else OBJECT_THRESHOLD

    # Every image by itself: what is seen in one does not depend on which others it is padded with.
    found: list[dict[str, Any]] = []
    for name, path in tqdm(images.items(), desc="predict", disable=None):
        try:
            pixels = to_rgb(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            tqdm.write(f"{path} is left out: {error}", file=sys.stderr)
            continue
        picture = arguments.output_dir / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        if task == "panoptic":
            panoptic = predict_segments(cast(DetrForSegmentation, model), processor, pixels, threshold)
            draw_prediction(pixels, panoptic, names).save(picture, quality=92)
            what = _segments_entry(panoptic, names, arguments.output_dir, name)
        else:
            result = predict_objects(model, processor, pixels, threshold)
            draw_prediction(pixels, result, names).save(picture, quality=92)
            what = {"detections": _detections_entry(result, names)}
        height, width = pixels.shape[-2:]
        found.append({"image": str(path), "height": height, "width": width, "picture": name, **what})

    written = arguments.output_dir / "predictions.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kind = "segments" if task == "panoptic" else "detections"
    num_objects = sum(len(entry[kind]) for entry in found)
    noun = "segments" if task == "panoptic" else "objects"
    print(f"{num_objects} {noun} in {len(found)} images; see {written} and the pictures beside it.")
    if len(found) < len(images):
        print(f"{len(images) - len(found)} of {len(images)} images could not be read.", file=sys.stderr)
    return int(len(found) < len(images))


def _detections_entry(result: DetectionResult, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The detections as plain values."""
    rows = zip(result["labels"].tolist(), result["scores"].tolist(), result["boxes"].tolist(), strict=True)
    detections: list[dict[str, Any]] = [
        {"label": label, "name": names[label], "score": score, "box_xyxy": box} for label, score, box in rows
    ]
    if "masks" in result:
        for detection, mask in zip(detections, encode_masks(result["masks"].numpy()), strict=True):
            detection["segmentation"] = {**mask, "counts": mask["counts"].decode("ascii")}
    return detections


def _segments_entry(panoptic: PanopticResult, names: Mapping[int, str], output_dir: Path, name: str) -> dict[str, Any]:
    """The segments as plain values; their map is written, with ids from 1 on."""
    file = Path("segments", name).with_suffix(".png")
    numbers = np.zeros(panoptic["segmentation"].shape, np.int64)
    segments = []
    for number, info in enumerate(panoptic["segments_info"], start=1):
        here = (panoptic["segmentation"] == info["id"]).numpy()
        numbers[here] = number
        label = info["label_id"]
        area = int(here.sum())
        segments.append({"id": number, "label": label, "name": names[label], "score": info["score"], "area": area})
    (output_dir / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(segment_colours(numbers)).save(output_dir / file)
    return {"segmentation": file.as_posix(), "segments": segments}


def check_device(name: str) -> None:
    """Tries a device.

    Raises:
        ValueError: There is no such device, or it cannot be used here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # a build of PyTorch without CUDA says it by an assertion
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(f"--device: '{name}' cannot be used here ({reason}); wanted for instance cpu.") from error


def find_images(inputs: Iterable[Path], output_dir: Path) -> dict[str, Path]:
    """The images, each under a name of its own for its picture: the path within the folder that it was found in.

    Pictures in `output_dir`, of an earlier call, are not taken for input.

    Raises:
        ValueError: An input is not there, is no image, or holds no images.
    """
    suffixes = set(Image.registered_extensions())
    images: dict[str, Path] = {}
    for given in inputs:
        if not given.exists():
            raise ValueError(f"There is no image or folder {given}.")
        folder, paths = given.parent, [given]
        if given.is_file() and given.suffix.lower() not in suffixes and not _is_image(given):
            raise ValueError(f"{given} is no image; wanted image files, or folders with images.")
        if given.is_dir():
            found = sorted(path for path in given.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
            folder, paths = given, [path for path in found if output_dir.resolve() not in path.resolve().parents]
        if not paths:
            raise ValueError(f"There are no images in {given}.")
        for path in paths:
            name = path.relative_to(folder)
            suffix = name.suffix if name.suffix.lower() in (".jpg", ".jpeg", ".png") else f"{name.suffix}.png"
            unique, number = name.with_suffix(suffix).as_posix(), 2
            while unique in images:  # another folder has an image of that name
                unique, number = name.with_name(f"{name.stem}_{number}{suffix}").as_posix(), number + 1
            images[unique] = path
    return images


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, Image.DecompressionBombError):
        return False
