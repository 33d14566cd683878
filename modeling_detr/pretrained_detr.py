"""What all DETR models share: loading, a class head that changes size, initialisation."""

import copy
import difflib
import logging
import math
import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .backbone_detr import DetrConvEncoder
from .configuration_detr import DetrConfig, config_under_our_keys
from .stock_detr import (
    NAMES_OF_RESNET,
    NAMES_OF_STOCK,
    STOCK_MODEL_TYPE,
    is_huggingface_resnet,
    norm_that_stock_computes_otherwise,
)


_logger = logging.getLogger(__name__)


# A head that changes size

# A new class starts as "no object" less so much that all new classes together get this share of its probability.
# Measured on shapes: 0.1 costs the old classes .001 to .002 AP, 0.5 costs .004 and 1 costs .008; and a lower start has
# more to climb. (A start from the mean of the old classes costs them less, but then the new ones had learnt nothing
# after 100 steps: what a source does not know looks like "no object" to it rather than like its average class.)
NEW_CLASSES_SHARE = 0.1


class MismatchedSizesError(ValueError, RuntimeError):
    """A head has another size than is wanted: a wrong argument, and what the library raises a RuntimeError for."""


@dataclass(frozen=True)
class HeadChange:
    """What becomes of the class head and the queries of a model that is loaded for other classes.

    Attributes:
        old_names: Name of each class that the source knows, in the order of its rows.
        new_names: Name of each class that is wanted, in the order of the rows to be.
        rows: For each wanted class the row of the source that it starts from; None: a new one.
        old_num_queries: Queries of the source.
        new_num_queries: Queries that are wanted.
        kept_places: The source has no names, and as many classes: its rows stay where they are.
    """

    old_names: tuple[str, ...]
    new_names: tuple[str, ...]
    rows: tuple[int | None, ...]
    old_num_queries: int
    new_num_queries: int
    kept_places: bool = False

    @classmethod
    def between(cls, old: DetrConfig, new: DetrConfig, label_mapping: Mapping[str, str] | None = None) -> "HeadChange":
        """Matches the classes of two configs by name: exactly, then case and spacing aside.

        Where a name is there several times, as COCO's "N/A", the first goes to the first and so on.

        Args:
            old: The source's config.
            new: The config that is wanted.
            label_mapping: Old names and the new ones that take over their rows, where those differ.

        Raises:
            ValueError: `label_mapping` has a name that its side does not know, or a new name twice.
        """
        old_names, new_names = _class_names(old), _class_names(new)
        rows: list[int | None] = [None] * len(new_names)
        free = set(range(len(old_names)))

        def match(form: Callable[[str], str]) -> None:
            waiting: dict[str, list[int]] = {}
            for row in sorted(free):
                waiting.setdefault(form(old_names[row]), []).append(row)
            for label, name in enumerate(new_names):
                if rows[label] is None and waiting.get(form(name)):
                    rows[label] = waiting[form(name)].pop(0)
                    free.discard(cast(int, rows[label]))

        for old_name, new_name in (label_mapping or {}).items():
            row = _place_of(old_name, old_names, "the source has no class")
            label = _place_of(new_name, new_names, "the classes that are wanted have no")
            if rows[label] is not None or row not in free:
                raise ValueError(f"label_mapping: '{old_name}: {new_name}' names a class for the second time.")
            rows[label] = row
            free.discard(row)
        kept_places = False
        if not all(map(_is_placeholder, new_names)):
            match(str)
            match(_bare_name)
            if all(map(_is_placeholder, old_names)) and len(old_names) == len(new_names) and not label_mapping:
                rows, kept_places = list(range(len(new_names))), True
        elif old_names == new_names:
            rows = list(range(len(new_names)))
        return cls(old_names, new_names, tuple(rows), old.num_queries, new.num_queries, kept_places)

    @property
    def classes_change(self) -> bool:
        """Whether any row moves, is made, or is lost."""
        return self.rows != tuple(range(len(self.old_names)))

    @property
    def made(self) -> list[int]:
        """Labels whose rows are new."""
        return [label for label, row in enumerate(self.rows) if row is None]

    def sentences(self) -> list[str]:
        """What was kept, moved and made, for the person who loads."""
        said = []
        if self.kept_places and self.old_names != self.new_names:
            said.append(
                f"class head: the source has no class names ({_listed(self.old_names, 2)}), and as many classes as "
                f"are wanted: its rows stay where they are"
            )
        elif self.classes_change:
            said.append(self._sentence_of_classes())
        old, new = self.old_num_queries, self.new_num_queries
        if new > old:
            said.append(f"queries: {old} kept, {new - old} made, as perturbed copies of those")
        elif new < old:
            said.append(f"queries: the first {new} of {old} kept, {old - new} dropped")
        return said

    def _sentence_of_classes(self) -> str:
        kept = [name for label, name in enumerate(self.new_names) if self.rows[label] == label]
        moved = [
            f"{name} {row} → {label}"
            for label, (name, row) in enumerate(zip(self.new_names, self.rows, strict=True))
            if row is not None and row != label
        ]
        made = [self.new_names[label] for label in self.made]
        dropped = [name for row, name in enumerate(self.old_names) if row not in self.rows]
        parts = [
            f"{len(names)} {word}" + f" ({_listed(names)})" * bool(names)
            for names, word in (
                (kept, "kept"),
                (moved, "moved"),
                (made, f"made, which start {self.offset_of_new_rows:.1f} below 'no object'"),
                (dropped, "dropped"),
            )
            if names
        ]
        sentence = (
            f"class head, {len(self.old_names)} → {len(self.new_names)} classes: 'no object' kept; {', '.join(parts)}"
        )
        if len(made) == len(self.new_names) and all(map(_is_placeholder, self.new_names)):
            sentence += ". num_labels alone gives classes no names: pass id2label (or --labels) to keep rows by name"
        elif len(made) == len(self.new_names):
            sentence += ". No name is known to both: pass label_mapping, old names to new ones, to keep rows"
        return sentence

    def size_error(self, source: str) -> str | None:
        """What to say of sizes that differ where that is not allowed; None: they do not."""
        differing = [
            f"{old} {what}, {new} are wanted"
            for what, old, new in (
                ("classes", len(self.old_names), len(self.new_names)),
                ("queries", self.old_num_queries, self.new_num_queries),
            )
            if old != new
        ]
        if not differing:
            return None
        return (
            f"{source} has {', and '.join(differing)}. Pass ignore_mismatched_sizes=True, which keeps 'no object', "
            f"the rows of classes whose names both know, and the queries (head_init='fresh' begins anew instead); or "
            f"leave out num_labels, id2label and num_queries."
        )

    def warn_of_rows_that_stay(self, source: str) -> None:
        """Logs a warning if known classes get another place without their rows: names on the wrong rows."""
        moving = [
            name
            for label, (name, row) in enumerate(zip(self.new_names, self.rows, strict=True))
            if row not in (None, label)
        ]
        if moving and len(self.old_names) == len(self.new_names):
            _logger.warning(
                "%s: id2label has its classes in other places (%s), but rows move only with "
                "ignore_mismatched_sizes=True, and not with head_init='fresh'.",
                source,
                _listed(moving),
            )

    def check_rows_are_known(self, model: nn.Module, source: str, missing: Container[str]) -> None:
        """Refuses a checkpoint that did not fill the class head, whose rows therefore cannot be moved.

        Args:
            model: The model loaded with the source's sizes.
            source: Where it comes from, for the message.
            missing: Names of parameters that the source did not have in their size.

        Raises:
            ValueError: The class head is among `missing`.
        """
        for name, _ in model.named_parameters():
            if name in missing and self.classes_change and "class_labels_classifier." in name:
                raise ValueError(
                    f"{source}: {name} is missing or has another size than its own config.json says, so that its rows "
                    f"cannot be told; pass head_init='fresh'."
                )

    @property
    def offset_of_new_rows(self) -> float:
        """How far below "no object" the logit of a new class starts, in every query."""
        return math.log(max(1, len(self.made)) / NEW_CLASSES_SHARE)

    def new_rows(self, tensor: Tensor, offset: float = 0.0) -> Tensor:
        """(C + 1, …) of the old head → of the new one: rows in their places, new ones "no object" less `offset`."""
        no_object = tensor[-1]
        rows = [no_object - offset if row is None else tensor[row] for row in self.rows]
        return torch.stack([*rows, no_object])


