"""`detr train auto`: a recipe for the data, the model to start from, the machine and the time.

Each key is chosen by a small function in `CHOICES`, which returns a value and the reason, or None to leave the key to
the base recipe. To choose another key, write a function and add a line. A plug-in does the same:
`CHOICES["my_key"] = my_function`.
"""

from collections.abc import Callable

from modeling_detr.training.auto.image_choices import mosaic_probability, no_flip_classes, size, transform
from modeling_detr.training.auto.model_choices import (
    backbone,
    backbone_weights,
    eos_coefficient,
    freeze_batch_norm,
    mask_weight,
    num_queries,
    stride,
)
from modeling_detr.training.auto.optimizer_choices import (
    backbone_learning_rate,
    batch_size,
    ema_decay,
    learning_rate,
    mixed_precision,
    num_workers,
    warmup_steps,
)
from modeling_detr.training.auto.schedule_choices import (
    checkpoint_every_epochs,
    epochs,
    eval_every_epochs,
    lr_drop_epochs,
    max_steps,
)
from modeling_detr.training.auto.situation import Choice, Situation


def for_new_models(value: object, reason: str) -> Callable[[Situation], Choice | None]:
    """A choice that is the same for all new models."""
    return lambda situation: Choice(value, reason) if situation.is_new else None


# Recipe key → how it is chosen, in this order: a function sees the choices before it. `size` and `epochs` measure the
# speed, so what a step costs comes before them, and what depends on the number of steps comes after them.
CHOICES: dict[str, Callable[[Situation], Choice | None]] = {
    "model_config.backbone": backbone,
    "backbone_weights": backbone_weights,
    "model_config.freeze_batch_norm": freeze_batch_norm,
    "model_config.freeze_backbone_stem": freeze_batch_norm,
    "model_config.out_indices": stride,
    "model_config.num_queries": num_queries,
    "model_config.eos_coefficient": eos_coefficient,
    "model_config.mask_loss_coefficient": mask_weight,
    "model_config.dice_loss_coefficient": mask_weight,
    "encoder_supervision": for_new_models(True, "more supervision for the encoder: fewer epochs"),
    "denoising_groups": for_new_models(3, "the decoder learns to place boxes from noised true ones: fewer epochs"),
    "local_start": for_new_models(True, "each query starts by reading a place of its own: fewer epochs"),
    "anchored_matching": for_new_models(10.0, "objects go to queries that start near them: fewer duplicates"),
    "transform": transform,
    "no_flip_classes": no_flip_classes,
    "batch_size": batch_size,
    "learning_rate": learning_rate,
    "backbone_learning_rate": backbone_learning_rate,
    "mixed_precision": mixed_precision,
    "num_workers": num_workers,
    "processor_config.size": size,
    "epochs": epochs,
    "max_steps": max_steps,
    "mosaic_probability": mosaic_probability,
    "eval_every_epochs": eval_every_epochs,
    "checkpoint_every_epochs": checkpoint_every_epochs,
    "lr_drop_epochs": lr_drop_epochs,
    "ema_decay": ema_decay,
    "warmup_steps": warmup_steps,
}
