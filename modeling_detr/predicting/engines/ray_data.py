"""Predicts parts on the machines of a Ray cluster: a thin adapter on Ray Data.

A row of the data set is a part, and `map` with an actor class predicts it. Ray Data keeps the actors and their models,
starts them again when they die, and repeats what they had begun. A part is written under its own name, so that a
repetition writes the same file.
"""

import importlib.util
import logging
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modeling_detr.errors_detr import DetrError, LaunchError
from modeling_detr.predicting.engines.part_work import Actors, DonePart, PartWork, predict_part
from modeling_detr.predicting.image_pass import ImagePass
from modeling_detr.predicting.parts import Part
from modeling_detr.remote_addresses import remember_credentials, remembered_credentials


_MOST_BLOCKS = 10_000  # of which the driver keeps track
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing to others
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as future versions do; without it, Ray warns
}


def require_ray() -> None:
    """Checks that Ray is installed.

    Raises:
        LaunchError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise LaunchError("--engine ray", "needs Ray, which is not installed", "pip install 'modeling-detr[ray]'")


def predict_on_ray(work: PartWork, parts: Sequence[Part]) -> Iterator[DonePart]:
    """Predicts parts, in any order, in the actors of a cluster, which must see the images and the folder of the parts.

    Args:
        work: What is needed.
        parts: The parts.

    Raises:
        LaunchError: The cluster cannot be reached, or is too small.
        DetrError: Of an actor, for example because a part cannot be written.
    """
    if not parts:
        return
    require_ray()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    with ExitStack() as stack:
        if not ray.is_initialized():
            _connect(work.actors.address)
            stack.callback(ray.shutdown)
        resources, count = _resources(work)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.print_on_execution_start = False, False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no bars
        rows = [
            {"part": tuple(part), "images": pickle.dumps([work.images[index] for index in part.indices])}
            for part in parts
        ]
        blocks = min(len(rows), _MOST_BLOCKS)
        predictor: Any = _PartPredictor  # a class, which Ray's types do not expect
        predicted = ray.data.from_items(rows, override_num_blocks=blocks).map(
            predictor,
            fn_constructor_args=(work.load, _device(resources), work.table, Path.cwd(), remembered_credentials()),
            compute=ray.data.ActorPoolStrategy(size=min(count, blocks)),
            **resources,
        )
        for row in predicted.iter_rows():
            done = pickle.loads(row["done"])
            if isinstance(done, DetrError):
                raise done
            yield done


class _PartPredictor:
    """An actor, which keeps the model. An error for the user is a result, as Ray would wrap it in a traceback."""

    def __init__(
        self, load: Callable[[str], ImagePass], device: str, table: Path, folder: Path, credentials: str
    ) -> None:
        self.table = table
        remember_credentials(credentials)  # of a store that the images are in
        self.failure: DetrError | None = None
        try:
            try:
                os.chdir(folder)  # to which relative paths of images, the model and the results refer
            except OSError as error:
                problem = f"is not a folder on {platform.node()}, which is to read images in it"
                raise LaunchError(folder, problem, "start the command in a folder that all machines share") from error
            self.image_pass = load(device)
        except DetrError as error:
            self.failure = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.failure is not None:
            return {"done": pickle.dumps(self.failure)}
        part = Part(*map(int, row["part"]))
        try:
            return {"done": pickle.dumps(predict_part(self.image_pass, self.table, part, pickle.loads(row["images"])))}
        except DetrError as error:
            return {"done": pickle.dumps(error)}


def _connect(address: str | None) -> None:
    """Connects to a cluster, or starts one on this machine.

    Raises:
        LaunchError: There is no cluster at the address.
    """
    import ray

    option = "RAY_ADDRESS" if address is None else "--ray_address"
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        reason = str(error).strip().partition("\n")[0]
        remedy = (
            "expected HOST:PORT of a cluster that 'ray start --head' has started, or auto for that of this machine"
        )
        raise LaunchError(option, f"no cluster at '{address}' ({reason})", remedy) from error


def _resources(work: PartWork) -> tuple[dict[str, Any], int]:
    """What each actor takes, as arguments of Ray Data, and the number of actors.

    Raises:
        LaunchError: The cluster has less than what was asked for, and would wait for more without an end.
    """
    import ray

    cluster = ray.cluster_resources()
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    actors: Actors = work.actors
    on_gpus = actors.gpus is not None or (actors.processes is None and gpus > 0)
    available, option, noun = (gpus, "--gpus", "GPU") if on_gpus else (cpus, "--cpu_processes", "CPU")
    asked = actors.gpus if on_gpus else actors.processes
    try:
        count = available if asked in (None, "auto") else int(asked)
    except ValueError as error:
        raise LaunchError(option, f"got '{asked}'", "expected a number, or auto") from error
    if not 1 <= count <= available:
        problem = f"got {count}, expected 1 to {available}, which is how many {noun}s the cluster has"
        raise LaunchError(option, problem, "give a smaller number, or add machines to the cluster")
    return ({"num_gpus": 1} if on_gpus else {"num_cpus": 1}), count


def _device(resources: dict[str, Any]) -> str:
    return "cuda" if "num_gpus" in resources else "cpu"
