"""Where a run computes: Accelerate's processes and devices, checked against what was asked for, and threads."""

import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, LoggerType, ProjectConfiguration

from modeling_detr.training.metric_logger import TRACKERS
from modeling_detr.training.recipe import Recipe, nearest_name


def build_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's side of a run: device, processes, precision, trackers.

    Raises:
        ValueError: Accelerate cannot start so, or is set up for something else than the recipe says or a run can do.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.trackers) or None,
            project_config=ProjectConfiguration(recipe.output_dir, logging_dir=str(recipe.run_dir / TRACKERS)),
        )
    except ValueError as error:  # such as fp16 on a CPU
        raise ValueError(f"Accelerate cannot start with mixed_precision {recipe.mixed_precision}: {error}") from error
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ValueError(
            f"Accelerate is set up for {accelerator.distributed_type.value}; training works on one process or with "
            f"one copy of the model a process. Choose such a configuration, e.g. configs/accelerate/several_gpus.yaml."
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but each believes to be one of {accelerator.num_processes}: there are "
            f"fewer accelerators here than the configuration says. Choose another, or on CPUs start with "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {started}."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate is set up for {accelerator.gradient_accumulation_steps} accumulation steps; say it in the "
            f"recipe instead: --gradient_accumulation_steps {accelerator.gradient_accumulation_steps}."
        )
    return accelerator


def check_trackers(names: Sequence[str]) -> None:
    """Refuses names that are none of Accelerate's trackers.

    Raises:
        ValueError: There is no tracker of that name.
    """
    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    for name in names:
        if name not in known:
            raise ValueError(f"trackers: there is no tracker '{name}'{nearest_name(name, known)}")


def leave_cores_to_loaders(accelerator: Accelerator, num_workers: int) -> None:
    """On a CPU, computes with as many threads as there are cores left by loaders and by other processes.

    Threads that share a core with a loader wait for each other all the time: a small model is then several times
    slower. `OMP_NUM_THREADS` has the last word.
    """
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // local_processes - num_workers)))
