"""The machine that a benchmark runs on."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from modeling_detr.data.findings import counted
from modeling_detr.data.loader_processes import usable_cores


# Instructions of a CPU that decide which precisions are fast, as Linux names them
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_ARM_FLAGS = ("asimd", "sve", "sve2", "i8mm", "bf16")


def machine() -> str:
    """Processor, cores that may be used, and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([cpu_name(), counted(num_cores(), "core"), *gpus, platform.system()])


def cpu_name() -> str:
    """The model of the processor."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(usable_cores())


def share_of_cores(slot: int, jobs: int) -> list[int]:
    """The cores of one of `jobs` processes that run at once; with more processes than cores, some share one."""
    known = usable_cores()
    return known[slot::jobs] or [known[slot % len(known)]]


def gpu_names() -> list[str]:
    """The NVIDIA or AMD GPUs that this process may use, each as `CUDA_VISIBLE_DEVICES` names it.

    There are none if the environment has Accelerate use the CPU.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return []
    count = torch.cuda.device_count()
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[:count] if visible else [str(number) for number in range(count)]


def cpu_flags() -> Sequence[str]:
    """Which of the instructions that decide about fast precisions the CPU has; empty where that is not known."""
    present = {*(_cpu_info("flags") or _cpu_info("Features")).split()}
    return [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in present]


def _cpu_info(key: str) -> str:
    """The first value of a key in Linux's list of processors; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
