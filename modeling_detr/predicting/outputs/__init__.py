"""What `detr predict` writes: each kind of output is a class in a file, and a line in `OUTPUTS`.

    class Counts(Output):
        def add(self, image, prediction):
            return {"count": len(prediction)}  # in the entry of the image

    OUTPUTS["counts"] = OutputKind("the number of objects of each image", Counts)

adds a number to each entry of the lists.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modeling_detr.errors_detr import OutputError
from modeling_detr.predicting.outputs.coco_results import CocoResults
from modeling_detr.predicting.outputs.crops import Crops
from modeling_detr.predicting.outputs.json_lists import JsonLines, JsonList
from modeling_detr.predicting.outputs.label_files import VocFiles, YoloFiles
from modeling_detr.predicting.outputs.output import Entries, Output, OutputRun
from modeling_detr.predicting.outputs.pictures import Pictures
from modeling_detr.predicting.outputs.segments import SegmentMaps
from modeling_detr.predicting.outputs.tables import CsvTable, ParquetTable


__all__ = ["DEFAULT_OUTPUTS", "OUTPUTS", "Entries", "Output", "OutputKind", "OutputRun", "create_outputs"]


@dataclass(frozen=True)
class OutputKind:
    """A kind of output.

    Attributes:
        description: What it writes, and where.
        create: Its class.
        of_objects: Whether it can hold objects.
        of_segments: Whether it can hold panoptic segments.
        needs_pixels: Whether it needs the images.
    """

    description: str
    create: type[Output]
    of_objects: bool = True
    of_segments: bool = False
    needs_pixels: bool = False


OUTPUTS: dict[str, OutputKind] = {
    "pictures": OutputKind("the images with boxes, masks or segments", Pictures, of_segments=True, needs_pixels=True),
    "json": OutputKind("all predictions in one list, predictions.json", JsonList, of_segments=True),
    "jsonl": OutputKind("a line for each image, predictions.jsonl", JsonLines, of_segments=True),
    "csv": OutputKind("a row for each object, predictions.csv", CsvTable),
    "parquet": OutputKind("a row for each image, with lists, predictions.parquet", ParquetTable),
    "coco": OutputKind("COCO's results, coco_results.json, and its images and classes, coco_images.json", CocoResults),
    "yolo": OutputKind("a text file for each image, in yolo/, with scores", YoloFiles),
    "voc": OutputKind("an XML file for each image, in voc/", VocFiles),
    "crops": OutputKind("the part of the image in each box, in crops/CLASS/", Crops, needs_pixels=True),
    "segments": OutputKind("maps of panoptic segments, in segments/", SegmentMaps, of_objects=False, of_segments=True),
}

DEFAULT_OUTPUTS = ("pictures", "json")


def create_outputs(names: Iterable[str], run: OutputRun, *, is_panoptic: bool) -> Mapping[str, Output]:
    """The outputs of a run, by their names in `OUTPUTS`; with panoptic predictions always `segments` too.

    Raises:
        OutputError: An output cannot hold what the model predicts.
    """
    chosen = [*dict.fromkeys([*names, *(["segments"] if is_panoptic else [])])]
    for name in chosen:
        kind = OUTPUTS[name]
        if not (kind.of_segments if is_panoptic else kind.of_objects):
            fitting = [
                other
                for other in OUTPUTS
                if (OUTPUTS[other].of_segments if is_panoptic else OUTPUTS[other].of_objects)
            ]
            predicted = "panoptic segments" if is_panoptic else "objects"
            raise OutputError("save", f"'{name}' cannot hold {predicted}", f"choose among {', '.join(fitting)}")
    return {name: OUTPUTS[name].create(run) for name in chosen}
