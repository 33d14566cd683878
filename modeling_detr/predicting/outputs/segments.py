"""Maps of panoptic segments, as COCO writes them: the colour of a pixel is the number of its segment."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from modeling_detr.atomic_output import synced_file
from modeling_detr.evaluation.evaluators.panoptic import segment_colours
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.outputs.output import Output
from modeling_detr.predicting.result import Prediction


SEGMENTS = "segments"


class SegmentMaps(Output):
    """`segments/NAME.png`: red + 256 green + 256² blue is the `id` of the segment in the entry, 0 is none."""

    listed_as = "segmentation"

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any]:
        """Writes the map."""
        name = PurePosixPath(SEGMENTS, image.name).with_suffix(".png")
        with synced_file(self.run.folder / name) as file:
            Image.fromarray(segment_colours(prediction.segmentation.numpy().astype(np.int64))).save(file)
        return {self.listed_as: name.as_posix()}
