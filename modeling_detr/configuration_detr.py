"""`DetrConfig`: what the weights of a DETR mean; saved as `config.json`.

It holds the keys that determine the function computed by the weights, and the coefficients of its loss. The image
processor (`preprocessor_config.json`) prepares images, and a recipe (`configs/*.yaml`) determines how a run trains.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .errors_detr import did_you_mean, printable
from .model_folder_detr import model_folder
from .stock_detr import KEY_ALIASES, STOCK_MODEL_TYPE, TRAINING_KEYS, translate_stock_config


_logger = logging.getLogger(__name__)

# Keys that `PreTrainedConfig` accepts beside its declared fields, or writes into a saved config
_LIBRARY_KEYS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}

# Transformers' classes of the same names read the keys that they share with us, and fail on or ignore the others. This
# value of a key that they check and we do not have makes them stop; their error quotes it.
_NOTE_KEY = "init_std"
_NOTE = (
    "this is a modeling_detr model, which the DETR classes of transformers cannot load; import the class from "
    "modeling_detr instead, or use an Auto class with trust_remote_code=True"
)

# Smallest allowed value → keys
_MINIMUMS = {
    0: (
        "encoder_layers",
        "class_cost",
        "bbox_cost",
        "giou_cost",
        "bbox_loss_coefficient",
        "giou_loss_coefficient",
        "mask_loss_coefficient",
        "dice_loss_coefficient",
        "eos_coefficient",
    ),
    1: (
        "num_queries",
        "decoder_layers",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "learned_position_grid",
        "num_channels",
    ),
}

# Largest allowed value → keys. A config comes with downloaded weights: it must not be able to fill the memory.
_MAXIMUMS = {
    1_000: ("encoder_layers", "decoder_layers", "num_channels"),
    100_000: ("num_queries", "d_model", "encoder_ffn_dim", "decoder_ffn_dim", "learned_position_grid"),
}
_MOST_LABELS = 100_000
_MOST_TRANSFORMER_WEIGHTS = 1_000_000_000

# A timm model's name with its tag: nothing that timm would read as a folder or as somebody's repository
_BACKBONE_NAME = re.compile(r"[\w.-]+")
# What `backbone_kwargs` may set: the architecture. timm takes other options that open files or download (such as
# `checkpoint_path` or `pretrained_cfg`), so whatever is not in this list is refused.
_BACKBONE_OPTIONS = frozenset(
    """
    aa_layer act_layer attn_drop_rate attn_layer avg_down base_width block_args bottle_ratio cardinality channels
    class_token conv_bias conv_layer conv_mlp depth depths down_kernel_size down_pad drop_block_rate drop_path_rate
    drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims embed_layer expansion_ratio feature_cls final_norm
    global_pool groups growth_rate head_dim head_init_scale img_size init_values kernel_sizes layer_scale_init_value
    layers ls_init_value mlp_layer mlp_ratio mlp_ratios norm_eps norm_layer num_heads num_reg_tokens pad_type
    patch_norm patch_size pos_drop_rate pos_embed pre_norm proj_bias proj_drop_rate qk_norm qkv_bias reg_tokens
    replace_stem_pool rope_type se_layer se_ratio stem_chs stem_stride stem_type stem_width strict_img_size
    use_conv_mlp use_grn window_ratio window_size zero_init_last
    """.split()  # noqa: SIM905 (one word a line would take a page)
)
_LARGEST_BACKBONE_NUMBER = 100_000  # an image's side, or a layer's width
_MOST_BACKBONE_LAYERS = 100
_OPTIONS_THAT_COUNT_LAYERS = ("depth", "depths", "layers")

# Arguments of `timm.create_model` that other keys determine → what to do instead
_RESERVED_BACKBONE_KWARGS = {
    "model_name": "set the key backbone",
    "pretrained": "building from a config never downloads weights; load them with DetrModel.load_backbone_weights",
    "features_only": "it is always True",
    "in_chans": "set the key num_channels",
    "out_indices": "set the key out_indices",
    "output_stride": "set the key dilation",
    **dict.fromkeys(
        ("cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pruned"),
        "it names a file or pretrained weights; load them with DetrModel.load_backbone_weights",
    ),
}


@strict
class DetrConfig(PreTrainedConfig):
    """Configuration of `DetrModel` and the models built on it; the defaults are the paper's DETR-R50.

    Paper: sec. 3 and A.4. Original: main.py, `get_args_parser`.

    Attributes:
        backbone: Name of a timm model that supports `features_only`. Building from a config never downloads weights.
        backbone_kwargs: Options of the backbone's architecture, arguments of `timm.create_model`, e.g.
            `{"channels": [16, 32, 64, 128]}`. Options that name a file, a place or pretrained weights are refused.
        out_indices: Feature maps of the backbone to compute, in ascending order; the transformer reads the last one,
            segmentation all four. None: only the deepest map, for segmentation the last four.
        num_channels: Channels of the input image.
        dilation: Replace the stride of the backbone's last stage by dilation (DC5), which doubles the resolution.
        freeze_batch_norm: The backbone's batch norms use their stored statistics and never train, as in the original.
            Set it to False to train a backbone from random weights.
        freeze_backbone_stem: Layers up to and including the stride-4 feature map do not train, as in the original. Set
            it to False to train a backbone from random weights.
        num_queries: Object queries, the maximum number of objects detected in one image.
        d_model: Width of the transformer; divisible by both numbers of heads, and by 4 (learned positions: 2).
        encoder_layers: Encoder layers.
        encoder_attention_heads: Heads of the encoder's attention.
        encoder_ffn_dim: Hidden width of the encoder's feed-forward networks.
        decoder_layers: Decoder layers.
        decoder_attention_heads: Heads of the decoder's attention.
        decoder_ffn_dim: Hidden width of the decoder's feed-forward networks.
        activation_function: Activation of the feed-forward networks, by its name in Transformers.
        dropout: Dropout of every residual branch.
        attention_dropout: Dropout of the attention weights.
        activation_dropout: Dropout between the two layers of a feed-forward network.
        pre_norm: Normalise before each block instead of after it (`--pre_norm` of the original).
        position_embedding_type: `"sine"` or `"learned"`.
        position_temperature: Ratio of the longest to the shortest wavelength of the sine positions. With the
            original's 10,000 most channels are nearly constant over an image; 20 makes positions easier to tell apart,
            so small datasets with many similar objects learn much sooner.
        learned_position_grid: Rows and columns of the learned position table: the largest supported feature map.
        auxiliary_loss: Apply the heads and the loss to every decoder layer.
        class_cost: Weight of the class probability in the matching cost.
        bbox_cost: Weight of the L1 box distance in the matching cost.
        giou_cost: Weight of the generalised IoU in the matching cost.
        bbox_loss_coefficient: Weight of the L1 box loss.
        giou_loss_coefficient: Weight of the generalised IoU loss.
        mask_loss_coefficient: Weight of the focal mask loss (segmentation).
        dice_loss_coefficient: Weight of the dice mask loss (segmentation).
        eos_coefficient: Weight of the class "no object" in the classification loss.
        stuff_labels: Labels of classes without individual objects (sky, grass), whose segments are merged into one per
            image (panoptic). All other classes are things.
        trained_without_mask: Whether the model was trained on padded images without `pixel_mask`, as training notes
            here. In evaluation mode it then ignores the mask, which it has not learned to use.

    Raises:
        ValueError: A key is unknown, a value is not allowed, or values contradict each other.
    """

    model_type = "modeling_detr"
    attribute_map = KEY_ALIASES
    # Outputs that depend on the size of the padded batch. Trainer concatenates the others of all batches.
    keys_to_ignore_at_inference = [  # noqa: RUF012 (Trainer adds a list to it)
        "encoder_hidden_states",
        "encoder_attentions",
        "cross_attentions",
        "pred_masks",
    ]

    backbone: str = "resnet50"
    backbone_kwargs: dict[str, Any] | None = None
    out_indices: list[int] | tuple[int, ...] | None = None
    num_channels: int = 3
    dilation: bool = False
    freeze_batch_norm: bool = True
    freeze_backbone_stem: bool = True

    num_queries: int = 100
    d_model: int = 256
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    pre_norm: bool = False
    position_embedding_type: str = "sine"
    position_temperature: float | int = 10_000
    learned_position_grid: int = 50
    is_encoder_decoder: bool = True

    auxiliary_loss: bool = True
    class_cost: float | int = 1
    bbox_cost: float | int = 5
    giou_cost: float | int = 2
    bbox_loss_coefficient: float | int = 5
    giou_loss_coefficient: float | int = 2
    mask_loss_coefficient: float | int = 1
    dice_loss_coefficient: float | int = 1
    eos_coefficient: float | int = 0.1
    stuff_labels: list[int] | tuple[int, ...] = ()
    trained_without_mask: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks keys and values; see the class for the errors."""
        kwargs = _without_note(kwargs)
        for key in kwargs:
            if key not in self._known_keys():
                raise ValueError(f"DetrConfig: unknown key {key!r}; {did_you_mean(key, self.own_keys())}")
        self._check_values()
        if isinstance(self.dtype, str) and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(
                f"dtype: got {self.dtype!r}, expected a floating-point type of PyTorch, such as 'float32'."
            )
        _check_num_labels(kwargs.get("num_labels"))
        if self.id2label is not None:
            _check_labels(self.id2label, kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: int(label) for label, name in self.id2label.items()}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """Reads `config.json`; one of Transformers' own DETR is translated to our keys.

        Returns:
            The content, and the arguments that were not used.

        Raises:
            ValueError: The file belongs to another kind of model, or to a DETR that cannot be computed here.
        """
        values, unused = cls.saved_values(pretrained_model_name_or_path, **kwargs)
        return config_under_our_keys(values, str(pretrained_model_name_or_path)), unused

    @classmethod
    def saved_values(cls, source: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """Reads `config.json` as it is, under the keys of whichever model it belongs to.

        Returns:
            The content, and the arguments that were not used.

        Raises:
            ModelNotFoundError: `source` is a folder without a model.
            ValueError: The file cannot be parsed, or holds no keys.
        """
        folder = model_folder(source, kwargs.get("subfolder") or "")
        try:
            values, unused = super().get_config_dict(folder, **kwargs)
        except RecursionError as error:
            raise ValueError(f"{source}: config.json is nested too deeply to be a config.") from error
        except (AttributeError, TypeError) as error:  # the library takes the content for a dict
            raise ValueError(f"{source}: config.json holds no keys ({error}), expected a JSON object.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{source}: config.json holds no keys, expected a JSON object.")
        if not isinstance(quantization := values.get("quantization_config"), Mapping | None):
            raise ValueError(
                f"{source}: config.json has quantization_config {quantization!r}, expected a JSON object."
            )
        return values, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`; changes in `kwargs` are checked like the values in `config_dict`.

        Unknown keys of `config_dict` are kept and logged: Transformers and its tools write their own into files.

        Raises:
            ValueError: See the class.
        """
        known = cls._known_keys()
        config_dict = _without_note(config_dict)
        unknown = {key: value for key, value in config_dict.items() if key not in known}
        config_dict = {key: value for key, value in config_dict.items() if key in known}
        names = kwargs.pop("id2label", None)
        if names is not None:  # they replace the old names and the old number of labels
            _check_labels(names, kwargs.pop("num_labels", None))
            config_dict["id2label"] = {int(label): name for label, name in names.items()}
            config_dict["label2id"] = kwargs.pop("label2id", None)
        elif kwargs.get("num_labels") not in (None, len(config_dict.get("id2label") or {})):
            config_dict["id2label"] = config_dict["label2id"] = None  # other labels, without names
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config._check_values()  # the library sets what `kwargs` change without a check
        for key, value in unknown.items():
            _warn_of_unknown_key(key)
            setattr(config, key, value)
        return loaded

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """See `PreTrainedConfig.to_json_file`; adds the sentence for Transformers' own classes."""
        values = {**json.loads(self.to_json_string(use_diff=use_diff)), _NOTE_KEY: _NOTE}
        text = json.dumps(dict(sorted(values.items())), indent=2)
        Path(json_file_path).write_text(f"{text}\n", encoding="utf-8")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their labels, without "no object"."""
        return tuple(str(name) for _, name in sorted((self.id2label or {}).items()))

    @property
    def num_classes(self) -> int:
        """Number of classes without "no object"; `num_labels`, but never None."""
        return len(self.id2label or {})

    @classmethod
    def own_keys(cls) -> list[str]:
        """The keys of a DETR, without those that every model of Transformers has."""
        return [*cls.__annotations__, *cls.attribute_map, "num_labels", "id2label", "label2id"]

    @classmethod
    def _known_keys(cls) -> set[str]:
        """Keys that may be passed. Transformers stores any other key, so misspelt ones would be ignored silently."""
        return {*(field.name for field in fields(cls)), *cls.attribute_map, *_LIBRARY_KEYS, *_saved_library_keys()}

    def _check_values(self) -> None:
        self._check_ranges()
        self._check_widths()
        if self.position_embedding_type not in ("sine", "learned"):
            raise ValueError(
                f"position_embedding_type: got {self.position_embedding_type!r}, expected 'sine' or 'learned'."
            )
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"activation_function: unknown name {self.activation_function!r}; "
                f"{did_you_mean(self.activation_function, ACT2FN)}"
            )
        check_backbone(self.backbone, self.backbone_kwargs)
        if len(set(self.stuff_labels)) < len(self.stuff_labels) or any(label < 0 for label in self.stuff_labels):
            raise ValueError(f"stuff_labels: got {list(self.stuff_labels)}, expected distinct labels of classes.")
        if self.out_indices is not None and list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(f"out_indices: got {list(self.out_indices)}, expected ascending indices without repeats.")

    def _check_ranges(self) -> None:
        for minimum, names in _MINIMUMS.items():
            for name in names:
                if getattr(self, name) < minimum:
                    raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {minimum}.")
        for maximum, names in _MAXIMUMS.items():
            for name in names:
                if getattr(self, name) > maximum:
                    raise ValueError(f"{name}: got {getattr(self, name)}, expected at most {maximum}.")
        self._check_weights()
        if self.position_temperature <= 1:
            raise ValueError(f"position_temperature: got {self.position_temperature}, expected a number above 1.")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a probability in [0, 1).")

    def _check_weights(self) -> None:
        """Checks the number of weights, which may be absurd though each key is within its range."""
        width = self.d_model
        encoder = self.encoder_layers * (4 * width + 2 * self.encoder_ffn_dim) * width
        decoder = self.decoder_layers * (8 * width + 2 * self.decoder_ffn_dim) * width
        tables = (self.num_queries + self.num_classes + 2 * self.learned_position_grid) * width
        if encoder + decoder + tables > _MOST_TRANSFORMER_WEIGHTS:
            raise ValueError(
                f"d_model={width} with {self.encoder_layers} + {self.decoder_layers} layers and {self.num_queries} "
                f"queries: the transformer would have {encoder + decoder + tables:,} weights, expected at most "
                f"{_MOST_TRANSFORMER_WEIGHTS:,}."
            )

    def _check_widths(self) -> None:
        for part in ("encoder", "decoder"):
            heads = getattr(self, f"{part}_attention_heads")
            if heads < 1 or self.d_model % heads:
                raise ValueError(
                    f"d_model={self.d_model} is not divisible by {part}_attention_heads={heads}; choose a number "
                    f"of heads that divides d_model, such as 8."
                )
        divisor = 2 if self.position_embedding_type == "learned" else 4
        if self.d_model % divisor:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by {divisor}; the {self.position_embedding_type} position "
                f"embedding splits it between rows and columns; choose a multiple of {divisor}."
            )


def _without_note(values: Mapping[str, Any]) -> dict[str, Any]:
    """Config values without the sentence for Transformers' own classes."""
    return {key: value for key, value in values.items() if key != _NOTE_KEY or not isinstance(value, str)}


def check_backbone(name: str, options: Mapping[str, Any] | None) -> None:
    """Checks that a backbone's name and options describe an architecture and nothing else.

    Args:
        name: The key `backbone`.
        options: The key `backbone_kwargs`.

    Raises:
        ValueError: The name is a place rather than a timm model, or an option is not one of the architecture's.
    """
    if not _BACKBONE_NAME.fullmatch(name):
        raise ValueError(
            f"backbone: got {name!r}, expected the name of a timm model, such as 'resnet50'; a folder or a repository "
            f"cannot be a backbone. Load its weights with DetrModel.load_backbone_weights."
        )
    for option, value in (options or {}).items():
        if option in _RESERVED_BACKBONE_KWARGS:
            raise ValueError(f"backbone_kwargs: {option!r} is not allowed; {_RESERVED_BACKBONE_KWARGS[option]}.")
        if option not in _BACKBONE_OPTIONS:
            raise ValueError(
                f"backbone_kwargs: {option!r} is not allowed, because it is not an option of the architecture; "
                f"{did_you_mean(option, sorted(_BACKBONE_OPTIONS))}"
            )
        largest = _MOST_BACKBONE_LAYERS if option in _OPTIONS_THAT_COUNT_LAYERS else _LARGEST_BACKBONE_NUMBER
        _check_backbone_value(option, value, largest)


def _check_backbone_value(option: str, value: Any, largest: int) -> None:
    """Raises a ValueError unless `value` consists of numbers up to `largest` and plain words."""
    if isinstance(value, Mapping | list | tuple):
        entries = [*value, *value.values()] if isinstance(value, Mapping) else value
        for entry in entries:
            _check_backbone_value(option, entry, largest)
        return
    is_number = value is None or (isinstance(value, int | float) and abs(value) <= largest)
    if not is_number and not (isinstance(value, str) and _BACKBONE_NAME.fullmatch(value)):
        raise ValueError(
            f"backbone_kwargs: {option} has the value {str(value)[:80]!r}, expected numbers up to {largest} and plain "
            f"words."
        )


@functools.cache
def _saved_library_keys() -> frozenset[str]:
    """The keys that this version of Transformers writes into every config."""
    return frozenset(PreTrainedConfig().to_dict())


@functools.cache  # one config is read several times on its way into a model
def _warn_of_unknown_key(key: str) -> None:
    _logger.warning("config.json: unknown key '%s' is kept, but has no effect on the model.", printable(key))


def _check_num_labels(num_labels: object) -> None:
    """Raises a ValueError if `num_labels` is no number of classes; Transformers makes up a name for each."""
    if num_labels is not None and not (isinstance(num_labels, int) and 0 <= num_labels <= _MOST_LABELS):
        raise ValueError(f"num_labels: got {num_labels!r}, expected a number of classes, at most {_MOST_LABELS}.")


def _check_labels(id2label: Mapping[Any, str], num_labels: int | None) -> None:
    """Raises a ValueError unless labels are 0…C-1, and as many as `num_labels` if that is given."""
    _check_num_labels(len(id2label))
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(
            f"num_labels is {num_labels}, but id2label has {len(id2label)} entries; omit num_labels, or make them "
            f"agree."
        )
    expected = f"expected 0…{len(id2label) - 1}, one label per row of the class head"
    try:
        labels = {int(label) for label in id2label}
    except (TypeError, ValueError) as error:
        raise ValueError(f"id2label: a label is not an integer ({error}); {expected}.") from error
    missing = sorted(set(range(len(id2label))) - labels)
    if missing:
        raise ValueError(f"id2label: {len(id2label)} entries, but none for label {missing[0]}; {expected}.")


def config_under_our_keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The content of a `config.json` under our keys; changes to a stock model's settings are logged.

    Args:
        values: The content. Our own is returned as it is.
        source: Where it comes from, for messages.

    Raises:
        ValueError: The content belongs to another kind of model, or to a DETR that cannot be computed here.
    """
    model_type = values.get("model_type", DetrConfig.model_type)
    if model_type == DetrConfig.model_type:
        return dict(values)
    if model_type != STOCK_MODEL_TYPE:
        raise ValueError(
            f"{source}: config.json has model_type {model_type!r}, expected '{DetrConfig.model_type}', or "
            f"'{STOCK_MODEL_TYPE}' (Transformers' own DETR)."
        )
    training_defaults = {key: getattr(DetrConfig, key) for key in TRAINING_KEYS}
    return {**translate_stock_config(values, source, training_defaults), "model_type": DetrConfig.model_type}


# A saved model names the hub files that it needs, so trust_remote_code can load it without this package
DetrConfig.register_for_auto_class()


__all__ = ["DetrConfig"]
