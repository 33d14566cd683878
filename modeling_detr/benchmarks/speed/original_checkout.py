"""The original's code (facebookresearch/detr), imported from a checkout without a trace in this process.

Its packages have general names, such as `datasets`, which is also the name of Hugging Face's library.
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.original import original_options, unsupported_by_original
from modeling_detr.errors_detr import BenchmarkError


REPOSITORY = "https://github.com/facebookresearch/detr"
NUM_LABELS = 91  # of every model for COCO: the original has no option for it

_ROOTS = ("main", "models", "datasets", "engine", "util")
_MODULES = (
    "main",
    "engine",
    "models",
    "models.backbone",
    "util.misc",
    "datasets.coco",
    "datasets.coco_eval",
    "datasets.transforms",
)


class OriginalCheckout:
    """The original's modules.

    Args:
        path: The checkout. Its code is run.

    Attributes:
        path: The checkout.
        main: Its module `main`; likewise `engine`, `models`, `misc`, `coco`, `coco_eval` and `transforms`.

    Raises:
        BenchmarkError: The folder does not exist, is not a checkout, or cannot be imported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        remedy = f"pass the folder of `git clone {REPOSITORY}`"
        if not path.is_dir():
            raise BenchmarkError("--original", f"folder '{path}' does not exist", remedy)
        missing = [f"{root}.py" for root in _ROOTS if not _is_module(path / root)]
        if missing:
            raise BenchmarkError(
                "--original", f"'{path}' is not a checkout of the original DETR, it has no {missing[0]}", remedy
            )
        try:
            modules = _import_from(path.resolve(), _MODULES)
        except Exception as error:  # any code may raise anything
            raise BenchmarkError(
                "--original", f"'{path}' cannot be imported ({type(error).__name__}: {error})", remedy
            ) from error
        self.main, self.engine, self.models, self._backbone = modules[:4]
        self.misc, self.coco, self.coco_eval, self.transforms = modules[4:]

    @property
    def commit(self) -> str:
        """The commit of the checkout; empty if that is not known."""
        head = self.path / ".git" / "HEAD"
        if not head.is_file():
            return ""
        text = head.read_text(encoding="utf-8").strip()
        reference = self.path / ".git" / text.removeprefix("ref: ")
        return reference.read_text(encoding="utf-8").strip() if reference.is_file() else text.rpartition(" ")[2]

    def options(self, config: DetrConfig, device: str = "cpu") -> argparse.Namespace:
        """The original's options for a model, with its own training defaults."""
        words = [*original_options(config), "--dropout", str(config.dropout), "--device", device]
        options: argparse.Namespace = self.main.get_args_parser().parse_args(words)
        return options

    def build(self, config: DetrConfig, device: str = "cpu") -> tuple[nn.Module, Any]:
        """A model with random weights, and its criterion.

        Raises:
            BenchmarkError: The original does not have such a model.
        """
        unsupported = unsupported_by_original(config)
        if config.num_labels != NUM_LABELS:
            unsupported.append(f"{config.num_labels} classes (only {NUM_LABELS})")
        if unsupported:
            raise BenchmarkError("model", f"the original does not support {', '.join(unsupported)}")
        downloads = self._backbone.is_main_process
        self._backbone.is_main_process = lambda: False  # whose ImageNet weights other weights replace
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision deprecates how the original asks for a backbone
                model, criterion, _ = self.models.build_model(self.options(config, device))
        finally:
            self._backbone.is_main_process = downloads
        return model.to(device), criterion.to(device)


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _import_from(folder: Path, names: Sequence[str]) -> list[Any]:
    with _separate_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.path.insert(0, str(folder))
        try:
            return [importlib.import_module(name) for name in names]
        finally:
            sys.path.remove(str(folder))


@contextmanager
def _separate_modules() -> Iterator[None]:
    """Takes modules with the names of the original's away, and puts them back afterwards."""

    def take() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in _ROOTS]
        return {name: sys.modules.pop(name) for name in names}

    kept = take()
    try:
        yield
    finally:
        take()
        sys.modules.update(kept)
