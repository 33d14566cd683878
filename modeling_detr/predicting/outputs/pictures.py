"""The images with what was predicted in them."""

from pathlib import PurePosixPath
from typing import Any

from modeling_detr.atomic_output import synced_file
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.outputs.output import Output
from modeling_detr.predicting.result import Prediction


_SUFFIXES = (".jpg", ".jpeg", ".png")  # others become PNG files


class Pictures(Output):
    """A picture for each image, in the same subfolder as the image."""

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any]:
        """Draws the picture."""
        name = PurePosixPath(image.name)
        if name.suffix.lower() not in _SUFFIXES:
            name = name.with_name(f"{name.name}.png")
        with synced_file(self.run.folder / name) as file:
            prediction.draw().save(file, quality=92)
        return {"picture": name.as_posix()}
