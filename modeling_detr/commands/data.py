"""Check, convert or show a dataset before training on it.

    detr data check my_dataset                         counts, problems, a page
    detr data check my_dataset --fix clean             also a copy without them
    detr data check my_dataset --model runs/mine       also doubtful labels
    detr data convert my_dataset coco_copy --to coco   write another format
    detr data show my_dataset --recipe small_dataset   pictures, also augmented

`check` decodes the images, of large datasets a sample. Each finding names the file, the line or id, and the remedy.
Errors stop training or silently spoil it; warnings are handled automatically. The exit code is 1 if there are errors.
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from modeling_detr.analysis.suspected_labels import SuspectedLabel
from modeling_detr.analysis.suspected_report import SUSPECTED_LABELS, save_suspected, suspected_section
from modeling_detr.atomic_output import exits_on_sigterm, replace_text
from modeling_detr.commands import as_option
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.data_show import add_show, annotated_images
from modeling_detr.commands.dataset_options import add_dataset_options, dataset_options
from modeling_detr.commands.device import add_trust_code
from modeling_detr.commands.model_check import LEAST_CERTAINTY, as_findings, ask_model
from modeling_detr.commands.results import RUNS, link_to, new_results_folder
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.check import CheckReport, check_dataset
from modeling_detr.data.check_page import check_page
from modeling_detr.data.check_pixels import Pixels
from modeling_detr.data.contents import CONTENTS
from modeling_detr.data.convert import Conversion, convert_dataset
from modeling_detr.data.crowds import ONLY_CROWDS
from modeling_detr.data.findings import counted
from modeling_detr.data.findings_table import write_findings
from modeling_detr.data.formats import writable_formats
from modeling_detr.data.open import open_dataset
from modeling_detr.errors_detr import DatasetError, OutputError, OutputExistsError, did_you_mean, printable
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_file, check_folder
from modeling_detr.pages import Figure
from modeling_detr.provenance import command_line, provenance


PAGE = "data_check.html"
MOST_DECODED = 20_000  # images, without --pixels: a minute or two of photographs on a few cores
EXAMPLES = 3  # findings of each kind that are printed
_NOT_COUNTED = ("areas", "image_ids")  # in what was converted: hardly anyone misses them
PICTURES = 10  # images on the page
SUSPECTED_PICTURES = 20
# Argument of the library → option of this command, for error messages.
OPTION_NAMES = {"format": "data_format"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-") and argv[0] not in parser.subcommands:
        parser.error(f"unknown sub-command '{argv[0]}'; {did_you_mean(argv[0], parser.subcommands)}")
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    code: int = arguments.run(arguments)
    return code


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="check|convert|show")
    _add_check(commands)
    _add_convert(commands)
    add_show(commands)
    return parser


# Check


def _add_check(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = commands.add_parser("check", help="print counts and findings; exit code 1 if there are errors")
    parser.add_argument("path", help="folder or file of the dataset")
    add_dataset_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help=f"write the web page here (default: {RUNS / 'check' / PAGE}, {RUNS / 'check-2' / PAGE} and so on; with "
        "--json, none)",
    )
    parser.add_argument("--no_html", action="store_true", help="write no web page")
    parser.add_argument(
        "--all", action="store_true", help=f"list every finding, not only the first {EXAMPLES} of each kind"
    )
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a clean copy, in the same format")
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="write all findings as a table, to a .parquet file"
    )
    parser.add_argument(
        "--pixels",
        type=_pixels,
        metavar="N",
        help=f"decode at most N images, drawn at random; or all, or none (default: {MOST_DECODED:,}; with --fix or "
        "--model, all)",
    )
    parser.add_argument("--no_images", dest="pixels", action="store_const", const="none", help=argparse.SUPPRESS)
    parser.add_argument(
        "--num_workers",
        type=int,
        help="processes that decode images; 0: threads of this one (default: one per core for thousands of images)",
    )
    parser.add_argument(
        "--model",
        help="also look for wrong and missing labels with this model: a model folder, the folder of a run, a Hub id, "
        f"an original checkpoint or an exported model; all are listed in {SUSPECTED_LABELS} beside the page",
    )
    parser.add_argument(
        "--certainty",
        type=float,
        default=LEAST_CERTAINTY,
        help="lowest certainty, from 0 to 1, of a suspected label that is a finding (default: %(default)g)",
    )
    add_trust_code(parser)
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    pixels = _images_to_decode(arguments)
    if not 0 <= arguments.certainty <= 1:
        raise ValueError(f"--certainty: got {arguments.certainty:g}, expected a number from 0 to 1.")
    page = _page_file(arguments)
    detector = None if arguments.model is None else load_detector(arguments.model, arguments.trust_code)

    # Read and decode everything.
    with tqdm(desc="check", unit=" images", disable=None, leave=False) as bar:
        report = check_dataset(
            arguments.path,
            arguments.data_format,
            pixels=pixels,
            num_workers=arguments.num_workers,
            progress=lambda count: _advance(bar, count),
            reading=dataset_options(arguments),
            task="detection" if arguments.fix is None else "conversion",
        )

    # Ask the model about the labels.
    evidence, suspected = None, list[SuspectedLabel]()
    if detector is not None and len(report.good_images):
        evidence, suspected = ask_model(*detector, report.index.select(report.good_images))
        doubts = as_findings(evidence, suspected, arguments.certainty)
        report = dataclasses.replace(report, findings=(*report.findings, *doubts))

    # Print the report.
    if arguments.json:
        print(json.dumps(report.as_dict(_as_option), indent=1, ensure_ascii=False))
    else:
        print(fitted(report.to_text(sys.maxsize if arguments.all else EXAMPLES, _as_option), indent=4))
        kinds = [(finding.severity, finding.kind) for finding in report.findings]
        if not arguments.all and any(kinds.count(kind) > EXAMPLES for kind in set(kinds)):
            print("use --all to list every finding")
        if report.errors and arguments.fix is None and _can_be_fixed(report):
            print(f"a copy without the errors: detr data check {shlex.quote(arguments.path)} --fix NEW_FOLDER")

    # Write the table and the page.
    if arguments.findings is not None:
        write_findings(report.findings, arguments.findings, _as_option)
        line = f"{counted(len(report.findings), 'finding')} in {printable(arguments.findings)}"
        print(line, file=sys.stderr if arguments.json else sys.stdout)
    if page is not None:
        if arguments.html is None:  # another process may have written this page in the meantime
            page = new_results_folder("check") / PAGE
        facts = [("data", arguments.path), *provenance(command_line("detr data", arguments.argv))]
        sections = [] if evidence is None else suspected_section(evidence, suspected, SUSPECTED_PICTURES)
        replace_text(page, check_page(report, facts, _as_option, _pictures(report), sections).to_html())
        if evidence is not None:
            category_ids = {category.id for category in report.index.categories}
            saved = save_suspected(evidence, suspected, page.parent, category_ids)
            print(saved, file=sys.stderr if arguments.json else sys.stdout)
        print(link_to(page), file=sys.stderr if arguments.json else sys.stdout)

    # Write a clean copy.
    if arguments.fix is not None:
        print(_fix(report, arguments), file=sys.stderr if arguments.json else sys.stdout)
    return int(report.errors > 0)


def _pixels(text: str) -> Pixels:
    """The value of `--pixels`."""
    words: dict[str, Pixels] = {"all": "all", "none": "none"}
    words |= {"true": "all", "false": "none"}  # which the option took before it took numbers
    if text.lower() in words:
        return words[text.lower()]
    number = text.replace(",", "").replace("_", "")
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', expected a number of images, all or none")
    return int(number)


def _images_to_decode(arguments: argparse.Namespace) -> Pixels:
    """How many images to decode, after checking that the other options allow it."""
    if arguments.fix is not None:
        _check_target(arguments.fix)
    pixels: Pixels | None = arguments.pixels
    for option, needs in (("fix", "must know which images can be read"), ("model", "needs the pixels of all images")):
        if getattr(arguments, option) is not None and pixels not in (None, "all"):
            raise ValueError(f"--{option}: {needs}; drop --pixels {pixels}.")
    if arguments.num_workers is not None:
        check_at_least("num_workers", arguments.num_workers, 0)
    if arguments.findings is not None:
        if arguments.findings.suffix != ".parquet":
            raise ValueError(
                f"--findings: got {printable(arguments.findings)}, expected a name that ends in .parquet."
            )
        check_file(arguments.findings)
    if pixels is None:
        return "all" if arguments.fix is not None or arguments.model is not None else MOST_DECODED
    return pixels


def _page_file(arguments: argparse.Namespace) -> Path | None:
    """The file for the web page; None: none is requested, or the default place cannot be written."""
    if arguments.html is not None:
        check_file(arguments.html)
        if arguments.model is not None:
            check_file(arguments.html.with_name(SUSPECTED_LABELS))
        return Path(arguments.html)
    if arguments.no_html or arguments.json:
        return None
    page = new_results_folder("check") / PAGE
    try:
        check_folder(page.parent, files=[PAGE])
    except OutputError as error:
        print(f"note      no web page: {printable(str(error))}", file=sys.stderr)
        return None
    return page


def _pictures(report: CheckReport) -> list[Figure]:
    """Random usable images with their boxes."""
    import numpy as np

    order = np.random.default_rng(0).permutation(report.good_images)[:PICTURES]
    return annotated_images(report.index, sorted(order.tolist()))


def _as_option(name: str, value: object) -> str:
    return as_option(OPTION_NAMES.get(name, name), value)


def _advance(bar: "tqdm[NoReturn]", count: int) -> None:
    bar.update(count)


def _can_be_fixed(report: CheckReport) -> bool:
    """Whether a copy without the problems has something to train on."""
    return len(report.good_images) > 0 and ONLY_CROWDS not in {finding.kind for finding in report.findings}


def _fix(report: CheckReport, arguments: argparse.Namespace) -> str:
    clean = report.clean_index()
    if not _can_be_fixed(report):
        raise DatasetError(arguments.path, "no image or no object can be used, so there is nothing to write")
    to = report.format if report.format in writable_formats() else "coco"
    with exits_on_sigterm():
        written = convert_dataset(clean, arguments.fix, to, link=True)
    duplicates = len(report.index.select(report.good_images).annotations) - len(clean.annotations)
    if duplicates:
        print(f"note      {counted(duplicates, 'exact duplicate')} of other boxes removed.", file=sys.stderr)
    return _summary(written, arguments.fix, to)


# Convert


def _add_convert(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = commands.add_parser("convert", help="write a dataset in another format")
    parser.add_argument("source", help="folder or file of the dataset")
    parser.add_argument("target", type=Path, help="the new folder, which must not exist")
    parser.add_argument("--to", required=True, choices=writable_formats(), help="the format to write")
    add_dataset_options(parser)
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=[*CONTENTS],
        metavar="CONTENT",
        help=f"what not to write although the format can hold it: {', '.join(CONTENTS)}",
    )
    parser.add_argument("--link", action="store_true", help="make hard links to the images instead of copies")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    _check_target(arguments.target)
    try:
        index = open_dataset(
            arguments.source, format=arguments.data_format, task="conversion", **dataset_options(arguments)
        )
    except DatasetError as error:
        if error.settings:  # it is about an option, not about the dataset
            raise
        hint = "`detr data check` lists every finding, and --fix writes a clean copy"
        remedy = "; ".join(part for part in (error.remedy.removesuffix("."), hint) if part)
        raise type(error)(error.where, error.problem, remedy) from error
    for note in index.notes:
        print(fitted(f"note      {printable(note)}", indent=10))
    with exits_on_sigterm():
        written = convert_dataset(
            index, arguments.target, arguments.to, link=arguments.link, without=arguments.without
        )
    print(fitted(_summary(written, arguments.target, arguments.to), indent=10))
    return 0


def _check_target(target: Path) -> None:
    if os.path.lexists(target):
        raise OutputExistsError(target, "already exists", "choose a new folder, or remove it")
    check_folder(target)


def _summary(written: Conversion, target: Path, to: str) -> str:
    also = [counted(count, *CONTENTS[name]) for name, count in written.contents.items() if name not in _NOT_COUNTED]
    what = ", ".join([counted(written.images, "image"), counted(written.boxes, "box", "boxes"), *also])
    masks, overlap = "", written.smallest_overlap
    if overlap is not None:
        masks = ", masks are the same" if overlap == 1 else f", masks overlap with an IoU of at least {overlap:.3f}"
    lines = [
        *(f"note      {note}" for note in written.notes),
        f"{target} ({to}): {what}; when read back, boxes differ by at most {written.largest_difference:.2g} pixels"
        f"{masks}.",
    ]
    return "\n".join(map(printable, lines))
