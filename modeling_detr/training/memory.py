"""The memory of a training process: its peak, a limit, and what frees it.

limit_memory(torch.device("cuda"), 20.0)  # an allocation above 20 GiB raises an error, which splits the step
peak_gib(torch.device("cuda"))
"""

import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import torch

from modeling_detr.errors_detr import RecipeError


if sys.platform != "win32":
    import resource


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # see proc(5)
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_OWN_MAPPING = 2**20  # bytes


# Peak


def peak_gib(device: torch.device) -> float:
    """Peak memory in GiB: on a GPU that of tensors, otherwise the resident memory of this process.

    It counts from the start of the process or the last `reset_peak`. Where the system does not tell the peak (it does
    on Linux and Windows), the memory in use now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    resident = _status("VmHWM")
    if resident is None:
        memory = psutil.Process().memory_info()
        resident = getattr(memory, "peak_wset", memory.rss)
    return resident / 2**30


def reset_peak(device: torch.device) -> None:
    """Let the peak start at the memory in use now, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text(_CLEAR_PEAK)


def _status(name: str) -> int | None:
    """A value of /proc/self/status in bytes; None if the system has none."""
    if not _STATUS.exists():
        return None
    found = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


# Limit


def limit_memory(device: torch.device, max_gib: float) -> None:
    """Limit the memory of this process; an allocation above the limit then raises an error.

    On a GPU the limit holds for PyTorch's tensors and its cache, not for the CUDA context. On a CPU (Linux only) it
    holds for the private memory that the process may write: tensors, Python objects and the stacks of threads, in use
    or only reserved, but neither program files nor memory shared with other processes. Processes that it starts
    inherit this limit, see `lift_limit`.

    On a CPU, large tensors also return their memory to the system as soon as they are freed, since free memory that
    malloc keeps would count. This takes computing time.

    Args:
        device: The device of the run.
        max_gib: The limit in GiB.

    Raises:
        RecipeError: The limit is above the memory of the GPU or below what the process already has, or this kind of
            device has no limit.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        if max_gib > total:
            problem = f"got {max_gib:g}, but {torch.cuda.get_device_name(device)} has {total:.1f} GiB"
            raise RecipeError("max_memory_gb", problem, "lower or drop it")
        torch.cuda.set_per_process_memory_fraction(max_gib / total, device)
    elif device.type == "cpu" and sys.platform == "linux":
        _limit_private_memory(int(max_gib * 2**30))
    else:
        problem = f"got a device of type {device.type} under {sys.platform}, expected CUDA, or a CPU under Linux"
        raise RecipeError("max_memory_gb", problem, "limit the images of a step", {"max_pixels_per_batch": 2_000_000})


def private_gib() -> float:
    """Private memory that this process may write, in GiB, which `limit_memory` limits on a CPU under Linux."""
    return (_status("VmData") or 0) / 2**30


def _limit_private_memory(limit: int) -> None:
    used = private_gib()
    if used * 2**30 >= limit:
        problem = f"got {limit / 2**30:g}, but the process has {used:.2f} GiB before it builds the model"
        raise RecipeError("max_memory_gb", problem, "raise it")
    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "mallopt"):  # glibc
        malloc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def lift_limit() -> None:
    """Remove the limit that this process has inherited from one that called `limit_memory` on a CPU."""
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


# Release


def release_memory(device: torch.device) -> None:
    """Return memory that nothing refers to any more to the device or the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and hasattr(malloc := ctypes.CDLL(None), "malloc_trim"):
        malloc.malloc_trim(0)
