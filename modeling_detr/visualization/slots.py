"""The boxes of query slots as points: the paper's figure 7."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_COLUMNS = 5
_MAX_POINTS = 5_000  # of a panel, as many as there are images in COCO val2017; more would hide each other
_COLOURS = np.array([(0, 158, 115), (213, 60, 0), (0, 90, 200)]) / 255  # small, wide, tall


def draw_slots(
    boxes_cxcywh: ArrayLike, slots: Sequence[int] | None = None, titles: Sequence[str] | None = None
) -> Image.Image:
    """Draws each box as a point at its centre, one panel per slot: green if it is small, red if wide, blue if tall.

    Paper: fig. 7, which shows 20 of 100 slots and the predictions of all of them, "no object" included.

    Args:
        boxes_cxcywh: (images, slots, 4), as shares of the image's width and height.
        slots: The slots to draw. None: the first 20.
        titles: A title above each of them. None: `slot 0` and so on.

    Raises:
        ValueError: The boxes have another shape, a slot does not exist, or the number of titles differs.
    """
    from matplotlib.figure import Figure  # unlike pyplot, needs no display and keeps no figure open

    boxes = np.asarray(boxes_cxcywh, np.float64)
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or 0 in boxes.shape:
        raise ValueError(f"boxes_cxcywh: got shape {boxes.shape}, expected (images, slots, 4).")
    chosen = list(range(min(20, boxes.shape[1]))) if slots is None else list(slots)
    titles = [f"slot {slot}" for slot in chosen] if titles is None else titles
    if not chosen or not all(0 <= slot < boxes.shape[1] for slot in chosen) or len(titles) != len(chosen):
        raise ValueError(
            f"slots: got {chosen} with {len(titles)} titles, expected numbers from 0 to {boxes.shape[1] - 1}, and one "
            "title for each."
        )
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.9 * columns + 2.1, 2.05 * rows + 0.1), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[*[1] * columns, 0.9])
    drawn = boxes[np.linspace(0, len(boxes) - 1, min(len(boxes), _MAX_POINTS)).round().astype(int)]
    size = float(np.clip(900 / len(drawn), 1.5, 14))
    for number, (slot, title) in enumerate(zip(chosen, titles, strict=True)):
        axes = figure.add_subplot(grid[divmod(number, columns)])
        points = drawn[:, slot]
        axes.scatter(points[:, 0], points[:, 1], s=size, c=box_colours(points[:, 2:]), linewidths=0)
        axes.set_title(title, fontsize=8.5)
        axes.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.tick_params(labelsize=7, labelbottom=number + columns >= len(chosen), labelleft=number % columns == 0)
        axes.grid(alpha=0.25)
    _draw_legend(figure.add_subplot(grid[:2, columns], anchor="N"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return Image.open(buffer)


def box_colours(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The colours (N, 3) of boxes of sizes (N, 2): the larger the longer side, the less green it is."""
    longer = sizes.max(-1, keepdims=True).clip(0, 1)
    width_share = sizes[:, :1] / sizes.sum(-1, keepdims=True).clip(min=1e-9)
    small, wide, tall = _COLOURS
    wideness = np.clip((width_share - 0.25) * 2, 0, 1)  # a box three times as wide as tall is red
    colours: NDArray[np.float64] = (1 - longer) * small + longer * (wideness * wide + (1 - wideness) * tall)
    return colours


def _draw_legend(axes: "Axes") -> None:
    """The colour of each width and height."""
    steps = (np.arange(64) + 0.5) / 64
    widths, heights = np.meshgrid(steps, steps)
    colours = box_colours(np.stack([widths.ravel(), heights.ravel()], -1)).reshape(64, 64, 3)
    axes.imshow(colours, origin="lower", extent=(0, 1, 0, 1))
    axes.set_title("colour", fontsize=8.5)
    axes.set(xticks=[0, 1], yticks=[0, 1], aspect="equal")
    axes.set_xlabel("width of the box", fontsize=7)
    axes.set_ylabel("height", fontsize=7)
    axes.tick_params(labelsize=7)
