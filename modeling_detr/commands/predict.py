"""Detect or segment the objects in images and draw them.

    detr predict runs/demo photo.jpg holiday_photos

For each image, the command draws a picture with labelled boxes, in the same subfolder as the image, and adds an entry
to `predictions.json` with all detections: the class (`label` and `name`), the `score`, the box in pixels and, if the
model predicts masks, the mask as COCO's RLE. With a panoptic model, picture and entry have segments instead of boxes;
`segments/….png` has the segment id of each pixel (red + 256 green + 256² blue, 0 = no segment, as in COCO).
Images that cannot be read are reported and skipped; the exit code is then 1.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from modeling_detr.atomic_output import output_stem, replace_text, synced_file
from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.commands.device import add_device, add_dtype, add_trust_code, check_device, precision_of
from modeling_detr.commands.results import RUNS, add_output_dir, link_to, new_results_folder
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import ModelError, printable
from modeling_detr.evaluation.evaluators.coco import encode_masks
from modeling_detr.evaluation.evaluators.panoptic import segment_colours
from modeling_detr.evaluation.metrics import unique_names
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.input_files import require_file
from modeling_detr.output_errors import check_folder
from modeling_detr.prediction import (
    OBJECT_THRESHOLD,
    SEGMENT_THRESHOLD,
    predict_objects,
    predict_segments,
    task_of,
)
from modeling_detr.saved_thresholds import THRESHOLDS, Calibration, load_thresholds
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.structures_detr import DetectionResult, PanopticResult
from modeling_detr.visualization import draw_prediction


PREDICTIONS, SEGMENTS = "predictions.json", "segments"
BEST = "best"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse_arguments(argv)
    output_dir: Path = arguments.output_dir or new_results_folder("predict")
    images = find_images(arguments.inputs, arguments.output_dir or RUNS)
    check_folder(output_dir, files=[PREDICTIONS, *images], folders=[SEGMENTS])
    model, processor = load_detector(arguments.model, arguments.trust_code)
    model.to(arguments.device, torch.float32)  # some are saved with 16 bits
    dtype = precision_of(arguments.dtype, model, torch.device(arguments.device), arguments.model)
    names = dict(enumerate(model.config.class_names))
    is_panoptic = task_of(model) == "panoptic"
    scores = _ScoreRules.of(arguments, names, is_panoptic)

    # One image at a time: padding to a batch would change the predictions.
    entries: list[dict[str, Any]] = []
    for name, path in tqdm(images.items(), desc="predict", disable=None):
        pixels = _read(path)
        if pixels is None:
            continue
        prediction: DetectionResult | PanopticResult
        if is_panoptic:
            prediction = predict_segments(cast(DetrForSegmentation, model), processor, pixels, scores.lowest, dtype)
            content = _save_segments(prediction, names, output_dir, name)
        else:
            prediction = scores(predict_objects(model, processor, pixels, scores.lowest, dtype))
            content = {"detections": _detections(prediction, names)}
        picture = draw_prediction(pixels, prediction, names)
        with synced_file(output_dir / name) as file:
            picture.save(file, quality=92)
        height, width = pixels.shape[-2:]
        entries.append({"image": str(path), "height": height, "width": width, "picture": name, **content})

    # Write all predictions to one file, and print a summary.
    written = output_dir / PREDICTIONS
    replace_text(written, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    key, noun = ("segments", "segment") if is_panoptic else ("detections", "object")
    num_objects = sum(len(entry[key]) for entry in entries)
    print(f"{counted(num_objects, noun)} in {counted(len(entries), 'image')}, listed in {written}")
    if entries and num_objects == 0:
        print(f"no score reaches {scores.lowest:g}; a lower --threshold keeps more")
    print(link_to(output_dir))
    num_unreadable = len(images) - len(entries)
    if num_unreadable:
        print(f"{num_unreadable} of {len(images)} images could not be read.", file=sys.stderr)
    return int(num_unreadable > 0)


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr predict", __doc__)
    parser.add_argument(
        "model", help="a model folder, the folder of a run, a Hub id, an original checkpoint or an exported model"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="image_or_folder",
        help="images, or folders to search",
    )
    add_trust_code(parser)
    add_output_dir(parser, "predict", "the pictures and predictions.json")
    parser.add_argument(
        "--threshold",
        help=f"lowest score to keep (default: {OBJECT_THRESHOLD}, for panoptic segments {SEGMENT_THRESHOLD}), or "
        f"{BEST}: that of each class in the model's {THRESHOLDS}, which 'detr evaluate --save_thresholds' writes",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help=f"write calibrated scores, by the model's {THRESHOLDS}: of objects with score .8, about 80%% are hits; "
        "thresholds apply to the scores before calibration",
    )
    add_device(parser)
    add_dtype(parser)
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    if arguments.threshold not in (None, BEST):
        arguments.threshold = _score(arguments.threshold)
    check_device(arguments.device)
    return arguments


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"--threshold: got {text}, expected a score from 0 to 1, or {BEST}.")
    return value


class _ScoreRules(NamedTuple):
    """Which objects count, and which score is written for them.

    by_label: (C,) the lowest score of each class. lowest: the lowest of all. calibration: None: scores are written as
    they are.
    """

    by_label: Tensor
    lowest: float
    calibration: Calibration | None

    @classmethod
    def of(cls, arguments: argparse.Namespace, names: Mapping[int, str], is_panoptic: bool) -> "_ScoreRules":
        """The rules that the options choose.

        Raises:
            ModelError: The model has no `thresholds.json`, or predicts segments.
        """
        wants_file = arguments.threshold == BEST or arguments.calibrated
        if wants_file and is_panoptic:
            option = "--calibrated" if arguments.calibrated else f"--threshold {BEST}"
            raise ModelError(arguments.model, f"predicts panoptic segments, for which there is no {option}")
        saved = load_thresholds(arguments.model) if wants_file else None
        default = SEGMENT_THRESHOLD if is_panoptic else OBJECT_THRESHOLD
        chosen = [default if arguments.threshold is None else arguments.threshold] * len(names)
        if arguments.threshold == BEST and saved is not None:
            chosen = [saved.thresholds.get(name, default) for name in unique_names([*names.values()])]
        by_label = torch.tensor(chosen, dtype=torch.float64)
        return cls(by_label, float(by_label.min()), saved.calibration if saved and arguments.calibrated else None)

    def __call__(self, objects: DetectionResult) -> DetectionResult:
        """The objects that count, with the scores to write."""
        keep = objects["scores"].double() >= self.by_label[objects["labels"]]
        kept: DetectionResult = {
            "scores": objects["scores"][keep],
            "labels": objects["labels"][keep],
            "boxes": objects["boxes"][keep],
        }
        if "masks" in objects:
            kept["masks"] = objects["masks"][keep]
        if self.calibration is not None:
            kept["scores"] = torch.from_numpy(self.calibration(kept["scores"].double().numpy())).float()
        return kept


def _read(path: Path) -> Tensor | None:
    """The pixels (3, H, W) of an image; None, with a message on stderr, if it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.format == "EPS":  # Pillow would run Ghostscript on it
                raise ValueError("an EPS program")
            return to_rgb(image)
    except Exception as error:  # Pillow raises almost anything for a hostile image
        tqdm.write(printable(f"{path}: skipped, {error}"), file=sys.stderr)
        return None


