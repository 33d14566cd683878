"""Choices of `detr train auto` about the model: backbone, stride, queries, and what only masks need."""

import math
from pathlib import Path

import timm

from modeling_detr.backbone_detr import is_weights_file
from modeling_detr.data.findings import counted
from modeling_detr.training.auto.image_choices import COARSEST_CELLS, largest_edge
from modeling_detr.training.auto.situation import Choice, Situation
from modeling_detr.training.auto.strides import strides


SMALL_BACKBONE = "tf_efficientnet_lite0"
_ROUND_TO = 10  # queries
_FEWEST_QUERIES = 20
_TWICE_UP_TO = 300  # queries; for more objects, fewer are spare, since attention grows with their square
_MOST_QUERIES = 1500
_LEAST_EOS, _MOST_EOS = 0.1, 0.5  # the original's, and little more than what was measured


def backbone(situation: Situation) -> Choice | None:
    """The architecture of the backbone: that of the weights the user gives, or a small one."""
    if not situation.is_new:
        return None
    weights = situation.settings.get("backbone_weights", "")
    if weights:
        name = Path(weights).stem if is_weights_file(weights) else weights
        name = name.split(".")[0]
        if timm.is_model(name):
            return Choice(name, "the backbone that backbone_weights belongs to")
        return Choice(SMALL_BACKBONE, "the usual one; if backbone_weights is another's, give model_config.backbone")
    return Choice(SMALL_BACKBONE, "small, and measured on small datasets")


def backbone_weights(situation: Situation) -> Choice | None:
    """The weights of a new model's backbone: those that timm has for it."""
    if not situation.is_new:
        return None
    name = str(situation.get("model_config.backbone"))
    pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if pretrained is None or situation.get("model_config.backbone_kwargs"):
        return Choice(None, "timm has no weights for this backbone, which starts from random ones")
    tagged = name if "." in name else f"{name}.{pretrained.tag}".rstrip(".")
    return Choice(tagged, "few images do not suffice to learn a backbone (none: random weights)")


def freeze_batch_norm(situation: Situation) -> Choice | None:
    """Batch norms of random weights must learn."""
    if not situation.is_new or situation.get("backbone_weights"):
        return None
    return Choice(False, "nothing is pretrained, so nothing can be frozen")


def stride(situation: Situation) -> Choice | None:
    """The feature map that the transformer reads: stride 16, or 8 if the objects are too small for it."""
    if not situation.is_new:
        return None
    name, side = f"objects of class '{situation.data.smallest_class}'", situation.data.small_side
    edge = largest_edge(situation)
    chosen = 16 if side * edge >= COARSEST_CELLS * 16 else 8
    available = strides(situation)
    chosen = min(available, key=lambda one: (abs(math.log2(one / chosen)), one))
    index = available.index(chosen)
    if chosen == 8:
        reason = f"{name} are {side * edge:.0f} pixels wide in the largest images to train on, too few for stride 16"
    else:
        reason = "the original's 32 is too coarse for small objects and exact boxes"
    if not situation.has_masks:
        return Choice([index], reason, f"stride {chosen}")
    first = max(0, index - 3)
    maps = [*range(first, first + 4)]
    return Choice(
        maps, "masks need four feature maps; the transformer reads the last", f"stride {available[maps[-1]]}"
    )


def num_queries(situation: Situation) -> Choice | None:
    """Twice as many queries as objects, so that each object finds one nearby; fewer spare ones in crowded images."""
    data = situation.data
    most, basis = data.most_objects, f"at most {counted(data.most_objects, 'object')} per image"
    if most > _TWICE_UP_TO and most > 3 * data.usual_most_objects:
        most, basis = data.usual_most_objects, f"99% of the images have at most {data.usual_most_objects:,} objects"
    if not situation.is_new:
        has = int(situation.pretrained.num_queries) if situation.pretrained is not None else 0
        if most <= has:
            return None
        return Choice(_rounded(1.25 * most), f"{basis}, and the model has {has:,} queries")
    wanted = _rounded(max(2 * most, _FEWEST_QUERIES))
    if wanted <= _TWICE_UP_TO:
        floor = (
            f"; at least {_FEWEST_QUERIES}, so that one is near each object"
            if 2 * most < _FEWEST_QUERIES
            else "; twice that"
        )
        return Choice(wanted, basis + floor)
    wanted = _rounded(max(_TWICE_UP_TO, 1.25 * most))
    if wanted > _MOST_QUERIES:
        return Choice(_MOST_QUERIES, f"{basis}; more queries take too much memory. Cut the images into tiles")
    return Choice(wanted, f"{basis}; a quarter more, since attention grows with their square")


def eos_coefficient(situation: Situation) -> Choice | None:
    """The weight of "no object": about that of the objects, for the queries that find none."""
    if not situation.is_new:
        return None
    objects, queries = situation.data.median_objects, int(situation.get("model_config.num_queries"))
    weight = min(_MOST_EOS, max(_LEAST_EOS, objects / max(1, queries - objects)))
    return Choice(
        float(f"{weight:.1g}"),
        f"of {queries} queries, {objects} have an object in the median image; the others should weigh as much",
    )


def _rounded(number: float) -> int:
    return _ROUND_TO * math.ceil(number / _ROUND_TO)


def mask_weight(situation: Situation) -> Choice | None:
    """The weight of the mask losses of a new model."""
    if not situation.is_new or not situation.has_masks:
        return None
    return Choice(5, "with 1, the losses of the training aids would outweigh the masks")
