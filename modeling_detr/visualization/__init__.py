"""Pictures of predictions, also beside the ground truth or in galleries, and training curves.

    draw_prediction(image, prediction, id2label).save("picture.jpg")

Each kind of overlay is a file and a line in `OVERLAYS`: `boxes.py`, `masks.py`, `segments.py`. Overlays draw on the
canvas in `canvas.py`, with the class colours in `colours.py`; `labels.py` places labels, and `text.py` finds fonts.
`heat.py` draws maps of numbers over an image, `slots.py` the boxes of query slots.
`matches.py` tells hits, false predictions and missed objects apart.

The annotators of `supervision` are no alternative: its labels move away from their boxes and still overlap among a
hundred objects, have one colour of text, and need PyAV (113 MB with its other requirements).
"""

from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import class_colour
from modeling_detr.visualization.curve_page import curve_block
from modeling_detr.visualization.curves import draw_curves, plot_curves
from modeling_detr.visualization.gallery import tile
from modeling_detr.visualization.heat import draw_heat, draw_heats
from modeling_detr.visualization.overlays import OVERLAYS, draw_comparison, draw_prediction
from modeling_detr.visualization.slots import draw_slots


__all__ = [
    "OVERLAYS",
    "Canvas",
    "class_colour",
    "curve_block",
    "draw_comparison",
    "draw_curves",
    "draw_heat",
    "draw_heats",
    "draw_prediction",
    "draw_slots",
    "plot_curves",
    "tile",
]