def _class_names(config: DetrConfig) -> tuple[str, ...]:
    return tuple(str(name) for _, name in sorted(cast(dict[int, str], config.id2label).items()))


def _is_placeholder(name: str) -> bool:
    """Whether a name is one that Transformers makes up where nobody gave any."""
    return re.fullmatch(r"LABEL_\d+", name) is not None


def _bare_name(name: str) -> str:
    """A class name without case and spacing: 'Dining Table' is 'diningtable' and 'dining_table'."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _place_of(name: str, names: Sequence[str], complaint: str) -> int:
    """Where `name` is among `names`, exactly or case and spacing aside."""
    for form in (str, _bare_name):
        for place, other in enumerate(names):
            if form(other) == form(name):
                return place
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise ValueError(f"label_mapping: {complaint} '{name}'; did you mean '{nearest}'?")


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def resized(old: Tensor, tensor: Tensor) -> nn.Parameter:
    """`tensor` as a parameter that trains if `old` does."""
    return nn.Parameter(tensor, requires_grad=old.requires_grad)


# The models


class DetrPreTrainedModel(PreTrainedModel):
    """What all DETR models share: config, names, initialisation."""

    config: DetrConfig
    config_class = DetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DetrConvEncoder", "DetrEncoderLayer", "DetrDecoderLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r".*num_batches_tracked$"]  # noqa: RUF012
    detector_prefix: ClassVar[str] = ""  # of the names of a detector's parameters, in a model that holds one
    has_class_head: ClassVar[bool] = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return (
            True  # each attention asks the config when it runs; the library guesses from the source, and wrongly here
        )

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
        """`PreTrainedModel.from_pretrained`, which also takes Transformers' own DETR, and keeps what it can of a head.

        With other classes (`id2label`) or `num_queries` than the source has, and `ignore_mismatched_sizes`, the row of
        "no object" stays, rows of classes whose names both know move to their new places (case and spacing aside),
        new rows start just low enough not to disturb the old ones, and further queries are perturbed copies. What was
        kept, moved and made is logged. What the config freezes is frozen in the loaded model.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id, of a model of ours or of Transformers' own DETR.
            *model_args: See the library.
            config: A config to use instead of the source's.
            ignore_mismatched_sizes: Allow a class head or queries of another size.
            head_init: `"fresh"`: what has another size begins anew at random, as in the library.
            label_mapping: Names of classes of the source, and those that take over their rows where they differ.
            **kwargs: Keys of the config to change, and the library's own options. With `output_loading_info` the
                information has the key `head_change` too, a `HeadChange`, or None if there is none to speak of.

        Raises:
            MismatchedSizesError: Sizes differ and may not.
            ValueError: A key is unknown; labels contradict each other; or the source is
                another kind of model.
            OSError: There is no such source.
        """
        if head_init not in ("by_name", "fresh"):
            raise ValueError(f"head_init is '{head_init}'; wanted 'by_name' or 'fresh'.")
        if label_mapping and head_init == "fresh":
            raise ValueError("label_mapping and head_init='fresh' exclude each other; give one of them.")
        options = {"ignore_mismatched_sizes": ignore_mismatched_sizes, **kwargs}
        if pretrained_model_name_or_path is None:  # a state_dict and a config: there is no other head to compare with
            loaded: Any = super().from_pretrained(None, *model_args, config=cast(Any, config), **options)
            _freeze_stems(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded

        # What is there, what is wanted, and what becomes of the head.
        source = str(pretrained_model_name_or_path)
        stock, there, wanted = _read_configs(source, config, options)
        change = HeadChange.between(there, wanted, label_mapping)
        if not cls.has_class_head:
            change = HeadChange((), (), (), change.old_num_queries, change.new_num_queries)
        if not ignore_mismatched_sizes and (complaint := change.size_error(source)):
            raise MismatchedSizesError(complaint)
        moves = head_init == "by_name" and bool(ignore_mismatched_sizes or label_mapping) and bool(change.sentences())
        if not moves:
            change.warn_of_rows_that_stay(source)

        # First as it is there, then with its rows in their places.
        loading = copy.deepcopy(wanted)
        if moves:
            loading.id2label, loading.label2id, loading.num_queries = there.id2label, there.label2id, there.num_queries
        with_info = options.pop("output_loading_info", False)
        names = {**cls._names_elsewhere(stock), **(options.pop("key_mapping", None) or {})}
        try:
            loaded = super().from_pretrained(
                source, *model_args, config=loading, key_mapping=names, output_loading_info=True, **options
            )
        except TypeError as error:
            raise _unknown_key(error) from error
        model, info = loaded
        model._weight_conversions = None  # or what is saved later would get the names that were read
        if stock and (differing := norm_that_stock_computes_otherwise(model)):
            raise ValueError(
                f"{source}: its backbone's batch norms cannot be reproduced here: {differing}. Its weights fit no "
                f"other model."
            )
        if moves:
            change.check_rows_are_known(model, source, _missing(info))
            with torch.no_grad():
                model.change_head(change)
            for key in ("id2label", "label2id", "num_queries"):
                setattr(model.config, key, getattr(wanted, key))
        info["head_change"] = change if moves else None
        _say_what_was_loaded(source, cls, info)
        _freeze_stems(model)
        return (model, info) if with_info else model

    @classmethod
    def _names_elsewhere(cls, stock: Mapping[str, Any]) -> dict[str, str]:
        """What names of parameters become: those of a detector in a panoptic model and back, and those of stock."""
        names = dict(NAMES_OF_STOCK) if stock else {}
        if is_huggingface_resnet(stock):
            names.update(NAMES_OF_RESNET)
        if cls.detector_prefix:
            names[r"^(model|class_labels_classifier|bbox_predictor)\."] = rf"{cls.detector_prefix}\1."
        else:
            names[r"^detr\."] = ""
        return names

    def change_head(self, change: HeadChange) -> None:
        """Resizes class head and queries as planned; each model knows its own."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises one module as the original does: its transformer by Xavier, the rest by PyTorch's own defaults.

        Original: models/transformer.py, `_reset_parameters`. Backbone weights are timm's own and already there; the
        rules below reach them only if a checkpoint lacks them. Only modules with weights of their own get here: the
        library passes by those that only hold others.
        """
        if hasattr(module, "reset_weights"):  # ours
            cast(Any, module).reset_weights()
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init_bias(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)):
            _init_norm(module)
        elif hasattr(module, "init_non_persistent_buffers"):  # timm's: not in any checkpoint, lost on the meta device
            cast(Any, module).init_non_persistent_buffers()


def init_bias(module: nn.Linear | nn.Conv2d, zero: bool = False) -> None:
    """PyTorch's default, uniform within 1/√(inputs), or zero."""
    if module.bias is not None:
        bound = 0.0 if zero else module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)


