"""The options of commands that run a model: `--device`, and `--trust_code` for exported ones."""

import torch

from modeling_detr.commands.command_parser import CommandParser


def add_device(parser: CommandParser) -> None:
    """Add the option; check its value with `check_device`."""
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to run the model on (default: cuda if PyTorch finds a GPU, else cpu)",
    )


def add_trust_code(parser: CommandParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--trust_code",
        action="store_true",
        help="open an exported model that can run any code, of torch or aotinductor; only if you trust its source",
    )


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
