"""Find the weights of a DETR in the content of a checkpoint file, however it was wrapped.

Training scripts save state dicts under several keys, beside averaged weights, with the prefixes of wrapper modules and
with parameters that are needed only in training. Models of Transformers and of this package have other names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from modeling_detr.conversion.original_names import ours_to_original
from modeling_detr.errors_detr import ModelError
from modeling_detr.stock_detr import NAMES_OF_RESNET, NAMES_OF_STOCK


_MAX_DEPTH = 3  # of dicts in dicts, such as {"ema": {"module": state dict}}
# The parameter by which a DETR is recognised: the original's name, and that of Transformers and this package
_QUERIES = ("query_embed.weight", "query_position_embeddings.weight")
# Modules that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put around others
_WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGED = re.compile(r"(?<![a-z])(?:ema|swa|averaged?|teacher)(?![a-z])", re.IGNORECASE)
# Parameters that are used only in training: of the loss, and of the pretraining of UP-DETR and DETReg
_TRAINING_ONLY = ("criterion.", "patch2query.", "feature_align.", "feature_embed.", "object_embed.")
_OPTIMIZER = "optim"  # how the keys of its state begin, which may have averages under the names of the parameters
_MASK_PARTS = ("bbox_attention.", "mask_head.")  # in a panoptic model, beside the detector in `detr.`


class NotRead:
    """Takes the place of an object that is not needed, such as a NumPy scalar, without its content."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass
class FoundWeights:
    """The weights of a DETR in a checkpoint file.

    Attributes:
        weights: Its state dict, with the original's names.
        notes: Where it was found and what was left out, one phrase each.
    """

    weights: dict[str, Tensor]
    notes: list[str]


@dataclass
class _Candidate:
    key: str  # where its dict is in the file: `state_dict`, `ema.module`
    prefix: str  # of its parameters' names: `model.`
    weights: dict[str, Tensor]
    others: list[str]  # names in the same dict that are not this DETR's

    @property
    def is_averaged(self) -> bool:
        return _AVERAGED.search(f"{self.key}.{self.prefix}") is not None

    @property
    def place(self) -> str:
        return f"'{self.key}'" + (f" ('{self.prefix}…')" if self.prefix else "")


def find_weights(path: Path, content: object, averaged: bool = False) -> FoundWeights:
    """Finds the state dict of a DETR in the content of a checkpoint file.

    Args:
        path: The file, for errors.
        content: What it contains: a state dict, or a dict with one.
        averaged: Whether to return the averaged weights (EMA) that the file has beside the last ones.

    Raises:
        ModelError: There is no DETR, or several, or no averaged weights although they are requested.
    """
    candidates = [candidate for key, tensors in _state_dicts(content) for candidate in _detrs(path, key, tensors)]
    if not candidates:
        raise _nothing_found(path, content)
    plain = [candidate for candidate in candidates if not candidate.is_averaged]
    means = [candidate for candidate in candidates if candidate.is_averaged]
    if averaged and not means:
        raise ModelError(path, "has no averaged weights (EMA)", "convert it without ema")
    fitting = means if averaged else plain or means
    if len(fitting) > 1 and (fitting[0].key != "model" or fitting[1].key == "model"):
        places = " and ".join(candidate.place for candidate in fitting)
        raise ModelError(path, f"contains several models: {places}", "save the one to convert to a file of its own")
    chosen = fitting[0]
    return FoundWeights(_with_original_names(path, chosen.weights), _notes(chosen, fitting[1:], means))