def _init_norm(module: nn.Module) -> None:
    """Scale 1, shift 0, and for batch norms mean 0 and variance 1."""
    for name, fill in (("weight", init.ones_), ("bias", init.zeros_), ("running_mean", init.zeros_)):
        if isinstance(tensor := getattr(module, name, None), Tensor):
            fill(tensor)
    if isinstance(variance := getattr(module, "running_var", None), Tensor):
        init.ones_(variance)
    if isinstance(counter := getattr(module, "num_batches_tracked", None), Tensor):
        init.zeros_(counter)


def _read_configs(
    source: str, config: PreTrainedConfig | str | os.PathLike[str] | None, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], DetrConfig, DetrConfig]:
    """The source's `config.json` as it is if it is stock's, else {}; its config under our keys; the config wanted.

    Keys of the config are taken out of `kwargs`, what is the library's stays.
    """
    places = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
    where = {key: kwargs[key] for key in places if key in kwargs}
    said, _ = PreTrainedConfig.get_config_dict(source, **where)
    under_ours = config_under_our_keys(said, source)
    stock = said if said.get("model_type") == STOCK_MODEL_TYPE else {}
    old = cast(DetrConfig, DetrConfig.from_dict(under_ours))
    if isinstance(config, (str, os.PathLike)):
        under_ours, config = DetrConfig.get_config_dict(config, **where)[0], None
    if config is None:
        config, unused = DetrConfig.from_dict(under_ours, return_unused_kwargs=True, **kwargs)
        for key in set(kwargs) - set(unused):
            del kwargs[key]
    elif not isinstance(config, DetrConfig):
        config = DetrConfig.from_dict(config_under_our_keys(config.to_dict(), "config"))
    return stock, old, cast(DetrConfig, config)


