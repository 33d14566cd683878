"""PyTorch checkpoint files: find them, download them, and read them without running any code that they contain."""

import argparse
import contextlib
import errno
import hashlib
import os
import pathlib
import pickle
import pickletools
import re
import socket
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from modeling_detr.atomic_output import make_folder
from modeling_detr.errors_detr import ModelDownloadError, ModelError, ModelNotFoundError


# The original's released checkpoints. Their file names end with the first eight digits of their SHA-256.
RELEASED = {
    "detr-r50": "e632da11",
    "detr-r50-dc5": "f0fb7ef5",
    "detr-r101": "2c7b67e5",
    "detr-r101-dc5": "a2e86def",
    "detr-r50-panoptic": "00ce5173",
    "detr-r50-dc5-panoptic": "da08f1b1",
    "detr-r101-panoptic": "40021d53",
}
RELEASES_URL = "https://dl.fbaipublicfiles.com/detr"
_SECONDS_TO_CONNECT = 10
# Classes that a checkpoint may contain besides tensors, numbers and strings: the original's options, with paths
_ALLOWED: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]
# What `torch.load` raises for a truncated file or one that is not a checkpoint
_LOADING_ERRORS = (
    RuntimeError,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    ImportError,
)


@dataclass
class Checkpoint:
    """The content of a `.pth` file.

    Attributes:
        path: The file.
        weights: Its state dict.
        options: The command-line options of the training run; empty if the file has none.
        sha256: The SHA-256 checksum of the file, in hexadecimal.
    """

    path: Path
    weights: dict[str, Tensor]
    options: Mapping[str, object]
    sha256: str


# Finding


def is_released(source: str | Path) -> bool:
    """Whether `source` names a released model, with or without its hash and `.pth`."""
    return released_name_of(source) is not None and str(source) == Path(source).name


def released_name_of(path: str | Path) -> str | None:
    """The released model that a file is named after (`detr-r50-e632da11.pth` → `detr-r50`), or None."""
    match = re.fullmatch(r"(detr-r\d+(?:-dc5)?(?:-panoptic)?)(-[0-9a-f]{8})?(\.pth)?", Path(path).name)
    if match is None or match[1] not in RELEASED:
        return None
    if match[2] is not None and match[2] != f"-{RELEASED[match[1]]}":
        return None
    return match[1]