def _detections(result: DetectionResult, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The detections as plain values."""
    rows = zip(result["labels"].tolist(), result["scores"].tolist(), result["boxes"].tolist(), strict=True)
    detections: list[dict[str, Any]] = [
        {"label": label, "name": names[label], "score": score, "box_xyxy": box} for label, score, box in rows
    ]
    if "masks" in result:
        for detection, mask in zip(detections, encode_masks(result["masks"].numpy()), strict=True):
            detection["segmentation"] = {**mask, "counts": mask["counts"].decode("ascii")}
    return detections


def _save_segments(panoptic: PanopticResult, names: Mapping[int, str], output_dir: Path, name: str) -> dict[str, Any]:
    """Writes the segmentation map, with ids starting at 1, and returns the segments as plain values."""
    file = _segments_file(name)
    ids = np.zeros(panoptic["segmentation"].shape, np.int64)
    segments = []
    for segment_id, info in enumerate(panoptic["segments_info"], start=1):
        inside = (panoptic["segmentation"] == info["id"]).numpy()
        ids[inside] = segment_id
        label, area = info["label_id"], int(inside.sum())
        segments.append({"id": segment_id, "label": label, "name": names[label], "score": info["score"], "area": area})
    with synced_file(output_dir / file) as place:
        Image.fromarray(segment_colours(ids)).save(place)
    return {"segmentation": file.as_posix(), "segments": segments}


def find_images(inputs: Iterable[Path], ignored: Path) -> dict[str, Path]:
    """Finds images and gives each a unique name for its picture: its path relative to the input folder.


    Args:
        inputs: Images, and folders to search with their subfolders.
        ignored: A folder that is not searched: that of the results, with the pictures of earlier calls.

    Raises:
        ValueError: An input does not exist, is not an image, or contains no images.
    """
    images: dict[str, Path] = {}
    taken: set[str] = set()
    for source in inputs:
        folder = source if source.is_dir() else source.parent
        for path in _images_of(source, ignored):
            name = path.relative_to(folder)
            suffix = name.suffix if name.suffix.lower() in (".jpg", ".jpeg", ".png") else f"{name.suffix}.png"
            stem = output_stem(name)
            unique, number = name.with_name(f"{stem}{suffix}"), 2
            while taken & _written_names(unique):  # of an image in another folder, or with another suffix
                unique, number = name.with_name(f"{stem}_{number}{suffix}"), number + 1
            taken |= _written_names(unique)
            images[unique.as_posix()] = path
    return images


def _written_names(name: Path) -> set[str]:
    """The paths of an image's picture and segmentation map, without suffix, as file systems without case see them."""
    return {file.with_suffix("").as_posix().casefold() for file in (name, _segments_file(name))}


def _segments_file(name: str | Path) -> Path:
    return Path(SEGMENTS, name).with_suffix(".png")


def _images_of(source: Path, ignored: Path) -> list[Path]:
    """The image `source`, or the images in the folder `source`, except those in `ignored`."""
    if not source.exists():
        raise ValueError(f"{source}: no such image or folder.")
    suffixes = set(Image.registered_extensions())
    if not source.is_dir():
        require_file(source)
        if source.suffix.lower() not in suffixes and not _is_image(source):
            raise ValueError(f"{source}: not an image; expected images or folders with images.")
        return [source]
    images = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    images = [path for path in images if ignored.resolve() not in path.resolve().parents]
    if not images:
        raise ValueError(f"{source}: no images in this folder.")
    return images


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # see `_read`
        return False
