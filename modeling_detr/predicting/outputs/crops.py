"""The part of the image inside each box, sorted by class."""

from pathlib import PurePosixPath
from typing import Any

from modeling_detr.atomic_output import synced_file
from modeling_detr.data.image_copies import file_names_of
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.outputs.output import Output, OutputRun
from modeling_detr.predicting.result import Prediction


CROPS = "crops"


class Crops(Output):
    """`crops/CLASS/NAME_1.jpg`, `NAME_2.jpg`, …, by descending score."""

    listed_as = "crops"

    def __init__(self, run: OutputRun) -> None:
        super().__init__(run)
        self._class_folders = file_names_of(run.class_names.values())

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any]:
        """Writes the parts of one image."""
        crops = []
        for number, (crop, name) in enumerate(zip(prediction.crop(), prediction.names, strict=True), start=1):
            place = PurePosixPath(CROPS, self._class_folders[name], image.name)
            place = place.with_name(f"{place.stem}_{number}.jpg")
            with synced_file(self.run.folder / place) as file:
                crop.save(file, quality=95)
            crops.append(place.as_posix())
        return {self.listed_as: crops}
