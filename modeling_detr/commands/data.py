"""Looks at a dataset before it is trained on.

    detr data check my_dataset                         counts, and everything that is wrong with it
    detr data check my_dataset --fix clean             writes a copy without what is wrong
    detr data convert my_dataset coco_copy --to coco   in another format, split by split
    detr data show my_dataset --output_dir gallery     annotated images, and what training makes of them

`check` decodes every image and names file, line or id of each finding and what will be done about it: an error stops
training or spoils it silently, a warning is handled. The exit code is 1 if there is an error.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

from tqdm import tqdm

from modeling_detr.data.check import check_dataset
from modeling_detr.data.convert import Conversion, convert_dataset
from modeling_detr.data.hf_datasets import BoxFormat
from modeling_detr.data.open import FORMATS, open_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="check|convert|show")
    _add_check(commands)
    _add_convert(commands)
    _add_show(commands)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, help="format of the dataset (default: found out)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, if outside the dataset's")
    parser.add_argument("--drop_difficult", action="store_true", help="without what Pascal VOC marks as difficult")
    parser.add_argument(
        "--box_format", choices=get_args(BoxFormat), help="convention of boxes in the format hf (default: found out)"
    )


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("images", "drop_difficult", "box_format")}


# Check


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("check", help="counts and findings; exit code 1 if there are errors")
    parser.add_argument("path", help="folder or file of the dataset")
    _add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--all", action="store_true", help="show every finding, not the first ten of a kind")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a clean copy there, in the same format")
    parser.add_argument("--no_images", action="store_true", help="do not decode the images")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    if arguments.fix is not None and arguments.fix.exists():
        raise FileExistsError(f"{arguments.fix} exists; give a folder that does not, or remove it.")
    with tqdm(desc="check", unit=" images", disable=None, leave=False) as bar:
        report = check_dataset(
            arguments.path,
            arguments.format,
            images=not arguments.no_images,
            progress=lambda count: _tick(bar, count),
            reading=_reading(arguments),
        )
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        print(report.to_text(sys.maxsize if arguments.all else 10))
    if arguments.fix is not None:
        if arguments.no_images:
            raise ValueError("--fix wants to know which images can be read; leave --no_images out.")
        clean = report.clean_index()
        if not len(clean):
            raise ValueError(f"{arguments.path}: nothing of it can be read, so there is nothing to write.")
        to = report.format if report.format in ("coco", "yolo", "voc") else "coco"
        with _terminating():
            written = convert_dataset(clean, arguments.fix, to, link=True)  # type: ignore[arg-type]
        once = len(report.index.select(report.good_images).annotations) - len(clean.annotations)
        if once:
            print(f"note      {once} exact duplicates of boxes are written once.", file=sys.stderr)
        print(_summary(written, arguments.fix, to), file=sys.stderr if arguments.json else sys.stdout)
    return int(report.errors > 0)


def _tick(bar: "tqdm[NoReturn]", count: int) -> None:
    bar.update(count)


# Convert


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("convert", help="write a dataset in another format")
    parser.add_argument("source", help="folder or file of the dataset")
    parser.add_argument("target", type=Path, help="the new folder, which must not exist")
    parser.add_argument("--to", required=True, choices=["coco", "yolo", "voc"], help="the format to write")
    _add_reading(parser)
    parser.add_argument("--link", action="store_true", help="hard links to the images instead of copies")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.target.exists():
        raise FileExistsError(f"{arguments.target} exists; give a folder that does not, or remove it.")
    try:
        index = open_dataset(arguments.source, format=arguments.format, **_reading(arguments))
    except ValueError as error:
        raise ValueError(f"{error} (`detr data check` lists everything, `--fix` writes what is sound.)") from error
    for note in index.notes:
        print(f"note      {note}")
    with _terminating():
        written = convert_dataset(index, arguments.target, arguments.to, link=arguments.link)
    print(_summary(written, arguments.target, arguments.to))
    return 0


def _summary(written: Conversion, target: Path, to: str) -> str:
    lines = [f"note      {note}" for note in written.notes]
    return "\n".join(
        [
            *lines,
            f"{target} ({to}): {written.images:,} images, {written.boxes:,} boxes; read back, they differ by at most "
            f"{written.largest_difference:.2g} pixels.",
        ]
    )


class _terminating:
    """While it lasts, SIGTERM ends the process as an exception does, so that nothing half-written stays."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._stop)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _stop(self, number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)


# Show


def _add_show(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("show", help="a gallery: images with their boxes, and after the training transforms")
    parser.add_argument("path", help="folder or file of the dataset")
    parser.add_argument("--output_dir", type=Path, required=True, help="where gallery.html and gallery.png go")
    _add_reading(parser)
    parser.add_argument("--split", help="images of this split only")
    parser.add_argument("--num_images", type=int, default=12, help="drawn at random (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="of the transform, each image (default: %(default)s)")
    parser.add_argument("--transform", default="original", help="original, light, none, or a dotted name")
    parser.add_argument("--shortest_edge", type=int, default=480, help="largest after it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of images and draws (default: %(default)s)")
    parser.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    import numpy as np
    from torch import Tensor

    from modeling_detr.data import DetectionDataset, SampleKey, train_transform
    from modeling_detr.visualization import draw_prediction, gallery_html, tile

    if arguments.num_images < 1 or arguments.draws < 0:
        raise ValueError("--num_images wants at least 1, and --draws at least 0.")
    index = open_dataset(arguments.path, arguments.split, arguments.format, **_reading(arguments))
    if not len(index):
        raise ValueError(f"{index.name} has no images to show.")
    options = {} if "." in arguments.transform else {"scales": arguments.shortest_edge}
    plain = DetectionDataset(index)
    augmented = DetectionDataset(index, train_transform(arguments.transform, **options), arguments.seed)
    order = np.random.default_rng(arguments.seed).permutation(len(index))[: arguments.num_images]
    pictures, titles = [], []
    for position in np.sort(order).tolist():
        name = Path(index.images[position].path).name
        samples = [("as annotated", plain[position])]
        samples += [(f"draw {draw + 1}", augmented[SampleKey(position, draw)]) for draw in range(arguments.draws)]
        for title, sample in samples:
            target = sample["target"]
            boxes = target["boxes"].as_subclass(Tensor)
            truth = {"boxes": boxes, "labels": target["class_labels"]}
            picture = draw_prediction(sample["image"], truth, index.id2label, shortest_side=240)
            picture.thumbnail((480, 480))
            pictures.append(picture)
            titles.append(f"{name}, {title}: {len(boxes)} boxes")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    page = arguments.output_dir / "gallery.html"
    heading = f"{index.name}: {len(index):,} images, {len(index.annotations):,} boxes"
    page.write_text(gallery_html(heading, pictures, titles, columns=1 + arguments.draws), encoding="utf-8")
    sheet = arguments.output_dir / "gallery.png"
    tile(pictures, 1 + arguments.draws, titles).save(sheet)
    print(f"{page} and {sheet}: {len(order)} images, each with {arguments.draws} draws of '{arguments.transform}'.")
    return 0
