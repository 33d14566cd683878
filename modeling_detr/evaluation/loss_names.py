"""The losses of an evaluation in plain words: `loss_ce_0` is the classification loss of the first decoder layer."""

import re
from collections.abc import Mapping

from modeling_detr.evaluation.metrics import MetricTable


EARLIER_LAYERS = "Losses of the earlier decoder layers"
LOSS_NAMES = {
    "loss": "total",
    "loss_ce": "classification (cross-entropy)",
    "loss_bbox": "boxes (L1)",
    "loss_giou": "boxes (generalised IoU)",
    "loss_mask": "masks (focal)",
    "loss_dice": "masks (Dice)",
    "class_error": "matched objects with the wrong class, %",
    "cardinality_error": "objects too many or too few, per image",
}
"""Name in the log → what it is. Others are shown under their own name."""


def loss_tables(losses: Mapping[str, float]) -> list[MetricTable]:
    """A table of the losses of the last decoder layer, and one of the layers before it; none without losses.

    Args:
        losses: Name → loss; the names of earlier layers end in `_0`, `_1` and so on.
    """
    last: dict[str, float] = {}
    earlier: dict[str, dict[int, float]] = {}
    for name, loss in losses.items():
        match = re.fullmatch(r"(.+)_(\d+)", name)
        if match:
            earlier.setdefault(match[1], {})[int(match[2])] = loss
        else:
            last[name] = loss
    tables = []
    if last:
        rows = [(LOSS_NAMES.get(name, name), name, f"{loss:.4f}") for name, loss in last.items()]
        tables.append(MetricTable("Losses", ("loss", "name in the log", "average"), rows))
    if earlier:
        layers = sorted({layer for values in earlier.values() for layer in values})
        header = ("loss", *(f"layer {layer + 1}" for layer in layers))
        by_layer = [
            (LOSS_NAMES.get(name, name), *(f"{values[layer]:.4f}" if layer in values else "" for layer in layers))
            for name, values in earlier.items()
        ]
        tables.append(MetricTable(EARLIER_LAYERS, header, by_layer))
    return tables
