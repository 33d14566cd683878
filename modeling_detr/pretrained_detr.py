"""The base class of all DETR models: loading, a class head that changes size, initialisation."""

import copy
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import CONFIG_NAME
from transformers.utils.generic import ModelOutput, TransformersKwargs
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from .backbone_detr import DetrConvEncoder
from .configuration_detr import DetrConfig, config_under_our_keys
from .errors_detr import DetrError, ModelError, did_you_mean, printable
from .layers_detr import init_bias
from .model_folder_detr import adapted_model, check_weight_files, model_folder
from .stock_detr import NAMES_OF_RESNET, NAMES_OF_STOCK, STOCK_MODEL_TYPE, is_huggingface_resnet, stock_norm_difference


_logger = logging.getLogger(__name__)

Output = TypeVar("Output", bound=ModelOutput)


# A head that changes size

# The initial logit of a new class is that of "no object" less an offset, chosen so that all new classes together get
# this share of its probability. Measured on shapes: 0.1 costs the old classes .001 to .002 AP, 0.5 costs .004 and 1
# costs .008; a lower start takes longer to learn. (Starting from the mean of the old classes costs them less, but then
# the new ones had learnt nothing after 100 steps: an unknown object looks like "no object" to the source rather than
# like its average class.)
NEW_CLASSES_SHARE = 0.1
# Noise added to copies of queries, in standard deviations of the existing queries
QUERY_NOISE = 0.1


class MismatchedSizesError(DetrError, ValueError, RuntimeError):
    """The head has another size than requested. (A ValueError, and the RuntimeError that Transformers raises.)"""


