"""Detect or segment the objects in images and draw them.

    detr predict runs/demo photo.jpg holiday_photos 'archive/**/*.png'
    detr predict runs/demo --data my_dataset --split test --save json,coco
    detr predict runs/demo new_images --as_dataset to_correct --to label_studio
    detr predict runs/demo millions_of_images --output_dir out --shard 3/16

Inputs are images, folders, patterns, URLs, `-` (an image, or paths in lines, on standard input), a dataset, or videos,
streams (`rtsp://…`) and cameras (`camera:0`). For each image, the command draws a picture with labelled boxes, in the
same subfolder as the image, and adds an entry to `predictions.json` with all detections: the class (`label` and
`name`), the `score`, the box in pixels and, if the model predicts masks, the mask as COCO's RLE. With a panoptic
model, picture and entry have segments instead of boxes; `segments/….png` has the segment id of each pixel (red + 256
green + 256² blue, 0 = no segment, as in COCO).

For a video, it writes one with the boxes and the sound, and a line for each frame, `NAME.frames.jsonl`.

An interrupted run continues when its command is repeated with its `--output_dir`. Images that cannot be read are
reported and skipped; the exit code is then 1.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image

from modeling_detr.atomic_output import exits_on_sigterm
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.dataset_options import add_dataset_options, dataset_options
from modeling_detr.commands.device import add_device, add_dtype, add_trust_code, check_device, precision_of
from modeling_detr.commands.launching import Launch, add_launch_options, take_launch
from modeling_detr.commands.predict_parts import SAVED, add_parts_options, check_parts_options, predict_in_parts
from modeling_detr.commands.results import RUNS, add_output_dir, claimed_results_folder, link_to
from modeling_detr.commands.score_options import add_score_options, parse_score_options
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.findings import counted
from modeling_detr.data.formats import writable_formats
from modeling_detr.data.open import open_dataset
from modeling_detr.errors_detr import ModelError, VideoError, did_you_mean, printable
from modeling_detr.output_errors import check_folder
from modeling_detr.predicting import Detector
from modeling_detr.predicting.as_dataset import check_target, write_as_dataset
from modeling_detr.predicting.engines import DEFAULT_ENGINE
from modeling_detr.predicting.image_pass import ImagePass
from modeling_detr.predicting.inputs import InputImage, find_inputs, named
from modeling_detr.predicting.inputs.dataset import find_in_dataset
from modeling_detr.predicting.journal import Journal, files_of_model
from modeling_detr.predicting.outputs import DEFAULT_OUTPUTS, OUTPUTS, OutputRun, create_outputs
from modeling_detr.predicting.overwriting import check_results
from modeling_detr.predicting.parts import TABLE
from modeling_detr.predicting.result import counted_by_class
from modeling_detr.predicting.run import FinishedRun, PredictionRun
from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.predicting.tiles import DEFAULT_OVERLAP, Tiling
from modeling_detr.predicting.video.reading import find_videos, is_video, left_out_videos, require_av
from modeling_detr.predicting.video.run import VideoOptions, predict_videos
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.distributed import end_with_launcher


_DEFAULT_FORMAT = "coco"  # of --as_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    launch, argv = take_launch(argv)
    arguments = _parse_arguments(argv, launch)
    if launch is not None and arguments.engine == DEFAULT_ENGINE:
        code = launch.run("predict", argv)
        if code is not None:
            return code
    processes = _processes(arguments.device)
    with _results_folder(arguments.output_dir, processes) as output_dir:
        return _run(arguments, processes, output_dir)


def _run(arguments: argparse.Namespace, processes: PartialState | None, output_dir: Path) -> int:
    # Find the inputs, and check that everything can be written, before the model is loaded.
    videos = _find_videos(arguments)
    is_in_runs = output_dir.resolve().is_relative_to(RUNS.resolve())  # a run that continues finds the same images
    images, dataset = _find_images(arguments, [output_dir, RUNS] if is_in_runs else [output_dir])
    if arguments.shard is None:
        check_results(output_dir, images, videos, arguments.save)
    else:
        check_folder(output_dir / TABLE)
    if arguments.as_dataset is not None:
        check_target(arguments.as_dataset, output_dir)

    # Predict.
    detector = _load(arguments, processes)
    _check_panoptic(arguments, detector)
    rules = _score_rules(arguments, detector)
    code = 0
    with exits_on_sigterm():
        if arguments.shard is not None:
            image_pass = _image_pass(arguments, detector, rules)
            load = partial(load_image_pass, arguments)
            return predict_in_parts(arguments, image_pass, load, images, _settings(arguments), processes)
        if images:
            outputs = create_outputs(
                arguments.save,
                OutputRun(output_dir, detector.class_names, dataset),
                is_panoptic=detector.is_panoptic,
            )
            journal = Journal(output_dir)
            work = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers}
            run = PredictionRun(detector, rules, images, outputs, journal, tiling=arguments.tiling, **work)
            code = _predict_images(arguments, run, output_dir, processes)
        if videos:
            code |= _predict_videos(arguments, detector, rules, videos, output_dir, processes)
    return code


def _predict_images(
    arguments: argparse.Namespace, run: PredictionRun, output_dir: Path, processes: PartialState | None
) -> int:
    """Predicts for all images, and keeps what is done if that is interrupted; returns the exit code."""
    is_main = processes is None or processes.is_main_process
    done = run.open(_settings(arguments), processes)
    if done and is_main:
        print(f"continuing in {output_dir}: {done} of {counted(len(run.images), 'image')} done")
    try:
        run.predict(processes)
        if processes is not None:
            processes.wait_for_everyone()
        if not is_main:
            return 0
        finished = run.finish()
        notes = _write_as_dataset(arguments, run)
        run.journal.remove()
    except BaseException:
        print(f"stopped; the same command with --output_dir {output_dir} continues", file=sys.stderr)
        raise
    finally:
        run.journal.close()
    _report(finished, run, output_dir, notes)
    return int(bool(finished.unreadable))


def _predict_videos(
    arguments: argparse.Namespace,
    detector: Detector,
    rules: ScoreRules,
    videos: Sequence[str],
    output_dir: Path,
    processes: PartialState | None,
) -> int:
    """Predicts for one video after the other; returns the exit code."""
    options = VideoOptions(rules, "pictures" in arguments.save, arguments.batch_size, arguments.tiling)
    noun = "segment" if detector.is_panoptic else "object"
    code = 0
    for done in predict_videos(detector, videos, output_dir, options, processes):
        if isinstance(done, VideoError):  # costs this video only
            print(done, file=sys.stderr)
            code = 1
            continue
        where = printable(f"{done.source}: {', '.join(map(str, done.written))}")
        print(f"{counted(done.found, noun)} in {counted(done.frames, 'frame')} of {where}")
        if done.problem:
            print(printable(f"{done.source}: {done.problem}; what was done is kept"), file=sys.stderr)
            code = 1
    return code


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr predict", __doc__)
    parser.add_argument(
        "model", help="a model folder, the folder of a run, a Hub id, an original checkpoint or an exported model"
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="input",
        help="images, folders to search, patterns, URLs, - for standard input, videos, streams, or camera:0",
    )
    add_trust_code(parser)
    add_output_dir(parser, "predict", "all that is written")
    add_score_options(parser)
    _add_outputs(parser)
    add_device(parser)
    add_launch_options(parser)
    add_dtype(parser)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the model: the first image of each size takes minutes, the others less time",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=1,
        help="images of equal size to compute at once, which makes a GPU faster (default: 1)",
    )
    parser.add_argument(
        "--num_workers", type=int, default=0, help="processes that read the images (default: 0, the main process)"
    )
    group = parser.add_argument_group("images much larger than those that the model was trained on")
    group.add_argument("--tile", type=int, help="divide images into square tiles with this side, in pixels")
    group.add_argument(
        "--overlap",
        type=float,
        default=DEFAULT_OVERLAP,
        help="share of a tile that the next one sees too; objects up to this size are seen whole (default: "
        f"{DEFAULT_OVERLAP})",
    )
    group = parser.add_argument_group("images of a dataset")
    group.add_argument("--data", help="a dataset of any format, whose annotations are not needed")
    group.add_argument("--split", help="its split (default: all images)")
    add_dataset_options(group)
    add_parts_options(parser)
    return parser


def _add_outputs(parser: CommandParser) -> None:
    """The options that choose what is written."""
    parser.add_argument(
        "--save",
        metavar="KINDS",
        help=f"what to write, separated by commas (default: {','.join(DEFAULT_OUTPUTS)}): "
        + "; ".join(f"{name}, {kind.description}" for name, kind in OUTPUTS.items()),
    )
    parser.add_argument(
        "--as_dataset",
        type=Path,
        metavar="FOLDER",
        help="write the images and predictions as a dataset, to correct the labels in a tool",
    )
    parser.add_argument(
        "--to",
        choices=writable_formats(),
        help=f"its format, as of 'detr data convert' (default: {_DEFAULT_FORMAT})",
    )


def _parse_arguments(argv: Sequence[str], launch: Launch | None = None) -> argparse.Namespace:
    """The arguments; `launch` are those about processes, which are not among `argv`."""
    arguments = build_parser().parse_args(argv)
    arguments.launch = launch
    _check_combination(arguments)
    check_parts_options(arguments, argv, launch)
    parse_score_options(arguments)
    if arguments.save is None:
        arguments.save = ",".join(DEFAULT_OUTPUTS if arguments.shard is None else SAVED)
    arguments.save = _listed(arguments.save)
    if not arguments.save and arguments.as_dataset is None:
        raise ValueError(f"--save: got nothing to write; choose among {', '.join(OUTPUTS)}.")
    for name in arguments.save:
        if name not in OUTPUTS:
            raise ValueError(f"--save: got '{name}'; {did_you_mean(name, OUTPUTS)}")
    arguments.tiling = None if arguments.tile is None else Tiling(arguments.tile, arguments.overlap)
    check_at_least("batch_size", arguments.batch_size, 1)
    check_at_least("num_workers", arguments.num_workers, 0)
    check_device(arguments.device)
    return arguments


def _check_combination(arguments: argparse.Namespace) -> None:
    """Checks that there is something to predict for, and that no option is without effect."""
    model = Path(arguments.model)
    if model.suffix.lower() in Image.registered_extensions() and model.is_file():
        raise ValueError(f"{model}: is an image, expected the model first: detr predict MODEL {model}")
    if bool(arguments.inputs) == bool(arguments.data):
        got = "both inputs and --data" if arguments.data else "nothing to predict for"
        raise ValueError(f"got {got}; pass images, folders or videos, or --data DATASET.")
    of_data = {"split": arguments.split, "data_format": arguments.data_format, **dataset_options(arguments)}
    unused = [name for name, value in of_data.items() if value not in (None, False)]
    if unused and not arguments.data:
        raise ValueError(f"--{unused[0]}: is about the dataset of --data; pass --data {arguments.inputs[0]} instead.")
    if arguments.to is not None and arguments.as_dataset is None:
        raise ValueError("--to: is the format of --as_dataset; add --as_dataset FOLDER, or use --save.")
    arguments.to = arguments.to or _DEFAULT_FORMAT


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _load(arguments: argparse.Namespace, processes: PartialState | None) -> Detector:
    model, processor = load_detector(arguments.model, arguments.trust_code)
    device = torch.device(arguments.device) if processes is None else processes.device
    quiet = processes is not None and not processes.is_main_process
    dtype = precision_of(arguments.dtype, model, device, arguments.model, quiet=quiet)
    return Detector(model, processor, source=arguments.model, device=device, dtype=dtype, compiled=arguments.compile)


def load_image_pass(arguments: argparse.Namespace, device: str) -> ImagePass:
    """Loads the model in another process, as this one did.

    Args:
        arguments: The parsed arguments.
        device: The device of that process.

    Raises:
        ModelError: The model cannot be loaded.
    """
    model, processor = load_detector(arguments.model, arguments.trust_code)
    dtype = precision_of(arguments.dtype, model, torch.device(device), arguments.model, quiet=True)
    detector = Detector(
        model, processor, source=arguments.model, device=device, dtype=dtype, compiled=arguments.compile
    )
    return _image_pass(arguments, detector, _score_rules(arguments, detector))


def _image_pass(arguments: argparse.Namespace, detector: Detector, rules: ScoreRules) -> ImagePass:
    return ImagePass(detector, rules, arguments.batch_size, arguments.tiling, arguments.num_workers)


def _check_panoptic(arguments: argparse.Namespace, detector: Detector) -> None:
    """Checks that what was asked for exists for panoptic segments, before anything is predicted."""
    if not detector.is_panoptic:
        return
    if arguments.as_dataset is not None:
        problem = "predicts panoptic segments, which --as_dataset cannot write"
        raise ModelError(arguments.model, problem, "use --save json, which also writes maps of the segments")
    if arguments.tiling is not None:
        raise ModelError(
            arguments.model, "predicts panoptic segments, which cannot be merged from tiles", "drop --tile"
        )


def _score_rules(arguments: argparse.Namespace, detector: Detector) -> ScoreRules:
    return ScoreRules.of(
        arguments.model,
        detector.model.config.class_names,
        threshold=arguments.threshold,
        classes=arguments.classes,
        calibrated=arguments.calibrated,
        is_panoptic=detector.is_panoptic,
    )


def _write_as_dataset(arguments: argparse.Namespace, run: PredictionRun) -> list[str]:
    """Writes the dataset of `--as_dataset`, if it was given, and returns what to say about it."""
    if arguments.as_dataset is None:
        return []
    class_names = run.detector.model.config.class_names
    written = write_as_dataset(run.entries(), run.images, class_names, arguments.as_dataset, arguments.to)
    return [f"{arguments.as_dataset}: {counted(written.images, 'image')} as {arguments.to}", *written.notes]


def _report(finished: FinishedRun, run: PredictionRun, output_dir: Path, notes: Sequence[str]) -> None:
    """Says what was found, and where it is."""
    noun = "segment" if run.detector.is_panoptic else "object"
    listed = [str(output_dir / file) for output in run.outputs.values() for file in output.files]
    where = f", listed in {listed[0]}" if listed else ""
    found = finished.found.total()
    print(f"{counted(found, noun)} in {counted(finished.images, 'image')}{where}")
    if found:
        print(printable(counted_by_class(finished.found.elements())))
    if finished.images and found == 0 and run.rules.lowest > 0:
        print(f"no score reaches {run.rules.lowest:g}; a lower --threshold keeps more")
    for note in notes:
        print(note)
    print(link_to(output_dir))
    if finished.unreadable:
        print(f"{len(finished.unreadable)} of {len(run.images)} images could not be read.", file=sys.stderr)


def _find_videos(arguments: argparse.Namespace) -> list[str]:
    """The videos, streams and cameras to predict for.

    Raises:
        ValueError: There is no such file, or an output is asked for that videos do not have.
        VideoError: PyAV is not installed.
    """
    for note in filter(None, map(left_out_videos, arguments.inputs)):
        print(printable(note), file=sys.stderr)
    videos = [*dict.fromkeys(itertools.chain.from_iterable(map(find_videos, arguments.inputs)))]
    if videos and arguments.shard is not None:
        raise ValueError(f"{videos[0]}: is a video, which cannot be divided among shards; expected images.")
    if videos:
        require_av()
        others = [name for name in arguments.save if name not in ("pictures", "json", "jsonl")]
        if len(videos) == len(arguments.inputs) and others:
            raise ValueError(f"--save: got '{others[0]}', expected pictures or jsonl, which is what videos have.")
        if len(videos) == len(arguments.inputs) and arguments.as_dataset is not None:
            raise ValueError("--as_dataset: got only videos, expected images.")
    return videos


def _find_images(
    arguments: argparse.Namespace, ignored: Sequence[Path]
) -> tuple[list[InputImage], DetectionIndex | None]:
    """The images to predict for, and the dataset that they belong to."""
    if not arguments.data:
        return find_inputs([text for text in arguments.inputs if not is_video(text)], ignored), None
    index = open_dataset(
        arguments.data, split=arguments.split, format=arguments.data_format, **dataset_options(arguments)
    )
    return [*named(find_in_dataset(index))], index


def _processes(device: str) -> PartialState | None:
    """The processes that share the work; None: this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    end_with_launcher()
    return PartialState(cpu=device == "cpu")


@contextmanager
def _results_folder(chosen: Path | None, processes: PartialState | None) -> Iterator[Path]:
    """The folder that was chosen, or a new one, which is the same for all processes."""
    if chosen is not None:
        yield chosen
    elif processes is None:
        with claimed_results_folder("predict") as folder:
            yield folder
    else:
        with claimed_results_folder("predict") if processes.is_main_process else nullcontext() as claimed:
            folders = [Path() if claimed is None else claimed]
            broadcast_object_list(folders)
            yield folders[0]


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides the predictions and their files."""
    threshold = arguments.threshold
    return {
        "model": arguments.model,
        "model_files": files_of_model(Path(arguments.model)),
        "threshold": dict(threshold) if isinstance(threshold, dict) else threshold,
        "classes": arguments.classes,
        "calibrated": arguments.calibrated,
        "save": arguments.save,
        "dtype": arguments.dtype,
        "tile": arguments.tile,
        "overlap": arguments.overlap,
    }
