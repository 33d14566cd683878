"""Checkpoint files: find them, download them, and read them without running any code that they contain."""

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
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeling_detr.atomic_output import make_folder
from modeling_detr.conversion.state_dicts import NotRead, find_weights
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


class _AsDict:
    """Takes the place of a subclass of dict."""

    def __new__(cls, *_: object) -> OrderedDict[str, object]:  # type: ignore[misc]  # PyTorch fills this one only
        return OrderedDict()


# What training scripts save beside the weights. Nothing of these libraries is called, not even of those that are
# installed: a crafted NumPy array would do harm.
_IGNORED = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode"),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Str", "Bytes", "Object")),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)),
    *(
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "pathlib._local.PureWindowsPath",
        "pathlib._local.WindowsPath",
    ),
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "set", "frozenset", "complex")),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    "typing.Any",
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata"),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")),
)
_DICTS = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    *(f"{package}.utilities.data.AttributeDict" for package in ("lightning_fabric", "lightning.fabric")),
    *(f"{package}.utilities.parsing.AttributeDict" for package in ("pytorch_lightning", "lightning.pytorch")),
)
# What a checkpoint may contain besides tensors, numbers and strings
_ALLOWED: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    argparse.Namespace,  # the original's options
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    *((NotRead, name) for name in _IGNORED),
    *((_AsDict, name) for name in _DICTS),
]
# How the names of what an allowed object calls begin, in every pickle protocol
_HARMLESS = (
    *("torch.", "collections.", "argparse.Namespace", "pathlib.", "copy_reg.", "copyreg.", "__builtin__.object"),
    *("builtins.object", *_IGNORED, *_DICTS),
)
_PICKLES_OF_OLD_FORMAT = 4  # a magic number, a version, the byte order, and the content
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
        notes: Where the weights were found in it and what was left out, one phrase each.
    """

    path: Path
    weights: dict[str, Tensor]
    options: Mapping[str, object]
    sha256: str
    notes: list[str] = field(default_factory=list)


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


def read_checkpoint(path: Path, averaged: bool = False) -> Checkpoint:
    """Reads a checkpoint without running any code in it. Tensors stay on disk until they are needed.

    The file, of PyTorch or safetensors, contains `{"model": state dict, "args": options, …}`, as the original's
    training writes it, or the state dict of a DETR in another form; see `conversion/state_dicts.py`.

    Args:
        path: The file.
        averaged: Whether to read the averaged weights (EMA) that the file has beside the last ones.

    Raises:
        ModelError: The file is not a checkpoint, is truncated, contains objects that would run code, or has no DETR.
        OSError: The file cannot be read.
    """
    _refuse_other_files(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pytorch(path)
    found = find_weights(path, content, averaged)
    for name, tensor in found.weights.items():
        if tensor.is_meta:
            raise ModelError(path, f"'{name}' is on the meta device, so the file does not have its values")
    return Checkpoint(path, found.weights, _options(content), _sha256(path), found.notes)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or _has_safetensors_header(file.read(10))


def _has_safetensors_header(beginning: bytes) -> bool:
    """Whether a file begins with the length of a header in JSON, which may look like text, and with the header."""
    return beginning[8:10] == b'{"' and beginning[:8].endswith(b"\0\0")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if (path.parent / "config.json").is_file():
        raise ModelError(path, "the weights of a model folder", "pass the folder, which has their config.json")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:  # ValueError: a header that is not UTF-8
        raise ModelError(path, f"a damaged safetensors file ({error})", "download or copy the file again") from error


def _read_pytorch(path: Path) -> object:
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_compressed(path):
        raise ModelError(
            path, "a compressed zip file, which torch.save does not write", "pack it without compression (zip -0)"
        )
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about formats that are rejected below
            # PyTorch's old file format, which the releases use, cannot be memory-mapped
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            return content
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except _LOADING_ERRORS as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # PyTorch's error for a truncated file
            raise
        if isinstance(error, KeyError) or not _begins_like_a_checkpoint(path):  # KeyError: unknown pickle opcode
            raise _not_a_checkpoint(path) from error
        reason = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
        raise ModelError(path, f"incomplete checkpoint ({reason})", "download or copy the file again") from error


def _is_compressed(path: Path) -> bool:
    """Whether a zip file has compressed parts. `torch.save` writes none, and they may unpack to terabytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):  # PyTorch says why it cannot read the file
        return False


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
    if _has_safetensors_header(beginning):
        return
    for first, (kind, remedy) in kinds.items():
        if start.startswith(first):
            raise ModelError(path, kind, remedy)


def _refusal(path: Path, reason: str) -> ModelError:
    """The error for a file that PyTorch's safe loader rejected, given the loader's reason."""
    blocked = re.search(r"(?:GLOBAL|unrecognized function|unsupported class|Unsupported class)\s+(\S+)", reason)
    called = _called_names(path) if blocked is None and "Unsupported operand" in reason else []
    name = blocked[1] if blocked else next((name for name in called if not name.startswith(_HARMLESS)), None)
    if name is None and any(name.startswith("torch.") for name in called):
        return ModelError(
            path,
            "saved with a pickle protocol that can only be read by running code (nothing was run)",
            "load it with the code that wrote it and save it with the default protocol: "
            "torch.save({'model': checkpoint['model']}, …)",
        )
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


def _called_names(path: Path) -> list[str]:
    """The names of the functions and classes that a pickle would call.

    For pickle protocols that PyTorch's safe loader does not support. The pickle is disassembled, not loaded.
    """
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream = stack.enter_context(
                archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            )
        texts: list[str] = []
        with contextlib.suppress(ValueError):  # raised at a truncated end, or if it is not a pickle
            for _ in range(_PICKLES_OF_OLD_FORMAT):
                for operation, argument, _ in pickletools.genops(stream):
                    if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                        names.append(".".join(texts[-2:]) if argument is None else str(argument).replace(" ", "."))
                    elif isinstance(argument, str):
                        texts.append(argument)
    return names


def _options(content: object) -> dict[str, object]:
    """The options of the training run, as the original or Lightning saves them."""
    if not isinstance(content, Mapping):
        return {}
    saved = content.get("args", content.get("hyper_parameters"))
    options = vars(saved) if isinstance(saved, argparse.Namespace) else saved if isinstance(saved, Mapping) else {}
    return {name: value for name, value in options.items() if isinstance(name, str) and not isinstance(value, NotRead)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
