"""What a client is answered: the predictions as JSON, with all masks."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modeling_detr.evaluation.evaluators.coco import encode_masks
from modeling_detr.predicting import Prediction


def answer_as_json(model: str, predictions: Sequence[Prediction], seconds: Mapping[str, float]) -> bytes:
    """An answer.

    Args:
        model: Its name.
        predictions: The predictions for the images of a request.
        seconds: What took how long.
    """
    content = {
        "model": model,
        "predictions": [_as_plain_values(prediction) for prediction in predictions],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _as_plain_values(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it is in files, where the map of panoptic segments is a picture of its own, and that map."""
    content = prediction.to_dict()
    for segment in content.get("segments", ()):  # one mask in memory at a time
        (mask,) = encode_masks((prediction.segmentation == segment["id"]).numpy()[None])
        segment["segmentation"] = {**mask, "counts": mask["counts"].decode("ascii")}
    return content
