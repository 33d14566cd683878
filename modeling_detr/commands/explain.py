"""Show which parts of an image the detections of a model depend on.

    detr explain runs/demo photo.jpg --points 320,240

For each detection, the command draws its attention over the image, fused over layers and heads by several methods, and
measures how faithful each map is: the score while the marked pixels are deleted, or inserted into a blurred image,
compared with random maps. For each point, it draws where the encoder looks from there. `explanation.html` shows
all of it on one page, where any point can be clicked; `explanation.json` has all scores, and `arrays.npz` all maps,
also by layer and head. docs/explain.md has the methods and what they do not prove.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from modeling_detr.atomic_output import replace_text, synced_file
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.device import add_device, check_device
from modeling_detr.commands.results import RUNS, add_output_dir, link_to, new_results_folder
from modeling_detr.conversion.sources import load_model
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import FileContentError
from modeling_detr.explanation import (
    METHODS,
    Explanation,
    Faithfulness,
    explain,
    explanation_page,
    map_points,
    measure_faithfulness,
    num_runs,
)
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_folder
from modeling_detr.predicting.inputs import find_inputs
from modeling_detr.prediction import OBJECT_THRESHOLD
from modeling_detr.provenance import command_line, provenance
from modeling_detr.visualization import draw_heat, draw_prediction, tile


EXPLANATION, ARRAYS, DETECTIONS, PAGE = "explanation.json", "arrays.npz", "detections.jpg", "explanation.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse_arguments(argv)
    output_dir: Path = arguments.output_dir or new_results_folder("explain")
    (image,) = find_inputs([str(arguments.image)], [arguments.output_dir or RUNS])
    path = Path(image.source)
    check_folder(output_dir, files=[EXPLANATION, ARRAYS, DETECTIONS, PAGE])
    model, processor = load_model(arguments.model)
    model.to(arguments.device, torch.float32)  # some are saved with 16 bits
    names = dict(enumerate(model.config.class_names))
    pixels = _read(path)

    explanation = explain(
        model,
        processor,
        pixels,
        arguments.threshold,
        arguments.methods,
        arguments.points,
        arguments.max_detections,
    )
    faithfulness = None
    if arguments.steps:
        runs = num_runs(explanation, arguments.steps, arguments.random_maps)
        with tqdm(total=runs, desc="curves", unit=" runs", leave=False, disable=None) as bar:
            faithfulness = measure_faithfulness(
                model,
                processor,
                pixels,
                explanation,
                arguments.steps,
                arguments.random_maps,
                arguments.seed,
                bar.update,
            )
    entries = _detections(explanation, faithfulness, names)
    # chosen again, because another process may have written to it in the meantime
    output_dir = arguments.output_dir or new_results_folder("explain")
    _draw(pixels, explanation, entries, names, output_dir)
    points = [
        {"x": x, "y": y, "picture": f"point_{number}.jpg"} for number, (x, y) in enumerate(arguments.points, start=1)
    ]
    _save_arrays(explanation, faithfulness, output_dir / ARRAYS)
    height, width = explanation.image_size
    content = {"image": str(path), "height": height, "width": width, "detections": entries, "points": points}
    replace_text(output_dir / EXPLANATION, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    every_point = map_points(model, processor, pixels) if model.config.encoder_layers else None
    command = command_line("detr explain", sys.argv[1:] if argv is None else argv)
    facts = [("model", arguments.model), ("image", f"{path}, {width}x{height} pixels"), *provenance(command)]
    page = explanation_page(pixels, explanation, names, faithfulness, every_point, facts)
    replace_text(output_dir / PAGE, page.to_html())
    _print_summary(entries, arguments.threshold)
    print(fitted(f"{PAGE}, {EXPLANATION}, {ARRAYS} and the pictures are in {output_dir}"))
    print(link_to(output_dir / PAGE))
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr explain", __doc__)
    parser.add_argument("model", help="a model folder, the folder of a run, a Hub id or an original checkpoint")
    parser.add_argument("image", type=Path, help="the image")
    add_output_dir(parser, "explain", "the pictures, explanation.json and arrays.npz")
    parser.add_argument(
        "--threshold", type=float, default=OBJECT_THRESHOLD, help="lowest score to explain (default: %(default)s)"
    )
    parser.add_argument(
        "--max_detections", type=int, default=10, help="explain the highest scores only (default: %(default)s)"
    )
    parser.add_argument(
        "--points", nargs="+", type=_point, default=[], metavar="X,Y", help="points in pixels, for the encoder"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: %(default)s"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="steps of the deletion and insertion curves; the model runs twice per step and map. 0: no curves "
        "(default: %(default)s)",
    )
    parser.add_argument("--random_maps", type=int, default=4, help="maps to compare with (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random maps (default: %(default)s)")
    add_device(parser)
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold: got {arguments.threshold:g}, expected a score from 0 to 1.")
    for name, least in (("max_detections", 1), ("steps", 0), ("random_maps", 0)):
        check_at_least(name, getattr(arguments, name), least)
    if arguments.image.is_dir():
        raise ValueError(f"{arguments.image}: a folder; expected one image.")
    check_device(arguments.device)
    return arguments


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got '{text}', expected X,Y in pixels, such as 320,240") from error
    return x, y


def _read(path: Path) -> Tensor:
    """The pixels (3, H, W) of the image.

    Raises:
        FileContentError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.format == "EPS":  # Pillow would run Ghostscript on it
                raise ValueError("an EPS program")
            return to_rgb(image)
    except Exception as error:  # Pillow raises almost anything for a hostile image
        raise FileContentError(path, f"cannot be read ({error})", "expected an image that Pillow can open") from error