@dataclass(frozen=True)
class HeadChange:
    """The plan for class head and queries of a model that is loaded for other classes; models carry it out.

    Attributes:
        old_names: Class names of the source, in the order of its rows.
        new_names: Requested class names, in the order of the new rows.
        rows: For each requested class the row of the source that it starts from; None for a new class.
        old_num_queries: Queries of the source.
        new_num_queries: Requested queries.
        rows_stay: The source has no class names and as many classes as requested, so its rows stay in their order.
    """

    old_names: tuple[str, ...]
    new_names: tuple[str, ...]
    rows: tuple[int | None, ...]
    old_num_queries: int
    new_num_queries: int
    rows_stay: bool = False

    @classmethod
    def between(cls, old: DetrConfig, new: DetrConfig, label_mapping: Mapping[str, str] | None = None) -> "HeadChange":
        """Matches the classes of two configs by name: exact matches first, then ignoring case and spacing.

        Repeated names, such as COCO's "N/A", are matched in order.

        Args:
            old: The source's config.
            new: The requested config.
            label_mapping: Old class names → the new names that take over their rows, where the two differ.

        Raises:
            ValueError: `label_mapping` has an unknown name, or uses one twice.
        """
        matching = _RowMatching(old.class_names, new.class_names)
        matching.match_mapping(label_mapping or {})
        rows_stay = False
        if not all(map(_is_placeholder, matching.new_names)):
            matching.match_by(str)
            matching.match_by(_normalised)
            unnamed = all(map(_is_placeholder, matching.old_names))
            if unnamed and len(matching.old_names) == len(matching.new_names) and not label_mapping:
                matching.rows, rows_stay = list(range(len(matching.new_names))), True
        elif matching.old_names == matching.new_names:
            matching.rows = list(range(len(matching.new_names)))
        rows = tuple(matching.rows)
        return cls(matching.old_names, matching.new_names, rows, old.num_queries, new.num_queries, rows_stay)

    def without_classes(self) -> "HeadChange":
        """The change of the queries alone, for a model without a class head."""
        return HeadChange((), (), (), self.old_num_queries, self.new_num_queries)

    @property
    def classes_change(self) -> bool:
        """Whether any row is moved, added or dropped."""
        return self.rows != tuple(range(len(self.old_names)))

    @property
    def new_labels(self) -> list[int]:
        """Labels that have no row in the source."""
        return [label for label, row in enumerate(self.rows) if row is None]

    @property
    def new_class_offset(self) -> float:
        """How far below "no object" the logit of a new class starts, in every query."""
        return math.log(max(1, len(self.new_labels)) / NEW_CLASSES_SHARE)

    def move_rows(self, tensor: Tensor, offset: float = 0.0) -> Tensor:
        """(C + 1, …) of the old head → of the new head. New rows are copies of "no object" less `offset`."""
        no_object = tensor[-1]
        rows = [no_object - offset if row is None else tensor[row] for row in self.rows]
        return torch.stack([*rows, no_object])

    def resize_queries(self, queries: Tensor) -> Tensor:
        """(old_num_queries, D) → (new_num_queries, D). New queries are copies of the old ones in turn, plus noise."""
        old, new = len(queries), self.new_num_queries
        copies = queries[torch.arange(old, max(new, old), device=queries.device) % old]
        noise = torch.randn_like(copies) * queries.std() * QUERY_NOISE
        return torch.cat([queries, copies + noise])[:new]

    def sentences(self) -> list[str]:
        """Describes the change for the log: what is kept, moved, new and dropped. Empty if nothing changes."""
        described = []
        if self.rows_stay and self.old_names != self.new_names:
            described.append(
                f"class head: the source has no class names ({_shortened(self.old_names, 2)}) and as many classes as "
                f"requested, so its rows stay in their order"
            )
        elif self.classes_change:
            described.append(self._describe_classes())
        old, new = self.old_num_queries, self.new_num_queries
        if new > old:
            described.append(f"queries: {old} kept, {new - old} added as copies of those with some noise")
        elif new < old:
            described.append(f"queries: the first {new} of {old} kept, {old - new} dropped")
        return described

    def _describe_classes(self) -> str:
        kept = [name for label, name in enumerate(self.new_names) if self.rows[label] == label]
        moved = [
            f"{name} {row} → {label}"
            for label, (name, row) in enumerate(zip(self.new_names, self.rows, strict=True))
            if row is not None and row != label
        ]
        new = [self.new_names[label] for label in self.new_labels]
        dropped = [name for row, name in enumerate(self.old_names) if row not in self.rows]
        parts = [
            f"{len(names)} {verb} ({_shortened(names)})"
            for names, verb in (
                (kept, "kept"),
                (moved, "moved"),
                (new, f"new, with logits {self.new_class_offset:.1f} below that of 'no object'"),
                (dropped, "dropped"),
            )
            if names
        ]
        counts = f"{len(self.old_names)} → {len(self.new_names)} classes"
        described = f"class head, {counts}: 'no object' kept; {', '.join(parts)}"
        if len(new) < len(self.new_names):
            return described
        if all(map(_is_placeholder, self.new_names)):
            return (
                f"{described}. num_labels alone names no classes; pass id2label={{0: 'name', …}} so that classes with "
                f"the same name keep their weights"
            )
        return (
            f"{described}. No class has the name of an old one. If classes were only renamed, map them with "
            f"label_mapping"
        )

    def check_sizes(self, source: str) -> None:
        """Raises a MismatchedSizesError unless the source has as many classes and queries as requested."""
        differing = [
            f"got {old} {things}, expected {new}"
            for things, old, new in (
                ("classes", len(self.old_names), len(self.new_names)),
                ("queries", self.old_num_queries, self.new_num_queries),
            )
            if old != new
        ]
        if differing:
            raise MismatchedSizesError(
                source,
                "; ".join(differing),
                "pass ignore_mismatched_sizes=True to keep 'no object', the rows of classes with the same name, and "
                "the queries (head_init='fresh' initialises them anew instead), or omit num_labels, id2label and "
                "num_queries",
            )

    def check_rows_are_loaded(self, source: str, missing: Iterable[str]) -> None:
        """Raises a ValueError if rows are to be moved, but the class head was not loaded.

        Args:
            source: Where the checkpoint comes from, for the message.
            missing: Names of parameters that the checkpoint does not have, or has in another size.
        """
        head = [name for name in sorted(missing) if "class_labels_classifier." in name]
        if head and self.classes_change:
            raise ValueError(
                f"{source}: {head[0]} is missing or has another size than its own config.json says, so its rows "
                f"cannot be moved; pass head_init='fresh'."
            )

    def warn_of_stale_rows(self, source: str) -> None:
        """Logs a warning if classes change their order while their rows do not: names would be on wrong rows."""
        moving = [
            name
            for label, (name, row) in enumerate(zip(self.new_names, self.rows, strict=True))
            if row not in (None, label)
        ]
        if moving and len(self.old_names) == len(self.new_names):
            _logger.warning(
                "%s: id2label has classes in another order (%s), but their rows move only with "
                "ignore_mismatched_sizes=True and head_init='by_name'.",
                printable(source),
                printable(_shortened(moving)),
            )


