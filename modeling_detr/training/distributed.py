"""Processes and devices: the setup of Accelerate, CPU threads, and weights that FSDP shards.

Without FSDP, `gather_full`, `shard_like` and `copy_weights` change nothing. With FSDP, processes exchange shards, so
all of them must call these functions together.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, ProjectConfiguration, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from modeling_detr.data.loader_processes import end_with_parent, usable_cores
from modeling_detr.errors_detr import RAISED_ON, DetrError
from modeling_detr.training.memory import limit_memory
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import TRACKERS


_DISTRIBUTED_TYPES = (
    DistributedType.NO,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_CPU,
    DistributedType.FSDP,
)


# Accelerate


def build_accelerator(recipe: Recipe) -> Accelerator:
    """Set up Accelerate for a run: device, processes, precision, trackers; and limit the memory of this process.

    Raises:
        ValueError: Accelerate does not support the requested precision on this machine, or its configuration
            contradicts the recipe or is not supported.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.trackers) or None,
            project_config=ProjectConfiguration(recipe.output_dir, logging_dir=str(recipe.run_dir / TRACKERS)),
        )
    except ValueError as error:  # such as fp16 on a CPU
        raise ValueError(f"mixed_precision: {recipe.mixed_precision} is not supported here: {error}") from error
    _set_up_sharding(accelerator, recipe)
    if accelerator.distributed_type not in _DISTRIBUTED_TYPES:
        raise ValueError(
            f"Accelerate is configured for {accelerator.distributed_type.value}; expected one process, several "
            f"processes that each have a copy of the model, or FSDP. Use a configuration such as "
            f"configs/accelerate/several_gpus.yaml."
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but each sees a world size of {accelerator.num_processes}: this "
            f"machine has fewer accelerators than the configuration expects. Use another configuration, or start on "
            f"CPUs with ACCELERATE_USE_CPU=true torchrun --nproc_per_node {started}."
        )
    _refuse_fewer_processes(accelerator)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate is configured for {accelerator.gradient_accumulation_steps} accumulation steps; set them in "
            f"the recipe instead: --gradient_accumulation_steps {accelerator.gradient_accumulation_steps}."
        )
    if recipe.max_memory_gb is not None:
        limit_memory(accelerator.device, recipe.max_memory_gb)
    return accelerator


def end_with_launcher() -> None:
    """End this process when the torchrun that started it ends, even if that was killed, or stops it while it starts.

    Otherwise the processes of a killed launcher train on, in a folder in which the run may have been restarted. And a
    process that waits for the others, in C++, would not react to the SIGINT that torchrun forwards. Does nothing
    without torchrun (`accelerate launch` uses it for several processes).

    Raises:
        ValueError: The launcher has ended already.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        end_with_parent(signal.SIGTERM)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # the processes meet at a server of the launcher
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with contextlib.suppress(TimeoutError, socket.gaierror):
            try:
                socket.create_connection(address, timeout=10).close()
            except ConnectionRefusedError:
                raise ValueError("torchrun has ended while this process was starting.") from None


def leave_cores_to_loaders(accelerator: Accelerator, num_workers: int) -> None:
    """Limit the compute threads on a CPU to the cores that loaders and other processes do not use.

    Threads that share a core with a loader wait for each other, which makes a small model several times slower.
    `OMP_NUM_THREADS` overrides this.
    """
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores_per_process() - num_workers)))


def cores_per_process() -> int:
    """The cores of this machine that each of its training processes can use."""
    return len(usable_cores()) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true in any process; all of them must call this together."""
    votes = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(votes, "sum") > 0)


def check_same(value: object, problem: str) -> None:
    """Check that all processes have the same value; all of them must call this together.

    Raises:
        ValueError: They differ. The message is `problem`.
    """
    if len({*gather_object([value])}) > 1:
        raise ValueError(problem)


def raise_in_all(error: Exception | None) -> None:
    """Raise the error of any process in all processes; all of them must call this together.

    Args:
        error: The error of this process; None if there is none. Those of others get a note with their rank.
    """
    errors = [(rank, found) for rank, found in enumerate(gather_object([error])) if isinstance(found, Exception)]
    if error is not None:
        raise error  # it has its cause, which the copies of others lack
    for rank, found in errors:
        found.add_note(f"{RAISED_ON}{rank}")
        raise found


@contextlib.contextmanager
def in_main_process(accelerator: Accelerator) -> Iterator[bool]:
    """A block whose errors, of the user or the system, end all processes; all of them must enter it together.

    If one process alone failed, the others would wait for it, or fail with an error of the network.

    Yields:
        Whether this is the main process, which does the work of the block.
    """
    error = None
    try:
        yield accelerator.is_main_process
    except (DetrError, ValueError, OSError) as failure:
        error = failure
    raise_in_all(error)


def _refuse_fewer_processes(accelerator: Accelerator) -> None:
    """Check the launcher's command line for more processes than were started.

    Where `accelerate launch` sees at most one accelerator, it starts a single process however many were requested, and
    does not mention it in that process's environment.

    Raises:
        ValueError: This process's launcher was asked for more processes than it started.
    """
    requested: int | None = None
    with contextlib.suppress(Exception, SystemExit):  # a launcher that cannot be inspected is no reason to stop a run
        for ancestor in psutil.Process().parents():
            requested = requested_processes(ancestor.cmdline(), sys.argv[1:])
            if requested is not None:
                break
    if requested is not None and requested > accelerator.num_processes:
        raise ValueError(
            f"accelerate launch was asked for {requested} processes, by --num_processes or its configuration, but "
            f"started {accelerator.num_processes}: this machine has {torch.accelerator.device_count()} accelerators. "
            f"Use --num_processes {accelerator.num_processes}, or start on CPUs with "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {requested}."
        )


