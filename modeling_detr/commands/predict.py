"""Detect objects in images, and draw them.

    detr predict runs/demo/model photo.jpg holiday_photos --output_dir predictions

writes a picture with labelled boxes for each image, in the same sub-folders, and all detections as `predictions.json`:
each with the model's index of the class (`label`), its `name`, the `score`, and the box in pixels of the image.
An image that cannot be read is reported and left out; the exit code is 1 then.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from tqdm import tqdm

from modeling_detr.commands.detector import detect, load_detector
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.visualization import draw_detections


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="a model's folder, or its name on the Hub")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="image_or_folder", help="folders with all sub-folders")
    parser.add_argument("--output_dir", type=Path, required=True, help="where pictures and predictions.json go")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that counts (default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold: got {arguments.threshold:g}; wanted a score from 0 to 1.")
    check_device(arguments.device)
    images = find_images(arguments.inputs, arguments.output_dir)
    model, processor = load_detector(arguments.model)
    model.to(arguments.device)
    names = cast(dict[int, str], model.config.id2label)

    # Every image by itself: what is seen in one does not depend on which others it is padded with.
    found: list[dict[str, Any]] = []
    for name, path in tqdm(images.items(), desc="predict", disable=None):
        try:
            pixels = to_rgb(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            tqdm.write(f"{path} is left out: {error}", file=sys.stderr)
            continue
        result = detect(model, processor, pixels, arguments.threshold)
        scores, labels, boxes = result["scores"], result["labels"], result["boxes"]
        picture = arguments.output_dir / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_detections(pixels, boxes, labels, scores, names).save(picture, quality=92)
        detections = [
            {"label": label, "name": names[label], "score": score, "box_xyxy": box}
            for label, score, box in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        ]
        height, width = pixels.shape[-2:]
        found.append({"image": str(path), "height": height, "width": width, "picture": name, "detections": detections})

    written = arguments.output_dir / "predictions.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    num_objects = sum(len(entry["detections"]) for entry in found)
    print(f"{num_objects} objects in {len(found)} images; see {written} and the pictures beside it.")
    if len(found) < len(images):
        print(f"{len(images) - len(found)} of {len(images)} images could not be read.", file=sys.stderr)
    return int(len(found) < len(images))


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