def _unknown_key(error: TypeError) -> Exception:
    """What to say where the library hands a key that nobody knows to the model."""
    match = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return error
    known = [*(field.name for field in fields(DetrConfig)), "num_labels", "ignore_mismatched_sizes", "label_mapping"]
    nearest = difflib.get_close_matches(match[1], known, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ": it is no key of DetrConfig, and no option of loading."
    return ValueError(f"from_pretrained does not know the key '{match[1]}'{hint}")


def _missing(info: Mapping[str, Any]) -> set[str]:
    """Parameters that a checkpoint did not fill."""
    return {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _freeze_stems(model: nn.Module) -> None:
    """Loading replaces the parameters, and with them what froze them."""
    for module in model.modules():
        if isinstance(module, DetrConvEncoder):
            module.freeze_stem()


def _say_what_was_loaded(source: str, cls: type[PreTrainedModel], info: Mapping[str, Any]) -> None:
    """Logs what became of the head and of masks."""
    said = info["head_change"].sentences() if info["head_change"] else []
    mask_parts = ("mask_head.", "bbox_attention.")
    if any(name.startswith(mask_parts) for name in info["missing_keys"]):
        said.append(f"the source has no mask head: that of {cls.__name__} is new, and must be trained")
    if any(name.removeprefix("detr.").startswith(mask_parts) for name in info["unexpected_keys"]):
        said.append(f"the source's mask head is left out: {cls.__name__} has none")
    if said:
        _logger.warning("%s: %s.", source, "; ".join(said))
