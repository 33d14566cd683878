"""`detr predict --shard 3/16` and `--engine ray`: the predictions of many images as a Parquet table in parts."""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.launching import Launch
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import LaunchError, ModelError, printable
from modeling_detr.predicting.engines import DEFAULT_ENGINE, ENGINES, Engine, PartWork
from modeling_detr.predicting.engines.part_work import Actors
from modeling_detr.predicting.engines.ray_data import require_ray
from modeling_detr.predicting.image_pass import ImagePass, described_failure
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import model_identity
from modeling_detr.predicting.parts import DEFAULT_IMAGES, Part, Parts, Shard


SAVED = ("parquet",)
_MOST_NAMED = 3  # parts in a message


def add_parts_options(parser: CommandParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("millions of images, whose predictions are a table in parts")
    group.add_argument(
        "--shard",
        metavar="N/COUNT",
        help="predict for the N-th of COUNT shares of the images, and write predictions.parquet/part-….parquet",
    )
    group.add_argument(
        "--engine",
        choices=[*ENGINES],
        default=DEFAULT_ENGINE,
        help=f"ray: predict for the parts in actors of a Ray cluster (default: {DEFAULT_ENGINE})",
    )
    group.add_argument(
        "--ray_address",
        metavar="HOST:PORT",
        help="the cluster (default: that of RAY_ADDRESS or of this machine, or a new one)",
    )
    group.add_argument(
        "--images_per_part", type=int, metavar="N", help=f"images in each part (default: {DEFAULT_IMAGES:,})"
    )


def check_parts_options(arguments: argparse.Namespace, argv: Sequence[str], launch: Launch | None) -> None:
    """Checks and completes the options: `shard` becomes a `Shard`, or None for a run that is not in parts.

    Args:
        arguments: The parsed arguments; `save` is None if it was not given.
        argv: The arguments as they were given.
        launch: The options about processes.

    Raises:
        ValueError: An option is wrong or would have no effect.
        LaunchError: The engine is not installed, or processes were asked for that it does not start.
    """
    uses_ray = arguments.engine == "ray"
    if arguments.ray_address is not None and not uses_ray:
        raise ValueError("--ray_address: is the address of a Ray cluster; add --engine ray.")
    if arguments.shard is None and arguments.engine == DEFAULT_ENGINE:
        if arguments.images_per_part is not None:
            raise ValueError("--images_per_part: is about a table in parts; add --shard 1/1.")
        return
    text = arguments.shard or "1/1"
    try:
        arguments.shard = Shard.of(text)
    except ValueError as error:
        raise ValueError(f"--shard: {error}.") from error
    option = f"--shard {text}" if arguments.engine == DEFAULT_ENGINE else f"--engine {arguments.engine}"
    if arguments.save not in (None, "parquet"):
        raise ValueError(f"--save: got '{arguments.save}' with {option}, which writes parquet; drop one of them.")
    if arguments.as_dataset is not None:
        raise ValueError(f"--as_dataset: cannot be combined with {option}; drop one of them.")
    if arguments.output_dir is None:
        raise ValueError(f"{option}: needs --output_dir, a folder that all shards share and find again.")
    if arguments.images_per_part is None:
        arguments.images_per_part = DEFAULT_IMAGES
    check_at_least("images_per_part", arguments.images_per_part, 1)
    if uses_ray:
        _check_ray_options(argv, launch)


def _check_ray_options(argv: Sequence[str], launch: Launch | None) -> None:
    require_ray()
    if any(text.partition("=")[0] == "--device" for text in argv):
        remedy = "choose with --gpus N or --cpu_processes N how many actors there are, each with one GPU or CPU"
        raise LaunchError("--device", "is for this process, and Ray's actors predict", remedy)
    if "RANK" in os.environ or (launch is not None and (launch.nodes != 1 or launch.main_address is not None)):
        problem = "the machines and processes are those of the Ray cluster"
        raise LaunchError(
            "--engine ray", problem, "start the command once, without torchrun, --nodes and --main_address"
        )
    if launch is not None and launch.gpus is not None and launch.cpu_processes is not None:
        raise LaunchError("--gpus", "cannot be combined with --cpu_processes", "drop one of them")


def predict_in_parts(
    arguments: argparse.Namespace,
    image_pass: ImagePass,
    load: Callable[[str], ImagePass],
    images: Sequence[InputImage],
    settings: Mapping[str, Any],
    processes: PartialState | None,
) -> int:
    """Predicts for the parts of a shard that do not exist yet; returns the exit code.

    Args:
        arguments: The options.
        image_pass: The model.
        load: Loads the model in another process.
        images: The images of all shards.
        settings: What decides the predictions.
        processes: The processes that share the shard; None: one.

    Raises:
        ModelError: The model predicts panoptic segments, which the table cannot hold.
        OutputError: The folder has parts of another run, or cannot be written.
    """
    if image_pass.detector.is_panoptic:
        problem = "predicts panoptic segments, which a Parquet table cannot hold"
        raise ModelError(arguments.model, problem, "drop --shard and --engine")
    parts = Parts(arguments.output_dir, images, arguments.images_per_part)
    identity = model_identity(arguments.model, image_pass.detector.model.config)
    kept = {name: value for name, value in settings.items() if name != "model_files"}
    parts.open({**kept, "model": identity})
    shard: Shard = arguments.shard
    own = parts.of(shard if processes is None else shard.split(processes.process_index, processes.num_processes))
    is_main = processes is None or processes.is_main_process
    done = parts.done()
    spoilt = [part for part in own if part.name in done and parts.unreadable(part) is None]
    for part in spoilt:
        print(f"{part.name}: is damaged, or has other images; its images are predicted again", file=sys.stderr)
    left = [part for part in own if part.name not in done or part in spoilt]
    if len(left) < len(own) and is_main:
        print(f"continuing in {parts.table}: {len(own) - len(left)} of {counted(len(own), 'part')} done")
    launch: Launch = arguments.launch or Launch()
    actors = Actors(arguments.ray_address, launch.gpus, launch.cpu_processes)
    work = PartWork(image_pass, load, images, parts.table.absolute(), actors)
    try:
        objects = _predict(ENGINES[arguments.engine], work, left, is_main)
    except BaseException:
        print("stopped; the same command continues with the parts that are missing", file=sys.stderr)
        raise
    if processes is not None:
        processes.wait_for_everyone()
    elif left:
        print(f"{counted(objects, 'object')} in {counted(sum(len(part.indices) for part in left), 'image')}")
    if not is_main:
        return 0
    return _report(parts, parts.of(shard), shard)


def _predict(engine: Engine, work: PartWork, left: Sequence[Part], is_main: bool) -> int:
    """Predicts for parts and shows a bar in a terminal; returns the number of objects."""
    objects = 0
    with tqdm(
        total=sum(len(part.indices) for part in left),
        desc="predict",
        unit="image",
        dynamic_ncols=True,
        disable=None if is_main else True,  # None: disabled unless the output is a terminal
    ) as bar:
        for done in engine(work, left):
            objects += done.objects
            for source, reason in done.unreadable.items():
                tqdm.write(printable(described_failure(source, reason)), file=sys.stderr)
            bar.update(len(done.part.indices))
    return objects


def _report(parts: Parts, own: Sequence[Part], shard: Shard) -> int:
    """Says what is done and what is missing; returns the exit code."""
    done = len(parts.all) - len(parts.missing())
    if not own:
        print(f"shard {shard}: nothing to do, since all images are in {counted(len(parts.all), 'part')}")
    print(f"{parts.table}: {done} of {counted(len(parts.all), 'part')} done")
    unreadable = {part.name: count for part in own if (count := parts.unreadable(part))}
    if unreadable:
        count = sum(unreadable.values())
        named = ", ".join(itertools.islice(unreadable, _MOST_NAMED))
        more = ", …" if len(unreadable) > _MOST_NAMED else ""
        print(
            f"{count} of {counted(sum(len(part.indices) for part in own), 'image')} could not be read; the column "
            f"'error' says why. To try again, remove {named}{more} and repeat the command.",
            file=sys.stderr,
        )
    return int(bool(unreadable))