class _RowMatching:
    """Assigns rows of the old class head to new classes, each at most once.

    Args:
        old_names: See `HeadChange`.
        new_names: See `HeadChange`.
    """

    def __init__(self, old_names: tuple[str, ...], new_names: tuple[str, ...]) -> None:
        self.old_names = old_names
        self.new_names = new_names
        self.rows: list[int | None] = [None] * len(new_names)
        self._free = set(range(len(old_names)))

    def match_mapping(self, label_mapping: Mapping[str, str]) -> None:
        """Matches what a user mapped: old names → new names."""
        for old_name, new_name in label_mapping.items():
            row = _index_of(old_name, self.old_names, "the source has no class")
            label = _index_of(new_name, self.new_names, "the requested classes have no")
            if self.rows[label] is not None or row not in self._free:
                raise ValueError(f"label_mapping: '{old_name}: {new_name}' uses a class twice.")
            self.rows[label] = row
            self._free.discard(row)

    def match_by(self, form: Callable[[str], str]) -> None:
        """Matches what is left where `form` of both names is equal."""
        waiting: dict[str, list[int]] = {}
        for row in sorted(self._free):
            waiting.setdefault(form(self.old_names[row]), []).append(row)
        for label, name in enumerate(self.new_names):
            if self.rows[label] is None and waiting.get(form(name)):
                row = waiting[form(name)].pop(0)
                self.rows[label] = row
                self._free.discard(row)


def _is_placeholder(name: str) -> bool:
    """Whether Transformers made the name up because none was given."""
    return re.fullmatch(r"LABEL_\d+", name) is not None


