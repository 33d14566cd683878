"""Training aids: parts that a DETR has only during training, which help it to learn from little data.

An aid is one file in this package and one entry in `AIDS`. Supervising aids are modules beside the detector in a
`TrainingModel` and add terms to its loss, or change its matching; initialising aids change the weights of a new model
before training. The exported model is the plain DETR.

A plug-in adds an aid with `AIDS["my_aid"] = Aid(key="my_aid", supervise=…)`. It is active if the recipe has this key
and its value is neither false nor 0; `recipe.PLUGIN_KEYS` adds the key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.errors_detr import did_you_mean
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.segmentation_detr import Detector
from modeling_detr.training.aids.anchored_matching import AnchoredMatching
from modeling_detr.training.aids.denoising import Denoising
from modeling_detr.training.aids.encoder_supervision import EncoderSupervision
from modeling_detr.training.aids.local_start import start_local
from modeling_detr.training.aids.teacher import Teacher
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid
from modeling_detr.training.aids.training_model import TrainingModel


__all__ = ["AIDS", "Aid", "AidedBatch", "TrainingAid", "TrainingModel", "active_aids", "build_training_model"]


@dataclass(frozen=True)
class Aid:
    """A kind of training aid.

    Attributes:
        key: The recipe key that activates it.
        supervise: Builds its module from the detector's config, the key's value, and the options by name; None if it
            has no module.
        initialize: Changes the weights of a new detector before training; None if it does not.
        options: Further recipe keys that its module depends on.
    """

    key: str
    supervise: Callable[..., TrainingAid] | None = None
    initialize: Callable[[DetrForObjectDetection], None] | None = None
    options: tuple[str, ...] = ()


def _encoder_supervision(config: DetrConfig, _active: bool) -> TrainingAid:
    return EncoderSupervision(float(config.eos_coefficient))


def _denoising(config: DetrConfig, num_groups: int) -> TrainingAid:
    return Denoising(config.num_classes, config.d_model, num_groups, float(config.position_temperature))


def _teacher(config: DetrConfig, _source: str, teacher_weight: float = 1.0) -> TrainingAid:
    return Teacher(float(config.eos_coefficient), teacher_weight)


def _anchored_matching(config: DetrConfig, distance_cost: float) -> TrainingAid:
    return AnchoredMatching(config.num_queries, distance_cost)


# Name, which is also the prefix of its parameters in a checkpoint → aid. Their losses are added in this order.
AIDS: dict[str, Aid] = {
    "encoder_supervision": Aid(key="encoder_supervision", supervise=_encoder_supervision),
    "denoising": Aid(key="denoising_groups", supervise=_denoising),
    "teacher": Aid(key="teacher", supervise=_teacher, options=("teacher_weight",)),
    "anchored_matching": Aid(key="anchored_matching", supervise=_anchored_matching),
    "local_start": Aid(key="local_start", initialize=start_local),
}


def active_aids(recipe: object) -> dict[str, Any]:
    """Return key and value of the aids that a recipe activates, and of their options."""
    active = [aid for aid in AIDS.values() if getattr(recipe, aid.key, None)]
    return {key: getattr(recipe, key) for aid in active for key in (aid.key, *aid.options)}


def build_training_model(detector: Detector, **settings: Any) -> TrainingModel:
    """Build the module that trains: `detector` with the supervising aids that are active.

    Args:
        detector: The plain DETR.
        **settings: Recipe keys of aids and their values, such as `denoising_groups=3`; see `active_aids`.

    Raises:
        ValueError: No aid has such a key.
    """
    keys = [key for aid in AIDS.values() for key in (aid.key, *aid.options)]
    for key in settings:
        if key not in keys:
            raise ValueError(f"{key}: not the key of a training aid; {did_you_mean(key, keys)}")
    aids = {
        name: aid.supervise(
            detector.config, settings[aid.key], **{key: settings[key] for key in aid.options if key in settings}
        )
        for name, aid in AIDS.items()
        if aid.supervise is not None and settings.get(aid.key)
    }
    return TrainingModel(detector, aids)


def initialize_new_model(detector: DetrForObjectDetection, recipe: object) -> None:
    """Apply the initialising aids that a recipe activates to a new detector.

    Raises:
        ValueError: The detector's config does not suit an aid.
    """
    active = active_aids(recipe)
    for aid in AIDS.values():
        if aid.initialize is not None and aid.key in active:
            aid.initialize(detector)
