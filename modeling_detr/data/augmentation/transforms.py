"""The transforms for training and evaluation, by name."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from modeling_detr.data.augmentation import POLICIES
from modeling_detr.data.augmentation.none import ResizePolicy
from modeling_detr.data.augmentation.policy import LONGEST_EDGE, SCALES, SampleTransform, check_pixels
from modeling_detr.errors_detr import did_you_mean


def eval_transform(shortest_edge: int = 800, longest_edge: int | None = LONGEST_EDGE) -> ResizePolicy:
    """Create the transform for evaluation: resize only."""
    return ResizePolicy(shortest_edge, longest_edge)


def train_transform(
    name: str = "original",
    *,
    scales: int | Sequence[int] | None = None,
    size: tuple[int, int | None] | None = None,
    **options: Any,
) -> SampleTransform:
    """Create the transform for training from the name of its policy.

    Args:
        name: A key of `POLICIES`: `original` (the original's), `light` (for small datasets), `none` (resize only); or
            the dotted name of a transform, `package.module.name` (the working folder is searched too): a callable that
            takes and returns a `DetectionSample`, or a class, which is instantiated with `scales` and `options` where
            set. It may draw from the global random states of Python, NumPy and PyTorch, which the dataset seeds for
            each sample.
        scales: Shortest edges to draw from, or a single one. Sizes that are not set follow from the largest.
        size: Shortest and longest edge of the processor, from which a policy chooses its sizes if `scales` is None. If
            both are None, the policy uses its default sizes. Not passed to a transform with a dotted name.
        **options: Fields of the policy, e.g. `longest_edge`, `flip_probability`, `crop_probability`, `min_visibility`.
            None: not set.

    Raises:
        ValueError: The policy does not exist, has no such option, or a value is out of range; or a dotted name cannot
            be imported, is not callable, or takes no options.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name not in POLICIES:
        if scales is not None:
            given["scales"] = scales
        return _import_transform(name, given)
    policy = POLICIES[name]
    fields = {*inspect.signature(policy).parameters}
    allowed = sorted({"scales", *fields} - {"shortest_edge"})
    for key in given:
        if key not in allowed:
            raise ValueError(f"policy '{name}' has no option '{key}'; {did_you_mean(key, allowed)}")
    if scales is not None:
        check_pixels("scales", scales)
        scales = (scales,) if isinstance(scales, int) else tuple(scales)
    sizes: dict[str, Any] = {}
    if scales is not None or size is not None:
        processor_shortest, processor_longest = size or (None, None)
        shortest_edge = max(scales) if scales is not None else cast(int, processor_shortest)
        longest_edge = processor_longest or round(LONGEST_EDGE * (shortest_edge / max(SCALES)))
        sizes = policy.sizes_for(shortest_edge, longest_edge)
        if scales is not None and "scales" in fields:
            sizes["scales"] = scales
    arguments = {**sizes, **given}
    return policy(**{key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()})


def _import_transform(name: str, options: dict[str, Any]) -> SampleTransform:
    where = f"transform '{name}'"
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(
            f"{where}: no such policy, and not the dotted name of a callable such as my_package.my_module.augment; "
            f"{did_you_mean(name, POLICIES)}"
        )
    if module_name.partition(".")[0] in {*sys.stdlib_module_names, *sys.builtin_module_names}:
        raise ValueError(f"{where}: Python's own modules have no transforms; {did_you_mean(name, POLICIES)}")
    _add_working_folder_to_import_path()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{where}: cannot be imported ({error}); run the command in the folder that contains '{module_name}', add "
            f"that folder to PYTHONPATH, or correct the name."
        ) from error
    if not hasattr(module, attribute):
        public = [public_name for public_name in dir(module) if not public_name.startswith("_")]
        raise ValueError(f"{where}: {module.__file__} has no '{attribute}'; {did_you_mean(attribute, public)}")
    transform = getattr(module, attribute)
    if isinstance(transform, type):
        # checked first: a recipe must not create another object, such as a process, with options of its choice
        if not any("__call__" in vars(base) for base in transform.__mro__):
            raise ValueError(f"{where}: got a class whose objects are not callable, expected a transform.")
        transform = transform(**options)
    elif options:
        raise ValueError(
            f"{where}: got the options {', '.join(options)}, but it is not a class; drop them, or use a class "
            f"that takes them."
        )
    if not callable(transform):
        raise ValueError(f"{where}: got a {type(transform).__name__}, expected a callable.")
    return cast(SampleTransform, transform)


def _add_working_folder_to_import_path() -> None:
    """Make modules in the working folder importable; console scripts, unlike `python -m`, do not search it.

    The folder stays on the path, because new workers of a data loader import the transform again.
    """
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
