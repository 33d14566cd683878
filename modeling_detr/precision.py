"""The precision that a model predicts in: float32, 16 bits, or 16 bits where the device is fast in them.

With 16 bits, products and convolutions run under autocast; the weights stay as they are, and the heads, boxes and
post-processing compute in float32.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal, ParamSpec, TypeVar, get_args

import torch


_logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]

_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


def compute_dtype(choice: ComputeDtype, device: torch.device) -> torch.dtype:
    """The precision to compute in; what `auto` stands for is logged once.

    Args:
        choice: A precision, or `auto`: bfloat16 if the device computes in it, else float32.
        device: Where the model is.

    Raises:
        ValueError: There is no such choice.
    """
    if choice not in get_args(ComputeDtype):
        raise ValueError(f"dtype: got '{choice}', expected one of {', '.join(get_args(ComputeDtype))}.")
    if choice != "auto":
        dtype: torch.dtype = getattr(torch, choice)
        return dtype
    return fastest_dtype(device.type)[0]


def described_dtype(choice: ComputeDtype, device: torch.device) -> str:
    """The precision in words, and why `auto` stands for it: "bfloat16 (this CPU has avx512_bf16)"."""
    name = str(compute_dtype(choice, device)).removeprefix("torch.")
    return f"{name} ({fastest_dtype(device.type)[1]})" if choice == "auto" else name


def in_precision(
    function: Callable[Parameters, Result], choice: ComputeDtype, device: torch.device
) -> Callable[Parameters, Result]:
    """`function` under autocast in a precision; in float32 it is called as it is.

    Args:
        function: A model, or a function that computes with one.
        choice: See `compute_dtype`.
        device: Where the model is.

    Raises:
        ValueError: There is no such choice.
    """
    dtype = compute_dtype(choice, device)
    if dtype == torch.float32:
        return function

    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with torch.autocast(device.type, dtype):
            return function(*args, **kwargs)

    return call


@cache
def fastest_dtype(device_type: str) -> tuple[torch.dtype, str]:
    """bfloat16 if a type of device (`cpu`, `cuda`, …) computes in it natively, else float32; and why."""
    dtype, reason = torch.float32, f"bfloat16 is not known to be faster on {device_type}"
    if device_type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if has_it else torch.float32
        reason = "this GPU computes in it" if has_it else "this GPU has no bfloat16"
    elif device_type == "cpu":
        feature = _cpu_feature() if torch.backends.mkldnn.is_available() else None
        dtype = torch.float32 if feature is None else torch.bfloat16
        reason = "this CPU has no bfloat16" if feature is None else f"this CPU has {feature}"
    _logger.info("dtype auto: %s, because %s", dtype, reason)
    return dtype, reason


def emulates_bfloat16(device_type: str) -> str:
    """Why bfloat16 is many times slower than float32 on a type of device; empty if it is not."""
    dtype, reason = fastest_dtype(device_type)
    return reason if device_type in ("cpu", "cuda") and dtype == torch.float32 else ""


def _cpu_feature() -> str | None:
    """The CPU's instructions for bfloat16, or None."""
    if not hasattr(torch.cpu, "get_capabilities"):  # of older versions
        return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else None
    capabilities = torch.cpu.get_capabilities()
    return next((name for name in _CPU_FEATURES if capabilities.get(name)), None)
