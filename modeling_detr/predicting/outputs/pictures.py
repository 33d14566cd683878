"""The images with what was predicted in them."""

from pathlib import PurePosixPath
from typing import Any

from modeling_detr.atomic_output import synced_file
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.outputs.output import Output
from modeling_detr.predicting.result import Prediction


_SUFFIXES = (".jpg", ".jpeg", ".png")  # others become PNG files


def picture_name(image: str) -> PurePosixPath:
    """The name of the picture of an image with a name."""
    name = PurePosixPath(image)
    return name if name.suffix.lower() in _SUFFIXES else name.with_name(f"{name.name}.png")


class Pictures(Output):
    """A picture for each image, in the same subfolder as the image."""

    listed_as = "picture"

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any]:
        """Draws the picture."""
        name = picture_name(image.name)
        with synced_file(self.run.folder / name) as file:
            prediction.draw().save(file, quality=92)
        return {self.listed_as: name.as_posix()}
