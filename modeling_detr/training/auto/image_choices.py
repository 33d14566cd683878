"""Choices of `detr train auto` about images: their size and their augmentation."""

import math
import re
from collections.abc import Sequence

from modeling_detr.training.auto.situation import Choice, Situation
from modeling_detr.training.auto.strides import chosen_stride


# The sizes to choose from are those at which the smallest class covers between so many cells of the feature map.
COARSEST_CELLS, FINEST_CELLS = 1.0, 2.0
ENOUGH_STEPS = 5000  # measured: below, more steps help a new model more than larger images
_ENOUGH_FINE_TUNING_STEPS = 1000
_GRID = 32  # pixels
_SMALLEST_EDGE, _LARGEST_EDGE, _LONGEST_EDGE = 160, 800, 1333  # the last two are the original's
_MOST_CELLS = 4000  # of the encoder: its attention grows with their square
_MANY_EPOCHS = 40
_SIDES = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


def size(situation: Situation) -> Choice | None:
    """The largest useful size at which enough steps fit into the time."""
    if not situation.is_new:
        return _fine_tuning_size(situation)
    data, edges = situation.data, _edges(situation)
    enough = ENOUGH_STEPS
    edge, steps = _largest_with(situation, edges, enough)
    side = data.small_side * edge
    cells = side / chosen_stride(situation)
    name = f"'{data.smallest_class}' is" if len(data.classes) > 1 else "objects are"
    reason = f"{name} typically {side:.0f} pixels wide here, {cells:.1f} cells of the feature map"
    if cells < 0.95 * COARSEST_CELLS:
        reason += ": too small to be learnt well; cut the images into tiles"
    elif edge == edges[-1]:
        own = "the images' own size" if edge < data.shortest_edge + _GRID else "the smallest size that is used"
        reason += "; larger would cost time for little" if edge < data.shortest_edge else f"; {own}"
    elif edge == edges[0] and steps is not None and steps < enough:
        reason += f"; as small as they allow, since the time is short: about {steps:,} steps"
    elif steps is not None:
        reason += f"; about {steps:,} steps fit into the time, larger images would leave fewer than {enough:,}"
    return _as_choice(situation, edge, reason)


def largest_edge(situation: Situation) -> int:
    """The largest shortest edge worth considering: that of the images themselves, within the original's limits."""
    data = situation.data
    limit = min(_LARGEST_EDGE, _LONGEST_EDGE / data.aspect, max(data.shortest_edge, _SMALLEST_EDGE))
    return _GRID * max(1, round(limit / _GRID))


def _edges(situation: Situation) -> list[int]:
    """The shortest edges to choose from, ascending."""
    data, cell = situation.data, chosen_stride(situation)
    memory = math.sqrt(_MOST_CELLS / data.aspect) * cell
    top = _GRID * max(1, int(min(largest_edge(situation), memory) / _GRID))
    coarsest = math.ceil(max(_SMALLEST_EDGE, COARSEST_CELLS * cell / max(data.small_side, 1e-6)) / _GRID)
    finest = math.ceil(max(_SMALLEST_EDGE, FINEST_CELLS * cell / max(data.small_side, 1e-6)) / _GRID)
    edges = [_GRID * number for number in range(coarsest, finest + 1) if _GRID * number <= top]
    return edges or [top]


def _largest_with(situation: Situation, edges: Sequence[int], enough: int) -> tuple[int, int | None]:
    """The largest edge at which `enough` steps fit into the time, or the smallest; and its expected steps.

    The pace is measured at the smallest and scaled by the number of pixels.
    """
    if len(edges) == 1 or not situation.fills_time:
        return edges[-1], None
    measured = situation.measure({**situation.settings, "processor_config.size": _as_size(situation, edges[0])})
    budget = 0.9 * 60 * situation.minutes  # the rest is for evaluations
    expected = {edge: int(budget / (measured.step * (edge / edges[0]) ** 2)) for edge in edges}
    edge = max((edge for edge, steps in expected.items() if steps >= enough), default=edges[0])
    return edge, expected[edge]


def _fine_tuning_size(situation: Situation) -> Choice | None:
    """The size that the model was trained with, or a smaller one if the time is short."""
    if situation.pretrained_size is None:
        return None
    shortest, longest = situation.pretrained_size
    edges = sorted({_GRID * max(1, round(shortest * share / _GRID)) for share in (0.5, 0.64, 0.8)} | {shortest})
    edges = [edge for edge in edges if edge <= shortest]
    edge, steps = _largest_with(situation, edges, _ENOUGH_FINE_TUNING_STEPS)
    chosen = {"shortest_edge": edge, "longest_edge": longest and round(longest * edge / shortest)}
    if edge == shortest:
        return Choice(chosen, "the size that the model was trained with", f"shortest edge {edge}")
    reason = f"smaller than the model's {shortest}, since the time is short: about {steps:,} steps"
    return Choice(chosen, reason, f"shortest edge {edge}")


def _as_size(situation: Situation, edge: int) -> dict[str, int]:
    longest = _GRID * math.ceil(round(edge * situation.data.aspect, 3) / _GRID)
    return {"shortest_edge": edge, "longest_edge": max(edge, longest)}


def _as_choice(situation: Situation, edge: int, reason: str) -> Choice:
    chosen, data = _as_size(situation, edge), situation.data
    scale = edge / data.shortest_edge
    return Choice(chosen, reason, f"{round(data.width * scale)}x{round(data.height * scale)}")


# Augmentation


def transform(situation: Situation) -> Choice:
    """The augmentation policy."""
    if situation.is_new:
        return Choice("light", "flips and mild crops; the original's keep too little of small images")
    return Choice("original", "the model was trained with it")


def mosaic_probability(situation: Situation) -> Choice | None:
    """Mosaics where a new model sees each image often, and would learn it by heart."""
    epochs = situation.settings["epochs"]
    if not situation.is_new or epochs < _MANY_EPOCHS:
        return None
    reason = f"each image is seen {epochs} times; on 130 photographs, AP50 .54 instead of .48, one run each"
    return Choice(0.5, reason)


def no_flip_classes(situation: Situation) -> Choice | None:
    """Classes whose names say left or right are not mirrored."""
    sided = [name for name in situation.data.classes if _SIDES.search(name)]
    return Choice(sided, "their names say left or right, which mirroring would swap") if sided else None
