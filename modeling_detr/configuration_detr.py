"""What the weights of a DETR mean: `DetrConfig`, saved as `config.json`.

Only what decides the function that the weights compute, and the coefficients of its loss, live here. How images become
pixels is the image processor's (`preprocessor_config.json`), how one run trains is the recipe's (`configs/*.yaml`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .stock_detr import KEY_ALIASES, STOCK_MODEL_TYPE, TRAINING_KEYS, translate_stock_config


# What `PreTrainedConfig` takes beside its declared fields, and what it writes into a saved config.
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
    "torch_dtype",
    "transformers_version",
}

_LEAST = {
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

# Arguments of `timm.create_model` that other keys decide
_KEYS_OF_THE_BACKBONE = {
    "model_name": "which the key backbone says",
    "pretrained": "but building from a config never downloads; load weights by DetrModel.load_backbone_weights",
    "features_only": "but feature maps are what is needed",
    "in_chans": "which the key num_channels says",
    "out_indices": "which the key out_indices says",
    "output_stride": "which the key dilation says",
}


@strict
class DetrConfig(PreTrainedConfig):
    """Configuration of `DetrModel` and the models built on it; the defaults are the paper's DETR-R50.

    Paper: sec. 3 and A.4. Original: main.py, `get_args_parser`.

    Attributes:
        backbone: Name of a timm model that offers `features_only`. Building from a config never downloads weights.
        backbone_kwargs: Further arguments of `timm.create_model`, e.g. `{"channels": [16, 32, 64, 128]}`.
        out_indices: Which feature maps of the backbone are computed, in ascending order; the transformer reads the
            last, segmentation four. None: only the deepest, for segmentation the last four.
        num_channels: Channels of the input image.
        dilation: Replace the stride of the backbone's last stage by dilation (DC5): twice the resolution.
        freeze_batch_norm: Batch norms of the backbone use their stored statistics and never train, as in the original.
            A backbone trained from random weights needs False.
        freeze_backbone_stem: Everything up to and including the stride-4 feature map does not train, as in the
            original. A backbone trained from random weights needs False.
        num_queries: Object queries, the largest number of objects found in one image.
        d_model: Width of the transformer; even, and divisible by both numbers of heads.
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
        position_temperature: Ratio of the longest to the shortest wave length of the sine positions. The original's
            10,000 leaves most channels nearly constant over an image; 20 makes positions easier to tell apart, so that
            small datasets with many alike objects start much earlier.
        learned_position_grid: Rows and columns of the learned position table, the largest feature map it can serve.
        auxiliary_loss: Apply the heads and the loss to every decoder layer.
        class_cost: Weight of the class probability in the matching cost.
        bbox_cost: Weight of the L1 box distance in the matching cost.
        giou_cost: Weight of the generalised IoU in the matching cost.
        bbox_loss_coefficient: Weight of the L1 box loss.
        giou_loss_coefficient: Weight of the generalised IoU loss.
        mask_loss_coefficient: Weight of the focal mask loss (panoptic).
        dice_loss_coefficient: Weight of the dice mask loss (panoptic).
        eos_coefficient: Weight of the class "no object" in the classification loss.
        stuff_labels: Labels of classes without single objects (sky, grass), of which all segments of an image are one
            (panoptic). All others are things.

    Raises:
        ValueError: A key is unknown (the nearest known one is named), or values do not fit each other.
    """

    model_type = "modeling_detr"
    attribute_map = KEY_ALIASES

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

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks the keys and that the values fit each other; see the class for what is raised."""
        self._refuse_unknown_keys(kwargs)
        self._check_values()
        if self.id2label is not None:
            _check_labels(self.id2label, kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: int(label) for label, name in self.id2label.items()}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """What `config.json` says, under our keys if it is of Transformers' own DETR; and the arguments left over.

        Raises:
            ValueError: It is of another kind of model, or of a DETR that cannot be computed here.
        """
        said, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return config_under_our_keys(said, str(pretrained_model_name_or_path)), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """`PreTrainedConfig.from_dict`; the changes in `kwargs` are checked as the values in the dict are.

        Raises:
            ValueError: See the class.
        """
        config_dict, names = dict(config_dict), kwargs.pop("id2label", None)
        if names is not None:  # the old names go with the old number of labels
            _check_labels(names, kwargs.pop("num_labels", None))
            config_dict["id2label"] = {int(label): name for label, name in names.items()}
            config_dict["label2id"] = kwargs.pop("label2id", None)
        elif kwargs.get("num_labels") not in (None, len(config_dict.get("id2label") or {})):
            config_dict["id2label"] = config_dict["label2id"] = None  # other labels, whose names nobody has said
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config._check_values()  # the library sets what `kwargs` change without a check
        return loaded

    def _refuse_unknown_keys(self, extra: dict[str, Any]) -> None:
        """The library stores any key it does not know; a misspelt option would then be ignored without a word."""
        library = _LIBRARY_KEYS | set(PreTrainedConfig().to_dict())  # what this version of it writes into every file
        known = {field.name for field in fields(self)} | set(self.attribute_map) | library
        for key in extra:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
                raise ValueError(f"DetrConfig has no key '{key}'{hint}")

    def _check_values(self) -> None:
        for part in ("encoder", "decoder"):
            heads = getattr(self, f"{part}_attention_heads")
            if heads < 1 or self.d_model % heads:
                raise ValueError(
                    f"d_model={self.d_model} is not divisible by {part}_attention_heads={heads}; every head needs the "
                    f"same width. Change one of them."
                )
        if self.position_embedding_type not in ("sine", "learned"):
            raise ValueError(
                f"position_embedding_type is '{self.position_embedding_type}'; wanted 'sine' or 'learned'."
            )
        divisor = 4 if self.position_embedding_type == "sine" else 2
        if self.d_model % divisor:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by {divisor}; the {self.position_embedding_type} position "
                f"embedding splits it between rows and columns."
            )
        for least, names in _LEAST.items():
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(f"{name} is {getattr(self, name)}; wanted at least {least}.")
        if self.activation_function not in ACT2FN:
            nearest = difflib.get_close_matches(self.activation_function, ACT2FN, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else "wanted a name of Transformers' ACT2FN."
            raise ValueError(f"activation_function is '{self.activation_function}'; {hint}")
        for name in set(self.backbone_kwargs or {}) & set(_KEYS_OF_THE_BACKBONE):
            raise ValueError(f"backbone_kwargs has '{name}', {_KEYS_OF_THE_BACKBONE[name]}.")
        if self.position_temperature <= 1:
            raise ValueError(f"position_temperature is {self.position_temperature}; wanted a number above 1.")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a probability in [0, 1).")
        if len(set(self.stuff_labels)) < len(self.stuff_labels) or any(label < 0 for label in self.stuff_labels):
            raise ValueError(f"stuff_labels is {list(self.stuff_labels)}; wanted labels of classes, each once.")
        if self.out_indices is not None and list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(f"out_indices is {list(self.out_indices)}; wanted ascending and without repeats.")


def _check_labels(id2label: Mapping[Any, str], num_labels: int | None) -> None:
    """Refuses labels that are not 0…C-1, or not as many as `num_labels` says."""
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(
            f"num_labels is {num_labels}, but id2label has {len(id2label)} entries; leave num_labels out, or make "
            f"them agree."
        )
    try:
        labels = sorted(int(label) for label in id2label)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"id2label has a key that is no whole number ({error}); wanted 0…{len(id2label) - 1}."
        ) from error
    lacking = sorted(set(range(len(labels))) - set(labels))
    if lacking:
        raise ValueError(
            f"id2label has {len(labels)} entries, but none for the label {lacking[0]}; wanted 0…{len(labels) - 1}, "
            f"the rows of the class head."
        )


def config_under_our_keys(said: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The content of a `config.json` as keys of `DetrConfig`; what is changed of a stock model is logged.

    Args:
        said: The content. What `DetrConfig` wrote is returned as it is.
        source: Where it comes from, for messages.

    Raises:
        ValueError: It is of another kind of model, or of a DETR that cannot be computed here.
    """
    model_type = said.get("model_type", DetrConfig.model_type)
    if model_type == DetrConfig.model_type:
        return dict(said)
    if model_type != STOCK_MODEL_TYPE:
        raise ValueError(
            f"{source}: config.json has model_type '{model_type}', expected '{DetrConfig.model_type}', or "
            f"'{STOCK_MODEL_TYPE}' (Transformers' own DETR)."
        )
    training_defaults = {key: getattr(DetrConfig, key) for key in TRAINING_KEYS}
    return {**translate_stock_config(said, source, training_defaults), "model_type": DetrConfig.model_type}


__all__ = ["DetrConfig"]
