"""Why a box is where it is: the attention behind each detection, and how far it can be trusted.

    explanation = explain(model, processor, image, points=[(320, 240)])
    explanation.maps["relevance"]  # (detections, h, w)

`recording.py` keeps a forward pass from which any row of any attention map is computed, `methods.py` fuses layers and
heads into one map per detection by methods of the literature, `explain.py` combines both, `faithfulness.py` measures
whether the detection depends on what a map marks. `points.py` computes the encoder's self-attention from every point,
and `page.py` shows everything on a web page. `slots.py` collects what each query predicts over many images.
"""

from modeling_detr.explanation.explain import Explanation, explain
from modeling_detr.explanation.faithfulness import Curves, Faithfulness, measure_faithfulness, num_runs
from modeling_detr.explanation.methods import METHODS
from modeling_detr.explanation.page import explanation_page
from modeling_detr.explanation.points import PointMaps, map_points
from modeling_detr.explanation.recording import Recording, record
from modeling_detr.explanation.slots import Slots, SlotStatistics, collect_slots


__all__ = [
    "METHODS",
    "Curves",
    "Explanation",
    "Faithfulness",
    "PointMaps",
    "Recording",
    "SlotStatistics",
    "Slots",
    "collect_slots",
    "explain",
    "explanation_page",
    "map_points",
    "measure_faithfulness",
    "num_runs",
    "record",
]
