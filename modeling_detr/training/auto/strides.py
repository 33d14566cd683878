"""The strides of a backbone's feature maps: how many pixels a cell of each is wide."""

import functools
import json
from typing import Any

from modeling_detr.backbone_detr import create_timm_backbone
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.training.auto.situation import Situation


_USUAL = 16


def strides(situation: Situation) -> list[int]:
    """The strides of all feature maps of the backbone that is chosen so far."""
    kwargs = situation.get("model_config.backbone_kwargs")
    return _strides(situation.settings["model_config.backbone"], json.dumps(kwargs))


def chosen_stride(situation: Situation) -> int:
    """The stride of the feature map that the transformer reads."""
    indices = situation.get("model_config.out_indices")
    return strides(situation)[indices[-1]] if indices else _USUAL


@functools.cache
def _strides(backbone: str, kwargs: str) -> list[int]:
    settings = {"backbone": backbone, "backbone_kwargs": json.loads(kwargs)}
    features: Any = create_timm_backbone(DetrConfig(**{key: value for key, value in settings.items() if value}))
    return [int(feature["reduction"]) for feature in features.feature_info.info]  # of all maps, computed or not
