"""The most memory that a piece of work holds at once."""

import ctypes
import gc
from pathlib import Path

import torch

from modeling_detr.benchmarks.speed.timing import Work


_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # sets the peak of resident memory back to what is resident now


def can_measure(device: torch.device) -> bool:
    """Whether peaks can be measured: on GPUs of CUDA, and on the CPU under Linux."""
    if device.type == "cuda":
        return True
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return device.type == "cpu"


def peak_memory(work: Work, device: torch.device) -> int:
    """Does the work, and returns the bytes that it held at its peak beyond those that were in use before.

    On the CPU, this is the resident memory of the process, whoever allocates it: PyTorch, its libraries, NumPy or
    Python. Memory that the allocator keeps from work before is returned to the system first, so that it is counted
    when it is used again. The resolution is a fraction of a megabyte. On a GPU, it is what PyTorch's allocator hands
    out.

    Do the work once before: what libraries load or keep at the first call counts, too.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    """A number of bytes in the status of this process."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))