def requested_processes(command: Sequence[str], arguments: Sequence[str]) -> int | None:
    """Return how many processes, over all machines, an `accelerate launch` command was asked to start.

    Args:
        command: The command line of a process.
        arguments: The arguments of the launched script; a command with other script arguments is ignored.

    Returns:
        The value of `--num_processes` or of the configuration file; None if neither has it, or if the command is not
        an `accelerate launch` of this script.
    """
    launch_arguments = _launch_arguments(command)
    if launch_arguments is None:
        return None

    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    launch = launch_command_parser().parse_args(launch_arguments)
    if list(launch.training_script_args) != list(arguments):
        return None
    if launch.num_processes is not None:
        return int(launch.num_processes)
    if launch.config_file is not None or (Path(default_config_file).is_file() and not launch.cpu):
        return int(load_config_from_file(launch.config_file).num_processes)
    return None


def _launch_arguments(command: Sequence[str]) -> list[str] | None:
    """The arguments of a command that is `accelerate launch`, under any of its names; None for other commands."""
    for words in (command, command[2:] if "-m" in command[1:2] else command[1:]):  # the program, or what Python runs
        match [*(Path(word).name for word in words[:1]), *words[1:]]:
            case ["accelerate" | "accelerate.commands.accelerate_cli", "launch", *arguments]:
                return arguments
            case ["accelerate-launch" | "accelerate.commands.launch", *arguments]:
                return arguments
    return None


# Gradients


def keep_buffers_local(model: nn.Module) -> None:
    """Let `DistributedDataParallel` not copy the main process's buffers to the others in each forward pass.

    Frozen ones are equal, and of running statistics only the main process's count (see `Trainer.evaluate`). A forward
    pass then exchanges nothing, and a process may repeat it by itself.

    Args:
        model: The training model as prepared by Accelerate.
    """
    if isinstance(model, DistributedDataParallel):
        model.broadcast_buffers = False


class Reduction:
    """The averaging of gradients over processes, which `DistributedDataParallel` does in a step's last backward pass.

    If that pass fails in one process, the others wait for its gradients; `complete` sends zeros in place of those that
    are missing. The sum is then wrong in all processes, which have to agree to repeat the step.

    Without `DistributedDataParallel`, nothing is averaged and both methods do nothing.

    Args:
        model: The training model as prepared by Accelerate.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model if isinstance(model, DistributedDataParallel) else None
        self._before: list[tuple[int, int]] | None = None

    def begin(self) -> None:
        """Note that the last pass begins."""
        if self._model is not None:
            self._before = _gradient_versions(self._model)

    def complete(self) -> None:
        """Send zeros for all gradients that the failed pass has not sent."""
        if self._model is None:
            return
        after = _gradient_versions(self._model)
        before = self._before or after
        missing = [p for p, old, new in zip(_trained(self._model), before, after, strict=True) if old == new]
        if len(missing) == len(after):  # the pass may not have got as far as its backward pass
            self._model.reducer._rebuild_buckets()
            self._model.reducer.prepare_for_backward([])
        torch.autograd.backward(missing, [parameter.new_zeros(()).expand_as(parameter) for parameter in missing])


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _gradient_versions(model: nn.Module) -> list[tuple[int, int]]:
    """What changes when a parameter gets a gradient: where it is in memory, and how often it was written."""
    gradients = [parameter.grad for parameter in _trained(model)]
    return [(0, 0) if gradient is None else (gradient.data_ptr(), gradient._version) for gradient in gradients]


# FSDP


def _set_up_sharding(accelerator: Accelerator, recipe: Recipe) -> None:
    """Enable FSDP where it is configured, in full precision, and also on CPUs, where Accelerate ignores it.

    Half precision is left to autocast, as without FSDP: FSDP's own would compute boxes and losses in half precision.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return
    state = accelerator.state
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # both, as Accelerate does itself: it keeps copying one to the other
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version: got {state.fsdp_plugin.fsdp_version}, expected 2, as in configs/accelerate/fsdp.yaml."
        )
    if recipe.compile:
        raise ValueError("compile: not supported with FSDP; use configs/accelerate/several_gpus.yaml.")
    # PyTorch warns about in-place changes to the model's outputs; there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    state.fsdp_plugin.mixed_precision_policy = None
    state.fsdp_plugin.cpu_ram_efficient_loading = False  # each process has built the model with the same weights


def gather_full(values: Any) -> Any:
    """Return nested dicts and lists of tensors with every sharded tensor replaced by the full one."""
    if isinstance(values, DTensor):
        return values.full_tensor()
    if isinstance(values, Mapping):
        return {name: gather_full(value) for name, value in values.items()}
    if isinstance(values, list):
        return [gather_full(value) for value in values]
    return values


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor as `like` is sharded; return `value` itself if `like` is not."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights and buffers of a module that may be sharded into an unsharded one of the same kind."""
    target.load_state_dict(gather_full(source.state_dict()))