def _normalised(name: str) -> str:
    """A class name without case and spacing: 'Dining Table' and 'dining_table' become 'diningtable'."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _index_of(name: str, names: Sequence[str], complaint: str) -> int:
    """The index of `name` in `names`: an exact match first, then ignoring case and spacing."""
    for form in (str, _normalised):
        for index, other in enumerate(names):
            if form(other) == form(name):
                return index
    raise ValueError(f"label_mapping: {complaint} '{name}'; {did_you_mean(name, names)}")


def _shortened(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def resized(old: Tensor, tensor: Tensor) -> nn.Parameter:
    """`tensor` as a parameter that trains if `old` does."""
    return nn.Parameter(tensor, requires_grad=old.requires_grad)


# The base class

# Arguments that Transformers' tools pass to any model, such as Trainer's `num_items_in_batch`
_LIBRARY_ARGUMENTS = {
    *TransformersKwargs.__annotations__,
    "decoder_attention_mask",
    "decoder_input_ids",
    "interpolate_pos_encoding",
    "return_loss",
    "use_cache",
}

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")  # PyTorch's fused kernels, or plain matrix products


class DetrPreTrainedModel(PreTrainedModel):
    """Config, loading and initialisation, which all DETR models share."""

    config: DetrConfig
    config_class = DetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DetrConvEncoder", "DetrEncoderLayer", "DetrDecoderLayer"]  # noqa: RUF012
    accepts_loss_kwargs = False  # the loss has its own normalisers; Trainer would take `**kwargs` for those it knows
    _keys_to_ignore_on_load_unexpected = [r".*num_batches_tracked$"]  # noqa: RUF012
    detector_prefix: ClassVar[str] = ""  # of a detector's parameter names, in a model that contains one
    has_class_head: ClassVar[bool] = True
    # Auto classes that load the class where this package is not installed, beside the one it is registered for
    further_auto_classes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # each attention reads the config when it runs; Transformers guesses from the source, wrongly here

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """Checks the implementation of attention: any other name could be a Hub repository whose code would run.

        Raises:
            ValueError: It is not one of `ATTENTION_IMPLEMENTATIONS`.
        """
        if attn_implementation not in (None, *ATTENTION_IMPLEMENTATIONS):
            raise ValueError(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported; expected one of '
                f"{', '.join(ATTENTION_IMPLEMENTATIONS)}."
            )
        adjusted: str = super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        return adjusted

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        ignore_mismatched_sizes: bool = False,
        head_init: Literal["by_name", "fresh"] = "by_name",
        label_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a model, also one of Transformers' own DETR, and keeps as much as possible of a head of another size.

        With `ignore_mismatched_sizes` the model may have other classes (`id2label`) or `num_queries` than the source.
        Class-head weights are reused for classes with the same name (ignoring case and spacing) and for "no object";
        new classes start with a low score, so existing classes lose almost no accuracy; additional queries are copies
        with some noise. The log says what was kept, moved, added and dropped. Layers that the config freezes are
        frozen in the loaded model.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id, of one of our models, of Transformers' own DETR, or of
                a PEFT adapter, whose base model is loaded with it; or the folder of a run, whose best model is loaded.
            *model_args: See `PreTrainedModel.from_pretrained`.
            config: A config to use instead of the source's.
            ignore_mismatched_sizes: Allow a class head or queries of another size.
            head_init: `"fresh"` initialises whatever has another size at random, as Transformers does.
            label_mapping: Class names of the source → the new names that take over their rows, where the two differ.
            **kwargs: Config keys to change, and other options of `PreTrainedModel.from_pretrained`. With
                `output_loading_info` the loading info has an additional key `head_change`: a `HeadChange`, or None if
                nothing changed.

        Raises:
            MismatchedSizesError: Sizes differ, and `ignore_mismatched_sizes` is not set.
            ValueError: A key is unknown, labels contradict each other, or the source is another kind of model.
            OSError: The source does not exist, or is a folder without a model.
        """
        _check_head_options(head_init, label_mapping)
        options = {"ignore_mismatched_sizes": ignore_mismatched_sizes, **kwargs}
        if pretrained_model_name_or_path is None:  # a state_dict and a config: no source head to compare with
            loaded = super().from_pretrained(None, *model_args, config=cast(Any, config), **options)
            _freeze_stems(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded

        source = model_folder(pretrained_model_name_or_path, options.get("subfolder") or "")
        configs = _read_configs(base_of_adapter(source, options), config, options)
        change = HeadChange.between(configs.old, configs.new, label_mapping)
        if not cls.has_class_head:
            change = change.without_classes()
        if not ignore_mismatched_sizes:
            change.check_sizes(source)
        by_name = (
            head_init == "by_name" and bool(ignore_mismatched_sizes or label_mapping) and bool(change.sentences())
        )
        if not by_name:
            change.warn_of_stale_rows(source)

        # Load at the source's sizes, then move rows and queries.
        with_info = options.pop("output_loading_info", False)
        model, info = cls._load(source, configs.for_loading(by_name), configs.stock, *model_args, **options)
        if by_name:
            change.check_rows_are_loaded(source, _missing(info))
            with torch.no_grad():
                model.change_head(change)
            for key in _HEAD_KEYS:
                setattr(model.config, key, getattr(configs.new, key))
        info["head_change"] = change if by_name else None
        _log_head(source, cls, info)
        _freeze_stems(model)
        return (model, info) if with_info else model

    @classmethod
    def _load(
        cls, source: str, config: DetrConfig, stock: Mapping[str, Any], *model_args: Any, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The model as it is at `source`, and Transformers' loading info.

        Args:
            source: A folder or a Hub id.
            config: The config to build the model from.
            stock: See `_Configs`.
            *model_args: See `PreTrainedModel.from_pretrained`.
            **options: See `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: An option is unknown, the weights cannot be read, or stock computes the backbone's batch norms
                differently.
        """
        check_weight_files(source, options.get("subfolder") or "", getattr(config, "transformers_weights", None))
        names = {**cls._foreign_names(stock), **(options.pop("key_mapping", None) or {})}
        try:
            loaded: Any = super().from_pretrained(
                source, *model_args, config=config, key_mapping=names, output_loading_info=True, **options
            )
        except TypeError as error:
            raise _unknown_key(error) from error
        except (AttributeError, LookupError, RecursionError, UnpicklingError) as error:  # of a malformed file
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ModelError(source, f"cannot be loaded ({reason})", "copy it once more; it is damaged") from error
        except SafetensorError as error:
            raise ModelError(
                source,
                f"its weights cannot be read ({error})",
                "rename its folder"
                if "not valid UTF-8" in str(error)
                else "download or copy the model once more; it is damaged",
            ) from error
        model, info = loaded
        model._weight_conversions = None  # or saving would restore the names that were read
        if stock and (difference := stock_norm_difference(model)):
            raise ValueError(
                f"{source}: the batch norms of its backbone cannot be reproduced here: {difference}. Its weights fit "
                f"no other model."
            )
        return model, info

    @classmethod
    def _foreign_names(cls, stock: Mapping[str, Any]) -> dict[str, str]:
        """Patterns of parameter names → ours: a detector's in a segmentation model and vice versa, and stock's."""
        names = dict(NAMES_OF_STOCK) if stock else {}
        if is_huggingface_resnet(stock):
            names.update(NAMES_OF_RESNET)
        if cls.detector_prefix:
            names[r"^(model|class_labels_classifier|bbox_predictor)\."] = rf"{cls.detector_prefix}\1."
        else:
            names[r"^detr\."] = ""
        return names

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.save_pretrained`. Also names the class for `further_auto_classes`, which pipelines ask,
        and `DetrModel` for `AutoModel`."""
        if self._auto_class is not None:
            name = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
            further = {"AutoModel": "modeling_detr.DetrModel", **dict.fromkeys(self.further_auto_classes, name)}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **further}
        super().save_pretrained(save_directory, *args, **kwargs)

    def change_head(self, change: HeadChange) -> None:
        """Resizes class head and queries as planned; every model knows its own."""
        raise NotImplementedError

    def freeze_backbone(self) -> None:
        """Stops the training of the backbone."""
        for encoder in self._backbones():
            encoder.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Lets the backbone train, except for what the config freezes: its stem, and its batch norms."""
        for encoder in self._backbones():
            encoder.requires_grad_(True)
            encoder.freeze_stem()

    def _backbones(self) -> list[DetrConvEncoder]:
        return [module for module in self.modules() if isinstance(module, DetrConvEncoder)]

    def check_library_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Checks the arguments of a call that the model does not have: those that the library may pass are ignored.

        Raises:
            TypeError: One of them is not the library's.
        """
        for name in arguments:
            if name not in _LIBRARY_ARGUMENTS:
                known = [*inspect.signature(self.forward).parameters]
                raise TypeError(f"{type(self).__name__}: unexpected argument '{name}'; {did_you_mean(name, known)}")

    def output_or_tuple(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """`output`, or its tuple where `return_dict`, or without it the config, is False."""
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises one module as the original does: the transformer by Xavier, the rest by PyTorch's defaults.

        Original: models/transformer.py, `_reset_parameters`. Modules with other rules have `reset_weights` or an
        `init_rule`.
        timm has initialised the backbone's weights; they get here only if a checkpoint lacks them. Transformers calls
        this for modules with weights of their own, not for containers.
        """
        if callable(reset := getattr(module, "reset_weights", None)):
            reset()
        elif callable(rule := getattr(module, "init_rule", None)):
            rule(module)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init_bias(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)):
            _init_norm(module)
        elif callable(reset := getattr(module, "init_non_persistent_buffers", None)):
            reset()  # timm's buffers: in no checkpoint, and lost on the meta device


def _init_norm(norm: nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d) -> None:
    """Sets scale 1 and shift 0, and for batch norms mean 0 and variance 1."""
    for name, fill in (
        ("weight", init.ones_),
        ("bias", init.zeros_),
        ("running_mean", init.zeros_),
        ("running_var", init.ones_),
        ("num_batches_tracked", init.zeros_),
    ):
        if isinstance(tensor := getattr(norm, name, None), Tensor):
            fill(tensor)


# Loading

_HEAD_KEYS = ("id2label", "label2id", "num_queries")  # config keys that a change of the head changes


def _check_head_options(head_init: str, label_mapping: Mapping[str, str] | None) -> None:
    if head_init not in ("by_name", "fresh"):
        raise ValueError(f"head_init: got '{head_init}', expected 'by_name' or 'fresh'.")
    if label_mapping and head_init == "fresh":
        raise ValueError("label_mapping and head_init='fresh' exclude each other; pass only one of them.")


class _Configs(NamedTuple):
    """Configs of a model that is loaded.

    stock: the source's `config.json` if it is stock's, else {}. old: the source's config under our keys. new: the
    requested config.
    """

    stock: dict[str, Any]
    old: DetrConfig
    new: DetrConfig

    def for_loading(self, old_head: bool) -> DetrConfig:
        """A copy of the requested config, on demand with the source's class head and queries."""
        config = copy.deepcopy(self.new)
        for key in _HEAD_KEYS if old_head else ():
            setattr(config, key, getattr(self.old, key))
        return config


_LOCATION_KEYS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")


def base_of_adapter(source: str, options: Mapping[str, Any]) -> str:
    """The model that a PEFT adapter at `source` adapts; `source` itself if no adapter is there."""
    if not is_peft_available() or (Path(source) / CONFIG_NAME).is_file():
        return source
    location = {key: options[key] for key in _LOCATION_KEYS if key in options}
    path = find_adapter_config_file(source, **location)
    return source if path is None else adapted_model(path)


def _read_configs(
    source: str, config: PreTrainedConfig | str | os.PathLike[str] | None, options: dict[str, Any]
) -> _Configs:
    """Reads the source's config, and builds the requested one from it or from `config`.

    Config keys are removed from `options`; what is left belongs to `PreTrainedModel.from_pretrained`.
    """
    location = {key: options[key] for key in _LOCATION_KEYS if key in options}
    saved, _ = DetrConfig.saved_values(source, **location)
    values = config_under_our_keys(saved, source)
    stock = saved if saved.get("model_type") == STOCK_MODEL_TYPE else {}
    old: DetrConfig = DetrConfig.from_dict(values)
    new: DetrConfig
    if isinstance(config, DetrConfig):
        new = config
    elif isinstance(config, PreTrainedConfig):
        new = DetrConfig.from_dict(config_under_our_keys(config.to_dict(), "config"))
    else:
        if config is not None:
            values, _ = DetrConfig.get_config_dict(config, **location)
        # "auto" is the type of the saved weights, which only the library's loader knows
        changes = {key: value for key, value in options.items() if key not in ("dtype", "torch_dtype")}
        new, unused = DetrConfig.from_dict(values, return_unused_kwargs=True, **changes)
        for key in set(changes) - set(unused):
            del options[key]
    return _Configs(stock, old, new)


def _unknown_key(error: TypeError) -> Exception:
    """The error to raise where Transformers passes an unknown key on to the model's constructor."""
    match = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return error
    known = [*DetrConfig.own_keys(), "ignore_mismatched_sizes", "head_init", "label_mapping"]
    return ValueError(f"from_pretrained: unknown key '{match[1]}'; {did_you_mean(match[1], known)}")


def _missing(info: Mapping[str, Any]) -> set[str]:
    """Names of parameters that a checkpoint did not fill."""
    return {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _freeze_stems(model: DetrPreTrainedModel) -> None:
    """Freezes backbone stems again: loading replaces the parameters."""
    for encoder in model._backbones():
        encoder.freeze_stem()


def _log_head(source: str, cls: type[PreTrainedModel], info: Mapping[str, Any]) -> None:
    """Logs what was done with class head, queries and mask head."""
    notes = info["head_change"].sentences() if info["head_change"] else []
    mask_parts = ("mask_head.", "bbox_attention.")
    if any(name.startswith(mask_parts) for name in info["missing_keys"]):
        notes.append(f"the source has no mask head: that of {cls.__name__} is new and needs training")
    if any(name.removeprefix("detr.").startswith(mask_parts) for name in info["unexpected_keys"]):
        notes.append(f"the source's mask head is dropped: {cls.__name__} has none")
    if notes:
        _logger.warning("%s: %s.", printable(source), printable("; ".join(notes)))
