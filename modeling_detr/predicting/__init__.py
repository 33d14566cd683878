"""Prediction on anything: images, folders, URLs, datasets; with results that are drawn, cropped, saved and resumed.

`Detector` is a model with its image processor, called with images of any kind. `run.py` is what `detr predict` does:
`inputs/` finds images, `batches.py` reads them in other processes, `outputs/` writes what was predicted, and
`journal.py` keeps what is done. Each kind of input and output is a file and a line of a table.
"""

from modeling_detr.predicting.detector import Detector
from modeling_detr.predicting.result import Detection, Prediction
from modeling_detr.predicting.tiles import Tiling


__all__ = ["Detection", "Detector", "Prediction", "Tiling"]
