"""Pictures: predictions drawn on images, beside the ground truth, in galleries; and training curves.

    draw_prediction(image, prediction, id2label).save("picture.jpg")

One kind of overlay is one file here and one line in `OVERLAYS`: `boxes.py`, `masks.py`, `segments.py`. The canvas that
they draw on is in `canvas.py`, the colour of each class in `colours.py`.
"""

from modeling_detr.visualization.canvas import Canvas
from modeling_detr.visualization.colours import class_colour
from modeling_detr.visualization.curves import plot_curves
from modeling_detr.visualization.gallery import gallery_html, tile
from modeling_detr.visualization.overlays import OVERLAYS, draw_comparison, draw_prediction


__all__ = [
    "OVERLAYS",
    "Canvas",
    "class_colour",
    "draw_comparison",
    "draw_prediction",
    "gallery_html",
    "plot_curves",
    "tile",
]