def find_checkpoint(source: str | Path) -> Path:
    """Returns the path of a checkpoint: `source` itself, or the released model with that name, downloaded once.

    Raises:
        ModelNotFoundError: `source` is neither a file nor the name of a released model.
        ModelDownloadError: The released model cannot be downloaded.
        ModelError: `source` is a folder, or the download has the wrong checksum.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise ModelError(source, "is a folder, expected an original DETR checkpoint such as detr-r50-….pth")
    name = released_name_of(source)
    if name is None or not is_released(source):
        raise ModelNotFoundError(
            source,
            "no such file",
            f"pass an original DETR checkpoint (.pth) or the name of a released one: {', '.join(RELEASED)}",
        )
    return _download(name)


def _download(name: str) -> Path:
    file = f"{name}-{RELEASED[name]}.pth"
    cached = Path(torch.hub.get_dir(), "checkpoints", file)
    if cached.is_file():
        return cached
    url = f"{RELEASES_URL}/{file}"
    remedy = f"download {url} on a machine with network access and pass the path of the file"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ModelDownloadError(name, "not in the cache, and HF_HUB_OFFLINE forbids downloading it", remedy)
    make_folder(cached.parent)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_CONNECT)
    try:
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=RELEASED[name])
    except OSError as error:  # a URLError keeps the cause in `reason`
        reason = getattr(error, "reason", None) or error.strerror or error
        raise ModelDownloadError(name, f"download failed ({reason})", remedy) from error
    except RuntimeError as error:  # wrong hash
        raise ModelError(
            url, f"the download does not match the released file ({error})", f"try again, or {remedy}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return cached


# Reading


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint without running any code in it. Tensors stay on disk until they are needed.

    The file contains `{"model": state dict, "args": options, …}`, as the original's training writes it, or a plain
    state dict. The prefix `module.`, which DistributedDataParallel adds to parameter names, is removed.

    Raises:
        ModelError: The file is not a checkpoint, is truncated, or contains objects that would run code.
        OSError: The file cannot be read.
    """
    _refuse_other_files(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about formats that are rejected below
            # PyTorch's old file format, which the releases use, cannot be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except _LOADING_ERRORS as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # PyTorch's error for a truncated file
            raise
        if isinstance(error, KeyError) or not _begins_like_a_checkpoint(path):  # KeyError: unknown pickle opcode
            raise _not_a_checkpoint(path) from error
        reason = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
        raise ModelError(path, f"incomplete checkpoint ({reason})", "download or copy the file again") from error
    weights, options = _state_dict(path, content)
    return Checkpoint(path, weights, options, _sha256(path))


def _refuse_other_files(path: Path) -> None:
    """Raises a ModelError if the first bytes of the file show that it is of another kind."""
    with path.open("rb") as file:
        beginning = file.read(512)
    start = beginning.lstrip()[:64].lower()
    kinds = {
        b"<": ("a web page, not a checkpoint", "download the file itself"),
        b"version https://git-lfs": (
            "a Git LFS pointer, not the file itself",
            "fetch the file with 'git lfs pull'",
        ),
        b"\x1f\x8b": ("a gzip file, not a checkpoint", "decompress it first"),
        b"{": ("a text file, not a checkpoint", ""),
    }
    if not beginning:
        raise ModelError(path, "empty file", "download it again")
    for first, (kind, remedy) in kinds.items():
        if start.startswith(first):
            raise ModelError(path, kind, remedy)
    if path.suffix == ".safetensors" or (beginning[8:10] == b'{"' and beginning[:8].endswith(b"\0\0")):
        raise ModelError(path, "a safetensors file", "pass the folder that contains it and its config.json")


def _refusal(path: Path, reason: str) -> ModelError:
    """The error for a file that PyTorch's safe loader rejected, given the loader's reason."""
    blocked = re.search(r"(?:GLOBAL|unrecognized function|unsupported class|Unsupported class)\s+(\S+)", reason)
    name = blocked[1] if blocked else _first_foreign_call(path) if "Unsupported operand" in reason else None
    if name is None:
        return _not_a_checkpoint(path)
    return ModelError(
        path,
        f"rejected because it contains '{name}', which would run code when loaded (nothing was run)",
        "if you trust its author, load it with the code that wrote it and save only the state dict: "
        "torch.save({'model': checkpoint['model']}, …)",
    )


def _begins_like_a_checkpoint(path: Path) -> bool:
    """Whether a file begins like a zip file or a pickle, the two formats of PyTorch."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _not_a_checkpoint(path: Path) -> ModelError:
    return ModelError(
        path, "not a PyTorch checkpoint, or a damaged one", "pass an original DETR checkpoint or a model folder"
    )


def _first_foreign_call(path: Path) -> str | None:
    """The name of the first function outside PyTorch that a pickle would call, or None.

    For pickle protocols that PyTorch's safe loader does not support. The pickle is disassembled, not loaded.
    """
    with contextlib.ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream = stack.enter_context(
                archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            )
        texts: list[str] = []
        with contextlib.suppress(ValueError):  # raised at a truncated end, or if it is not a pickle
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    name = ".".join(texts[-2:]) if argument is None else str(argument).replace(" ", ".")
                    if not name.startswith(("torch.", "collections.OrderedDict", "argparse.Namespace")):
                        return name
                elif isinstance(argument, str):
                    texts.append(argument)
    return None


def _state_dict(path: Path, content: object) -> tuple[dict[str, Tensor], Mapping[str, object]]:
    """The weights, without batch-norm counters, and the training options, empty if the file has none."""
    options: Mapping[str, object] = {}
    weights = content
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        weights = content["model"]
        args = content.get("args")
        options = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    if not isinstance(weights, Mapping) or not weights:
        raise ModelError(path, f"contains a {type(content).__name__}, expected a state dict, or a dict with 'model'")
    others = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(
            path,
            f"not a state dict: '{others[0]}' is of type {type(weights[others[0]]).__name__}, expected a tensor; its "
            f"keys are {', '.join(map(str, list(weights)[:8]))}",
        )
    named = {str(name): tensor for name, tensor in weights.items()}
    if all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith(".num_batches_tracked")}, options


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
