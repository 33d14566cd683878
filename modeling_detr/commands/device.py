"""The options of commands that run a model: `--device`, `--dtype`, and `--trust_code` for exported ones."""

from typing import get_args

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.errors_detr import ModelError
from modeling_detr.precision import ComputeDtype, described_dtype
from modeling_detr.runtimes.exported_detector import ExportedDetector


def add_device(parser: CommandParser) -> None:
    """Add the option; check its value with `check_device`."""
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")  # set by --cpu_processes
    parser.add_argument(
        "--device",
        default="cuda" if on_gpu else "cpu",
        help="device to run the model on (default: cuda if PyTorch finds a GPU, else cpu)",
    )


def add_trust_code(parser: CommandParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--trust_code",
        action="store_true",
        help="open an exported model that can run any code, of torch or aotinductor; only if you trust its source",
    )


def add_dtype(parser: CommandParser) -> None:
    """Add the option; its value is that of `precision_of`."""
    parser.add_argument(
        "--dtype",
        choices=get_args(ComputeDtype),
        help="precision to compute in; auto: bfloat16 where the device is fast in it, else float32 (default: float32)",
    )


def precision_of(
    dtype: ComputeDtype | None, model: nn.Module, device: torch.device, source: str, quiet: bool = False
) -> ComputeDtype:
    """The value of `--dtype` for a model; prints what was chosen, if it was given.

    Args:
        dtype: The option as it was given, or None.
        model: The model.
        device: Where it will be.
        source: What the user passed for the model.
        quiet: Print nothing.

    Raises:
        ModelError: The model is exported, so its precision is fixed.
    """
    if dtype is None:
        return "float32"
    if isinstance(model, ExportedDetector):
        raise ModelError(source, "its precision was chosen by `detr export --precision`", "drop --dtype")
    if not quiet:
        print(f"computing in {described_dtype(dtype, device)}")
    return dtype


def check_device(name: str) -> None:
    """Checks that a device can be used.

    Raises:
        ValueError: The device does not exist or cannot be used.
    """
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: unknown device '{name}'; use cpu or cuda.") from error
    try:
        torch.zeros(1, device=name).tolist()  # which "meta" cannot do either
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises an AssertionError
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(f"--device: cannot use '{name}' ({reason}); try cpu.") from error
