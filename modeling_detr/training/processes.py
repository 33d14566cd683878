"""Where a run computes: Accelerate's processes and devices, checked against what was asked for, and threads."""

import contextlib
import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType, ProjectConfiguration

from modeling_detr.errors_detr import RecipeError, did_you_mean
from modeling_detr.training.metric_logger import TRACKERS
from modeling_detr.training.recipe import Recipe


_DISTRIBUTED_TYPES = (
    DistributedType.NO,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_CPU,
    DistributedType.FSDP,
)


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
    _set_up_sharding(accelerator, recipe)
    if accelerator.distributed_type not in _DISTRIBUTED_TYPES:
        raise ValueError(
            f"Accelerate is set up for {accelerator.distributed_type.value}; training works on one process, with one "
            f"copy of the model a process, or with FSDP. Choose such a configuration, e.g. "
            f"configs/accelerate/several_gpus.yaml."
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but each believes to be one of {accelerator.num_processes}: there are "
            f"fewer accelerators here than the configuration says. Choose another, or on CPUs start with "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {started}."
        )
    _refuse_fewer_processes(accelerator)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate is set up for {accelerator.gradient_accumulation_steps} accumulation steps; say it in the "
            f"recipe instead: --gradient_accumulation_steps {accelerator.gradient_accumulation_steps}."
        )
    return accelerator


def _refuse_fewer_processes(accelerator: Accelerator) -> None:
    """`accelerate launch` starts a single process where it finds one accelerator or none, however many it was told to
    start, and nothing in that process's environment says so. But its own command line does.

    Raises:
        ValueError: This process was started by a launcher that was asked for more than there are.
    """
    wanted: int | None = None
    with contextlib.suppress(Exception, SystemExit):  # what hinders the finding out is no reason to refuse a run
        for ancestor in psutil.Process().parents():
            wanted = processes_asked_for(ancestor.cmdline(), sys.argv[1:])
            if wanted is not None:
                break
    if wanted is not None and wanted > accelerator.num_processes:
        raise ValueError(
            f"accelerate launch was asked for {wanted} processes, by --num_processes or its configuration, but "
            f"started {accelerator.num_processes}: there are {torch.accelerator.device_count()} accelerators here. "
            f"Say --num_processes {accelerator.num_processes}, or on CPUs start with "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted}."
        )


def processes_asked_for(command: Sequence[str], arguments: Sequence[str]) -> int | None:
    """How many processes, on all machines together, an `accelerate launch` was told to start.

    Args:
        command: The command line of a process.
        arguments: What the launched script must have been given to be this one.

    Returns:
        What `--num_processes` or the configuration file says; None if neither does, or if the command is no
        `accelerate launch` of this script.
    """
    told = _after_accelerate_launch(command)
    if told is None:
        return None

    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    launch = launch_command_parser().parse_args(told)
    if list(launch.training_script_args) != list(arguments):
        return None
    if launch.num_processes is not None:
        return int(launch.num_processes)
    if launch.config_file is not None or (Path(default_config_file).is_file() and not launch.cpu):
        return int(load_config_from_file(launch.config_file).num_processes)
    return None


def _after_accelerate_launch(command: Sequence[str]) -> list[str] | None:
    """The arguments of a command that is `accelerate launch`, by any of its names; None if it is not."""
    for words in (command, command[2:] if "-m" in command[1:2] else command[1:]):  # itself, or what Python runs
        match [*(Path(word).name for word in words[:1]), *words[1:]]:
            case ["accelerate" | "accelerate.commands.accelerate_cli", "launch", *told]:
                return told
            case ["accelerate-launch" | "accelerate.commands.launch", *told]:
                return told
    return None


def _set_up_sharding(accelerator: Accelerator, recipe: Recipe) -> None:
    """FSDP, where it is asked for: on CPUs too, where Accelerate passes it over, and in full precision.

    Half precision is autocast's, as without FSDP: FSDP's own would compute boxes and losses in it.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return
    state = accelerator.state
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # both, as Accelerate itself does: the one is set from the other again and again
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            f"Accelerate is set up for FSDP of version {state.fsdp_plugin.fsdp_version}; wanted fsdp_version: 2, as "
            f"in configs/accelerate/fsdp.yaml."
        )
    if recipe.compile:
        raise ValueError("compile does not go together with FSDP; choose configs/accelerate/several_gpus.yaml.")
    # PyTorch warns who would change outputs of the model in place, which nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    state.fsdp_plugin.mixed_precision_policy = None
    state.fsdp_plugin.cpu_ram_efficient_loading = False  # each process has built the model, with the same weights


def check_trackers(names: Sequence[str]) -> None:
    """Refuses what is none of Accelerate's trackers, and those that are not installed, which it would pass over.

    Raises:
        ValueError: There is no tracker of that name, or not here.
    """
    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    available = [kind.value for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise RecipeError("trackers", f"unknown tracker '{name}'", did_you_mean(name, known))
        if name not in available:
            raise RecipeError(
                "trackers",
                f"{name} is not installed",
                f"choose one of {', '.join(available)}, or run pip install {name.replace('_', '-')}",
            )


def start_trackers(accelerator: Accelerator, recipe: Recipe, first_step: int) -> None:
    """Starts the recipe's trackers: the project is called as the folder that the run's lies in, the run as its own.

    All but TensorBoard get the recipe as configuration: there each start would add one more run to the curves.

    Raises:
        ValueError: A tracker does not start, for example because nobody is logged in.
    """
    run_dir = recipe.run_dir.resolve()
    files = run_dir / TRACKERS
    if recipe.trackers:
        files.mkdir(parents=True, exist_ok=True)  # else Weights & Biases writes elsewhere
    options = {
        "tensorboard": {"purge_step": first_step + 1},  # a viewer forgets what was logged past the checkpoint
        "wandb": {"name": run_dir.name, "dir": str(files)},
        "mlflow": {"run_name": run_dir.name},
    }
    configuration = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "resume"}
    try:
        accelerator.init_trackers(run_dir.parent.name or run_dir.name, init_kwargs=options)
        for tracker in accelerator.trackers:
            if tracker.name != "tensorboard":
                tracker.store_init_configuration(configuration)
    except OSError:
        raise
    except Exception as error:  # each has errors of its own
        said = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(
            f"trackers {', '.join(recipe.trackers)}: one does not start: {said}. Mend that, or leave it out, e.g. "
            f"--trackers tensorboard"
        ) from error


def leave_cores_to_loaders(accelerator: Accelerator, num_workers: int) -> None:
    """On a CPU, computes with as many threads as there are cores left by loaders and by other processes.

    Threads that share a core with a loader wait for each other all the time: a small model is then several times
    slower. `OMP_NUM_THREADS` has the last word.
    """
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // local_processes - num_workers)))
