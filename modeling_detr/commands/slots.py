"""Show what each query slot of a model predicts over a dataset: the paper's figure 7.

    detr slots runs/demo shapes
    detr slots facebook/detr-resnet-50 coco --split val2017

A DETR has as many slots as object queries, each of which predicts one box in every image. `slots.png` shows the boxes
of the slots that detect most as points at their centres: green if small, red if large and horizontal, blue if large
and vertical. `slots.html` has the picture and a table of all slots: how much each detects, and how specialised it is
in place, size and class. `slots.npz` has all boxes, scores and labels, and the numbers of the table.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from modeling_detr.atomic_output import replace_text, synced_file
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.dataset_options import add_dataset_options
from modeling_detr.commands.device import add_device, check_device
from modeling_detr.commands.results import add_output_dir, link_to, new_results_folder
from modeling_detr.commands.trained_on import CHOICE_OPTION_NAMES, add_choice_options, choose_images, open_images
from modeling_detr.conversion.sources import load_model
from modeling_detr.data import read_image
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import printable
from modeling_detr.explanation import Slots, SlotStatistics, collect_slots
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_folder
from modeling_detr.pages import Fact, Figure, Figures, Page, Section, Table, Text
from modeling_detr.prediction import OBJECT_THRESHOLD
from modeling_detr.provenance import command_line, provenance
from modeling_detr.structures_detr import DetectionIndex, ImageRecord
from modeling_detr.visualization import draw_slots


OPTION_NAMES = CHOICE_OPTION_NAMES

PICTURE, ARRAYS, PAGE = "slots.png", "slots.npz", "slots.html"
_PAGE_SIDE = 1600  # longest side of the picture on the page, in pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse_arguments(argv)
    output_dir: Path = arguments.output_dir or new_results_folder("slots")
    check_folder(output_dir, files=[PICTURE, ARRAYS, PAGE])
    choice = choose_images(arguments)
    index = open_images(arguments, "detection", choice)
    chosen = _spread_out(index, arguments.max_images)
    model, processor = load_model(arguments.model)
    model.to(arguments.device, torch.float32)  # some are saved with 16 bits
    print(f"{printable(index.name)}: {len(chosen)} of {counted(len(index), 'image')}")

    # One image at a time: padding to a batch would change the predictions.
    slots = collect_slots(model, processor, _pixels(chosen))
    statistics = slots.statistics(arguments.threshold)
    order = statistics.num_detections.argsort(descending=True, stable=True).tolist()
    drawn = order[: arguments.num_slots]
    titles = [f"slot {slot}: {counted(int(statistics.num_detections[slot]), 'object')}" for slot in drawn]
    picture = draw_slots(slots.boxes, drawn, titles)

    # chosen again, because another process may have written to it in the meantime
    output_dir = arguments.output_dir or new_results_folder("slots")
    with synced_file(output_dir / PICTURE) as place:
        picture.save(place)
    with synced_file(output_dir / ARRAYS) as place, place.open("wb") as opened:
        np.savez_compressed(opened, **_arrays(slots, statistics))  # type: ignore[arg-type]
    images = f"{len(chosen)} of {index.name}" + (f", {choice.reason}" if choice.reason else "")
    command = command_line("detr slots", sys.argv[1:] if argv is None else argv)
    facts = [("model", arguments.model), ("data", arguments.dataset), ("images", images), *provenance(command)]
    names = dict(enumerate(model.config.class_names))
    figure = Figure.of(picture, _caption(len(drawn)), _PAGE_SIDE, lossless=True)
    replace_text(output_dir / PAGE, _page(statistics, names, arguments.threshold, figure, facts, order).to_html())
    print(fitted(_summary(statistics, arguments.threshold), indent=4))
    print(f"{PICTURE}, {PAGE} and {ARRAYS} are in {output_dir}")
    print(link_to(output_dir / PAGE))
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr slots", __doc__)
    parser.add_argument("model", help="a model folder, the folder of a run, a Hub id or an original checkpoint")
    parser.add_argument("dataset", help="a dataset's folder or file, a Hugging Face dataset, or 'shapes'")
    add_dataset_options(parser)
    add_choice_options(parser)
    parser.add_argument(
        "--max_images", type=int, metavar="N", help="use N images, spread over the dataset (default: all)"
    )
    parser.add_argument(
        "--num_slots", type=int, default=20, help="slots in the picture (default: %(default)s, as in the paper)"
    )
    parser.add_argument(
        "--threshold", type=float, default=OBJECT_THRESHOLD, help="lowest score of an object (default: %(default)s)"
    )
    add_output_dir(parser, "slots", "the picture, the page and the arrays")
    add_device(parser)
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold: got {arguments.threshold:g}, expected a score from 0 to 1.")
    check_at_least("num_slots", arguments.num_slots, 1)
    if arguments.max_images is not None:
        check_at_least("max_images", arguments.max_images, 1)
    check_device(arguments.device)
    return arguments


def _spread_out(index: DetectionIndex, count: int | None) -> list[ImageRecord]:
    """`count` images at equal distances; None: all."""
    count = min(count or len(index), len(index))
    return [index.images[number * len(index) // count] for number in range(count)]


def _pixels(records: Sequence[ImageRecord]) -> Iterator[torch.Tensor]:
    for record in tqdm(records, desc="slots", unit="image", leave=False, disable=None):
        yield read_image(record)


def _arrays(slots: Slots, statistics: SlotStatistics) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in (asdict(slots) | asdict(statistics)).items()}


def _summary(statistics: SlotStatistics, threshold: float) -> str:
    """What the slots do, in three lines."""
    silent = (statistics.num_detections == 0).nonzero().flatten().tolist()
    place, size = (
        float(values.mean()) for values in (statistics.place_specialisation, statistics.size_specialisation)
    )
    never = f": {', '.join(map(str, silent))}" if silent else ""
    return (
        f"  {len(silent)} of {counted(len(statistics.num_detections), 'slot')} never fire (score ≥ {threshold:g})"
        f"{never}\n"
        f"  the slot explains {place:.0%} of the variance of the boxes' centres, and {size:.0%} of that of their sizes"
    )


def _caption(count: int) -> str:
    return f"All boxes of the {counted(count, 'slot')} that detect most, at their centres"


def _page(
    statistics: SlotStatistics,
    names: Mapping[int, str],
    threshold: float,
    figure: Figure,
    facts: Sequence[Fact],
    order: Sequence[int],
) -> Page:
    """The page; the table's rows are in `order`."""
    header = (
        *("slot", "objects", "centre x", "centre y", "width", "height"),
        *("place", "size", "most frequent class", "share"),
    )
    rows = []
    for slot in order:
        label = int(statistics.top_label[slot])
        rows.append(
            (
                slot,
                int(statistics.num_detections[slot]),
                *statistics.mean_box[slot].tolist(),
                float(statistics.place_specialisation[slot]),
                float(statistics.size_specialisation[slot]),
                names[label] if label >= 0 else "-",
                float(statistics.top_label_share[slot]),
            )
        )
    silent = int((statistics.num_detections == 0).sum())
    highlights = [
        (f"{len(order)}", "slots"),
        (f"{silent}", "never fire"),
        (f"{float(statistics.place_specialisation.mean()):.0%}", "of the centres' variance is between slots"),
        (f"{float(statistics.size_specialisation.mean()):.0%}", "of the sizes' variance is between slots"),
    ]
    explanation = (
        f"Objects are boxes with a score of at least {threshold:g}. Centre, width and height are means of all boxes "
        "of the slot, whatever their scores, as shares of the image. Place and size say how specialised the slot is: "
        "1 minus the variance of its boxes' centres (or widths and heights) divided by that of all boxes. 1: always "
        "the same, 0: as different as all boxes, below 0: more different. Class and share are of the objects."
    )
    sections = [
        Section("Boxes of the slots", [Figures([figure], "plot")]),
        Section("All slots", [Text(explanation), Table(header, rows)]),
    ]
    return Page("What each query slot predicts", sections, highlights, facts)
