"""Choices of `detr train auto` about steps: batches, learning rates, the average of the weights, precision."""

import math

from modeling_detr.data.findings import counted
from modeling_detr.training.auto.situation import Choice, Situation


# Of runs on 292 images of blood cells; see "What helps" in docs/results.md.
_RATE, _RATE_BATCH, _RATE_WIDTH = 7e-4, 4, 128
_MOST_RATE = 2e-3
_FINE_TUNING_RATE, _FINE_TUNING_WIDTH = 5e-5, 256  # of the recipe `finetune`
_BACKBONE_SHARE, _TRAINED_BACKBONE_SHARE = 0.5, 0.1
_SMALL_DATA, _LARGE_DATA = 1000, 10_000  # images
_MOST_LOADERS = 8


def batch_size(situation: Situation) -> Choice:
    """Small batches: more steps help a DETR more than smoother ones, until there are many images."""
    images = max(1, situation.data.num_images // situation.num_processes)
    if images < 8:
        return Choice(max(1, images // 2), f"only {counted(situation.data.num_images, 'image')}")
    if situation.device == "cpu":
        return Choice(2, "on a CPU, an image costs hardly more in a small batch, and more steps help more")
    if images <= _SMALL_DATA or not situation.is_new:
        return Choice(4, "small data: more steps help more than smoother ones")
    if images <= _LARGE_DATA:
        return Choice(8, f"{situation.data.num_images:,} images give enough steps")
    return Choice(16, f"{situation.data.num_images:,} images give enough steps, and large batches use a GPU well")


def learning_rate(situation: Situation) -> Choice:
    """The measured rate, scaled by the root of the images per step, which suits AdamW, and by the width."""
    images = situation.images_per_step
    if situation.pretrained is not None:
        width = int(situation.pretrained.d_model)
        rate = _FINE_TUNING_RATE * _FINE_TUNING_WIDTH / width
        reason = "low, since the model is trained"
        return Choice(
            _short(rate), reason if width == _FINE_TUNING_WIDTH else f"{reason}; higher for a width of {width}"
        )
    width = int(situation.get("model_config.d_model", _FINE_TUNING_WIDTH))
    rate = min(_MOST_RATE, _RATE * math.sqrt(images / _RATE_BATCH) * min(1.0, _RATE_WIDTH / width))
    scaled = "" if images == _RATE_BATCH and width == _RATE_WIDTH else "; scaled from it"
    return Choice(_short(rate), f"{_RATE:g} worked with batches of {_RATE_BATCH} in a measured run{scaled}")


def backbone_learning_rate(situation: Situation) -> Choice:
    """The other rate for a new backbone, half of it for one from ImageNet, a tenth for that of a detector."""
    rate = float(situation.settings["learning_rate"])
    if situation.is_new and not situation.get("backbone_weights"):
        return Choice(rate, "the backbone starts from random weights, like the rest")
    if not situation.is_new:
        return Choice(_short(_TRAINED_BACKBONE_SHARE * rate), "a tenth, as in the original: the backbone is trained")
    return Choice(
        _short(_BACKBONE_SHARE * rate), "half; on blood cells, AP .28 instead of .26 with a seventh, one run each"
    )


def mixed_precision(situation: Situation) -> Choice | None:
    """Brain floats where the device is faster with them."""
    return Choice("bf16", "faster on this GPU; boxes and losses stay in float32") if situation.has_bf16 else None


def num_workers(situation: Situation) -> Choice:
    """Loader processes: they compete with training for a CPU's cores, and feed a GPU from them."""
    cores = situation.cores
    if situation.device == "cpu":
        return Choice(1, f"{cores} CPU {'core' if cores == 1 else 'cores'} to share with training")
    return Choice(max(1, min(_MOST_LOADERS, cores - 1)), f"{cores} CPU cores for each process")


def ema_decay(situation: Situation) -> Choice:
    """An average over about the last fifth of the run."""
    decay = min(0.9998, max(0.9, 1 - 5 / situation.total_steps))
    decay = round(decay, 4 if decay > 0.999 else 3 if decay > 0.99 else 2)
    return Choice(
        decay, f"averages about the last fifth of {counted(situation.total_steps, 'step')}; .999 was measured on 5,110"
    )


def warmup_steps(situation: Situation) -> Choice | None:
    """A hundredth of the run, within bounds."""
    if situation.get("warmup_epochs"):
        return None
    steps = min(500, max(10, round(situation.total_steps / 100)))
    return Choice(steps, "a hundredth of the run, from 10 to 500")


def _short(rate: float) -> float:
    return float(f"{rate:.2g}")