def _detections(
    explanation: Explanation, faithfulness: Faithfulness | None, names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The detections as plain values."""
    entries: list[dict[str, Any]] = []
    for index, label in enumerate(explanation.labels.tolist()):
        entry = {
            "query": int(explanation.queries[index]),
            "label": label,
            "name": names[label],
            "score": float(explanation.scores[index]),
            "box_xyxy": explanation.boxes[index].tolist(),
            "picture": f"detection_{index + 1}.jpg",
        }
        if faithfulness is not None:
            entry["areas"] = {
                name: {kind: float(area[index]) for kind, area in curves.areas()._asdict().items()}
                for name, curves in faithfulness.methods.items()
            }
            if len(faithfulness.random.deletion):
                entry["areas"]["random"] = {
                    kind: float(area[:, index].mean()) for kind, area in faithfulness.random.areas()._asdict().items()
                }
        entries.append(entry)
    return entries


def _draw(
    pixels: Tensor,
    explanation: Explanation,
    entries: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    output_dir: Path,
) -> None:
    """Draws all detections, the maps of each one, and those of each point."""
    found = {"scores": explanation.scores, "labels": explanation.labels, "boxes": explanation.boxes}
    pictures = {DETECTIONS: draw_prediction(pixels, found, names)}
    for index, entry in enumerate(entries):
        own = {name: values[index : index + 1] for name, values in found.items()}
        maps = {method: explanation.on_image(map_[index]) for method, map_ in explanation.maps.items()}
        drawn = [draw_heat(pixels, map_, own, names) for map_ in maps.values()]
        if drawn:
            pictures[entry["picture"]] = tile(drawn, len(drawn), [_title(method, entry) for method in maps])
    for number, point in enumerate(explanation.points.tolist(), start=1):
        layers = explanation.on_image(explanation.point_attention[number - 1].mean(1))
        drawn = [draw_heat(pixels, layer, points=[(point[0], point[1])]) for layer in layers]
        titles = [f"encoder layer {layer} of {len(layers)}" for layer in range(1, len(layers) + 1)]
        pictures[f"point_{number}.jpg"] = tile(drawn, min(3, len(drawn)), titles)
    for file, picture in pictures.items():
        with synced_file(output_dir / file) as place:
            picture.save(place, quality=90)


def _title(method: str, entry: Mapping[str, Any]) -> str:
    areas = entry.get("areas", {})
    if method not in areas:
        return method
    return f"{method}: deletion {areas[method]['deletion']:.2f}, insertion {areas[method]['insertion']:.2f}"


def _save_arrays(explanation: Explanation, faithfulness: Faithfulness | None, file: Path) -> None:
    arrays = {name: array.numpy() for name, array in explanation.arrays().items()}
    curves = {} if faithfulness is None else {**faithfulness.methods, "random": faithfulness.random}
    for name, pair in curves.items():
        arrays |= {f"{kind}_{name}": curve.numpy() for kind, curve in pair._asdict().items()}
    with synced_file(file) as place, place.open("wb") as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]


def _print_summary(entries: Sequence[Mapping[str, Any]], threshold: float) -> None:
    """One line per method: its areas, the mean over detections."""
    print(counted(len(entries), "detection") + f" with a score of at least {threshold:g}")
    rows = entries[0].get("areas", {}) if entries else {}
    for name in rows:
        deletion, insertion = (
            np.mean([entry["areas"][name][kind] for entry in entries]) for kind in ("deletion", "insertion")
        )
        areas = f"deletion {deletion:.3f} (less is better), insertion {insertion:.3f} (more is better)"
        print(fitted(f"  {name:<10} {areas}", indent=13))
