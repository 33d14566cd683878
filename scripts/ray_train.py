"""Run `detr train` on a Ray cluster, with Ray Train: one worker for each process.

    python scripts/ray_train.py --gpus 4 detr_r50 --data /shared/coco --output_dir /shared/runs/r50
    python scripts/ray_train.py --cpu_processes 2 shapes --output_dir runs/shapes

All machines must see the same data and output_dir. A run that exists is resumed, as with --resume auto.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from modeling_detr.commands import run_command
from modeling_detr.errors_detr import DetrError
from modeling_detr.predicting.engines.ray_data import ENVIRONMENT
from modeling_detr.training.recipe_parsing import parse_recipe


try:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
except ModuleNotFoundError:
    raise SystemExit("ray_train.py: Ray is not installed; pip install 'modeling-detr[ray]'.") from None


def train(config: dict[str, Any]) -> None:
    """What each worker runs; Ray has set its rank and connected it with the others."""
    os.chdir(config["folder"])  # Ray has chosen another, in which relative paths have no meaning
    if config["cpu"]:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    code = run_command("train", config["arguments"])
    if code != 0:
        raise RuntimeError(f"detr train ended with exit code {code}; its last lines say why")


# Read the arguments: those of this script, and those of `detr train`, whose errors end it before Ray starts.
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)
workers = parser.add_mutually_exclusive_group(required=True)
workers.add_argument("--gpus", type=int, metavar="N", help="start a worker for each of N GPUs of the cluster")
workers.add_argument("--cpu_processes", type=int, metavar="N", help="start N workers on CPUs instead")
parser.add_argument(
    "--cpus_per_worker", type=int, default=1, metavar="N", help="cores of each worker and its loaders (default: 1)"
)
parser.add_argument("--max_failures", type=int, default=0, metavar="N", help="restarts after failures (default: 0)")
options, arguments = parser.parse_known_args()
arguments += ["--resume", "auto"]
try:
    recipe = parse_recipe(arguments)
except DetrError as error:
    raise SystemExit(f"ray_train.py: {error}") from None

# With the patch of `print`, what `detr` prints would appear twice
for name, value in {**ENVIRONMENT, "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}.items():
    os.environ.setdefault(name, value)
uses_gpus = options.gpus is not None

# Start a worker for each process; Ray restarts all of them after a failure, and they resume from the last checkpoint.
TorchTrainer(
    train,
    train_loop_config={"arguments": arguments, "cpu": not uses_gpus, "folder": str(Path.cwd())},
    scaling_config=ScalingConfig(
        num_workers=options.gpus if uses_gpus else options.cpu_processes,
        use_gpu=uses_gpus,
        resources_per_worker={"CPU": options.cpus_per_worker, **({"GPU": 1} if uses_gpus else {})},
    ),
    run_config=RunConfig(
        name=recipe.run_dir.name,
        storage_path=str((recipe.run_dir / "ray").resolve()),
        failure_config=FailureConfig(max_failures=options.max_failures),
    ),
).fit()
