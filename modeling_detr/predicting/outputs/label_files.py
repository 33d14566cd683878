"""A file of labels for each image, as YOLO's tools and Pascal VOC's write them."""

from pathlib import PurePosixPath
from typing import Any

from modeling_detr.atomic_output import replace_text
from modeling_detr.data.formats.voc import annotation_xml
from modeling_detr.errors_detr import printable
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.outputs.output import Entries, Output
from modeling_detr.predicting.result import Prediction


class YoloFiles(Output):
    """`yolo/NAME.txt`: a line `label centre_x centre_y width height score` for each object, in shares of the image.

    `yolo_classes.txt` has the name of each class.
    """

    files = ("yolo_classes.txt",)
    listed_as = "yolo"

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any]:
        """Writes the lines of one image; the file is empty if it has no objects."""
        height, width = prediction.size
        lines = []
        for found in prediction:
            x0, y0, x1, y1 = found.box_xyxy
            box = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(found.label), *(f"{number:.6f}" for number in (*box, found.score))]) + "\n")
        name = PurePosixPath("yolo", image.name).with_suffix(".txt")
        replace_text(self.run.folder / name, "".join(lines))
        return {self.listed_as: name.as_posix()}

    def finish(self, _entries: Entries) -> None:
        """Writes the names of the classes."""
        names = "".join(f"{' '.join(name.split())}\n" for name in self.run.class_names.values())
        replace_text(self.run.folder / self.files[0], names)


class VocFiles(Output):
    """`voc/NAME.xml`: an annotation of Pascal VOC, with a `score` for each object."""

    listed_as = "voc"

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any]:
        """Writes the file of one image."""
        height, width = prediction.size
        objects = [(printable(found.name), found.box_xyxy, {"score": f"{found.score:.6f}"}) for found in prediction]
        name = PurePosixPath("voc", image.name).with_suffix(".xml")
        file_name = printable(PurePosixPath(image.name).name)
        replace_text(self.run.folder / name, annotation_xml(file_name, height, width, objects))
        return {self.listed_as: name.as_posix()}
