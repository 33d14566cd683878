"""What predicts the parts of a run: each engine is a function in a file, and a line in `ENGINES`.

def predict_in_reverse(work, parts):
    for part in reversed(parts):
        yield predict_part(work.image_pass, work.table, part, [work.images[index] for index in part.indices])

ENGINES["reverse"] = predict_in_reverse
"""

from collections.abc import Callable, Iterator, Sequence

from modeling_detr.predicting.engines.local import predict_here
from modeling_detr.predicting.engines.part_work import DonePart, PartWork, predict_part
from modeling_detr.predicting.engines.ray_data import predict_on_ray
from modeling_detr.predicting.parts import Part


__all__ = ["DEFAULT_ENGINE", "ENGINES", "DonePart", "Engine", "PartWork", "predict_part"]


Engine = Callable[[PartWork, Sequence[Part]], Iterator[DonePart]]
"""Predicts parts and writes them, in any order; yields each one that is written."""

ENGINES: dict[str, Engine] = {"local": predict_here, "ray": predict_on_ray}

DEFAULT_ENGINE = "local"
