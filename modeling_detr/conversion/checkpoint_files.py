"""Checkpoint files of PyTorch: finding, downloading, and reading them without running any code in them."""

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

import torch
from torch import Tensor


# The original's released checkpoints, and the first eight digits of their SHA-256, which their names end with
_RELEASED = {
    "detr-r50": "e632da11",
    "detr-r50-dc5": "f0fb7ef5",
    "detr-r101": "2c7b67e5",
    "detr-r101-dc5": "a2e86def",
    "detr-r50-panoptic": "00ce5173",
    "detr-r50-dc5-panoptic": "da08f1b1",
    "detr-r101-panoptic": "40021d53",
}
RELEASES = "https://dl.fbaipublicfiles.com/detr"
_SECONDS_TO_CONNECT = 10
# What a checkpoint may hold beside tensors, numbers and text: the original's options, and paths among them
_ALLOWED: list[Any] = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]


@dataclass
class Checkpoint:
    """What a `.pth` holds.

    Attributes:
        path: The file.
        weights: Its state dict.
        options: The options of the command line that it was trained with, if it has them.
        sha256: Of the file, in hexadecimal.
    """

    path: Path
    weights: dict[str, Tensor]
    options: Mapping[str, Any]
    sha256: str


# Finding


def is_released(source: str | Path) -> bool:
    """Whether it is the name of a released model, with or without its hash and `.pth`."""
    return released_name_of(source) is not None and str(source) == Path(source).name


def released_name_of(path: str | Path) -> str | None:
    """The name of the released model that a file is named after (`detr-r50-e632da11.pth` → `detr-r50`), if any."""
    match = re.fullmatch(r"(detr-r\d+(?:-dc5)?(?:-panoptic)?)(-[0-9a-f]{8})?(\.pth)?", Path(path).name)
    if match is None or match[1] not in _RELEASED:
        return None
    if match[2] is not None and match[2] != f"-{_RELEASED[match[1]]}":
        return None
    return match[1]


def find_checkpoint(source: str | Path) -> Path:
    """The file itself, or the released model of that name, downloaded once and kept where PyTorch keeps such files.

    Raises:
        FileNotFoundError: There is no such file, and no released model of that name.
        OSError: It cannot be downloaded.
        ValueError: What came is not what was released.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{source} is a folder; wanted a checkpoint file of the original, such as detr-r50-….pth.")
    name = released_name_of(source)
    if name is None or not is_released(source):
        raise FileNotFoundError(
            f"{source}: no such file; wanted a checkpoint of the original, or the name of a released one: "
            f"{', '.join(_RELEASED)}."
        )
    return _download(name)


def _download(name: str) -> Path:
    file = f"{name}-{_RELEASED[name]}.pth"
    kept = Path(torch.hub.get_dir(), "checkpoints", file)
    if kept.is_file():
        return kept
    url = f"{RELEASES}/{file}"
    remedy = f"Download {url} where there is a network, and give the file's path."
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise OSError(f"{name} is not here, and HF_HUB_OFFLINE forbids to download it. {remedy}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_CONNECT)
    try:
        torch.hub.download_url_to_file(url, str(kept), hash_prefix=_RELEASED[name])
    except URLError as error:
        raise OSError(f"{name} cannot be downloaded ({error.reason}). {remedy}") from error
    except OSError as error:
        raise OSError(f"{name} cannot be downloaded ({error}). {remedy}") from error
    except RuntimeError as error:  # the hash
        raise ValueError(f"{url}: what came is not the released file ({error}). Try again. {remedy}") from error
    finally:
        socket.setdefaulttimeout(patience)
    return kept


# Reading


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; nothing in it is run, and tensors stay on the disk until they are needed.

    Known forms are `{"model": state dict, "args": options, …}`, as the original's training and releases have it, and a
    state dict alone; names may begin with `module.`, as those of a model in DistributedDataParallel do.

    Raises:
        ValueError: It is no checkpoint, not whole, or holds objects that would run code; the message says which.
        OSError: The file cannot be read.
    """
    _refuse_other_files(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on forms of files that are refused below
            # the format of old versions of PyTorch, which the releases have, cannot be left on the disk
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(_why_refused(path, str(error))) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        ImportError,
    ) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which PyTorch's reader says of half a file
            raise
        reason = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
        raise ValueError(f"{path}: not a whole checkpoint ({reason}); it was cut off, so fetch it again.") from error
    weights, options = _state_dict(path, content)
    return Checkpoint(path, weights, options, _sha256(path))


def _refuse_other_files(path: Path) -> None:
    """Raises a ValueError that says what a file is, if its beginning shows that it is no checkpoint."""
    with path.open("rb") as file:
        beginning = file.read(512)
    start = beginning.lstrip()[:64].lower()
    kinds = {
        b"<": "a web page and not a checkpoint; download the file itself",
        b"version https://git-lfs": "a pointer of Git LFS and not the file itself; run 'git lfs pull'",
        b"\x1f\x8b": "compressed; unpack it first",
        b"{": "text and not a checkpoint",
    }
    if not beginning:
        raise ValueError(f"{path} is empty; fetch it again.")
    for first, what in kinds.items():
        if start.startswith(first):
            raise ValueError(f"{path} is {what}.")
    if path.suffix == ".safetensors" or (beginning[8:10] == b'{"' and beginning[:8].endswith(b"\0\0")):
        raise ValueError(f"{path} is a safetensors file; give the folder that it lies in, with its config.json.")


def _why_refused(path: Path, said: str) -> str:
    blocked = re.search(r"(?:GLOBAL|unrecognized function|unsupported class|Unsupported class)\s+(\S+)", said)
    found = blocked[1] if blocked else _foreign_name(path) if "Unsupported operand" in said else None
    if found is None:
        return f"{path}: not a whole checkpoint of PyTorch, or none at all; fetch it again from where it comes."
    return (
        f"{path}: refused: it holds '{found}', which would run code when it is read; nothing of it was run. "
        f"Checkpoints of the original hold tensors, numbers, text and options only. If you trust whoever made it, "
        f"load it there and save its state dict alone: torch.save({{'model': checkpoint['model']}}, …)."
    )


def _foreign_name(path: Path) -> str | None:
    """What a pickle of a protocol that PyTorch's safe reader does not know would call first, beside PyTorch's own
    tensors; None if there is nothing. The pickle is only looked at."""
    with contextlib.ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream = stack.enter_context(
                archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            )
        texts: list[str] = []
        with contextlib.suppress(ValueError):  # where it ends, or is no pickle
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    name = ".".join(texts[-2:]) if argument is None else str(argument).replace(" ", ".")
                    if not name.startswith(("torch.", "collections.OrderedDict", "argparse.Namespace")):
                        return name
                elif isinstance(argument, str):
                    texts.append(argument)
    return None


def _state_dict(path: Path, content: Any) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The weights, and the options if they are there."""
    options: Mapping[str, Any] = {}
    weights = content
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        weights = content["model"]
        args = content.get("args")
        options = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{path}: holds a {type(content).__name__}; wanted a state dict, or a dict with 'model'.")
    others = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path}: no state dict of a model: '{others[0]}' is a {type(weights[others[0]]).__name__} and no tensor. "
            f"Its keys are {', '.join(map(str, list(content)[:8]))}."
        )
    named = {str(name): tensor for name, tensor in weights.items()}
    if all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith(".num_batches_tracked")}, options


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