def _state_dicts(
    content: object, key: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts with tensors in `content`, each with the keys that lead to it; `model` first, as in the original.

    A dict that is there several times, even in itself, is yielded once; the state of an optimizer is left out.
    """
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH or id(content) in seen:
        return
    seen.add(id(content))
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for inner in sorted(content, key=lambda inner: inner != "model"):
        if isinstance(content[inner], Mapping) and not _text(inner).startswith(_OPTIMIZER):
            yield from _state_dicts(content[inner], f"{key}.{_text(inner)}".lstrip("."), depth + 1, seen)


def _detrs(path: Path, key: str, tensors: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    """The DETRs in a state dict, recognised by their queries; a module with other parts may contain one."""
    named = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise ModelError(path, f"'{key}' has parameters whose names differ only in those of wrapper modules")
    prefixes = {name.removesuffix(end) for name in named for end in _QUERIES if f".{name}".endswith(f".{end}")}
    # the detector of a model of Transformers is in `model.`, its heads are beside it; masks are beside `detr.`
    prefixes = {_without_inner_parts(prefix, named) for prefix in prefixes}
    for prefix in sorted(prefixes):
        own = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
        weights = {name: tensor for name, tensor in own.items() if not name.startswith(_TRAINING_ONLY)}
        others = [name for name in named if name.removeprefix(prefix) not in weights or not name.startswith(prefix)]
        yield _Candidate(key, prefix, weights, others)


def _without_inner_parts(prefix: str, named: Mapping[str, Tensor]) -> str:
    """The prefix of the whole model, given that of its queries."""
    for part, beside in (("model.", ("class_labels_classifier.", "bbox_predictor.")), ("detr.", _MASK_PARTS)):
        outer = prefix.removesuffix(part)
        if outer != prefix and any(name.startswith(tuple(outer + one for one in beside)) for name in named):
            prefix = outer
    return prefix


def _with_original_names(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without batch-norm counters, and with the names of the original instead of those of Transformers."""
    named = {name: tensor for name, tensor in weights.items() if not name.endswith(".num_batches_tracked")}
    if not any(name.endswith(_QUERIES[1]) for name in named):
        return named
    patterns = {**NAMES_OF_STOCK, **NAMES_OF_RESNET}
    ours = {_renamed(name, patterns): tensor for name, tensor in named.items()}
    try:
        return ours_to_original(ours)
    except KeyError as error:
        raise ModelError(path, f"missing parameters: {error}; the file is damaged", "copy it again") from error


def _renamed(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def _notes(chosen: _Candidate, not_chosen: Sequence[_Candidate], means: Sequence[_Candidate]) -> list[str]:
    notes = []
    if chosen.key not in ("", "model"):
        notes.append(f"read the weights in '{chosen.key}'")
    if chosen.prefix:
        notes.append(f"read the parameters whose names begin with '{chosen.prefix}'")
    others = [name for name in chosen.others if not name.startswith(tuple(one.prefix for one in means if one.prefix))]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"left out '{others[0]}'{more}, which DETR does not have")
    notes += [f"left out the weights in {one.place}" for one in not_chosen]
    if means and chosen not in means:
        notes.append(f"left out averaged weights (EMA) in {means[0].place}; to convert those instead, set ema")
    return notes


def _nothing_found(path: Path, content: object) -> ModelError:
    if not isinstance(content, Mapping) or not content:
        return ModelError(path, f"its content is {_kind(content)}, expected a state dict, or a dict with 'model'")
    dicts = list(_state_dicts(content))
    if not dicts:
        first = next(iter(content))
        return ModelError(
            path,
            f"not a state dict: '{_text(first)}' is {_kind(content[first])}, expected a tensor; its keys are "
            f"{', '.join(map(_text, list(content)[:8]))}",
        )
    names = max((list(tensors) for _, tensors in dicts), key=len)
    shown = ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return ModelError(path, f"not an original DETR checkpoint: no '{_QUERIES[0]}'; its parameters are {shown}")


def _text(key: object) -> str:
    """A key of a dict as text; not that of a tuple, which may be nested too deeply to be printed."""
    return str(key) if isinstance(key, str | int) else f"({type(key).__name__})"


def _kind(value: object) -> str:
    if isinstance(value, NotRead):
        return "an object of NumPy or another library, which is not read"
    return f"of type {type(value).__name__}"
