"""What an engine is to do, and how a part is written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from modeling_detr.predicting.image_pass import ImagePass
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import Entry
from modeling_detr.predicting.outputs.tables import write_parquet
from modeling_detr.predicting.parts import Part
from modeling_detr.predicting.result import Prediction


@dataclass(frozen=True)
class Actors:
    """The processes of an engine that starts some elsewhere.

    Attributes:
        address: Where the cluster is; None: the one that is found, or a new one on this machine.
        gpus: Processes, one for each GPU; "auto": all GPUs; None: see `processes`.
        processes: Processes on CPUs; None: one for each GPU if the device is a GPU, else for each CPU.
    """

    address: str | None = None
    gpus: str | None = None
    processes: int | None = None


@dataclass(frozen=True)
class PartWork:
    """What an engine needs.

    Attributes:
        image_pass: The model, loaded in this process.
        load: Loads it in another process, on a device such as `cuda`; it can be pickled.
        images: All images.
        table: The folder of the parts.
        actors: The processes to start elsewhere.
    """

    image_pass: ImagePass
    load: Callable[[str], ImagePass]
    images: Sequence[InputImage]
    table: Path
    actors: Actors = field(default_factory=Actors)


class DonePart(NamedTuple):
    """A part that has been written: the part, the number of its objects, and source → reason of unreadable images."""

    part: Part
    objects: int
    unreadable: Mapping[str, str]


def predict_part(image_pass: ImagePass, table: Path, part: Part, images: Sequence[InputImage]) -> DonePart:
    """Predicts for the images of a part and writes it.

    Args:
        image_pass: The model.
        table: The folder of the parts.
        part: The part.
        images: Its images.

    Raises:
        OutputError: It cannot be written.
        LoaderError: A loader process was killed.
    """
    predicted = dict(image_pass.predictions(images, range(len(images)), pool=len(images)))
    return write_part(table, part, [entry_of(image, predicted[index]) for index, image in enumerate(images)])


def entry_of(image: InputImage, predicted: Prediction | str) -> Entry:
    """What a part has about an image: its prediction, or why it could not be read."""
    content = {"error": predicted} if isinstance(predicted, str) else predicted.to_dict()
    return {"image": image.source, **content}


def write_part(table: Path, part: Part, entries: Iterable[Entry]) -> DonePart:
    """Writes a part, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    entries = [*entries]
    write_parquet(table / part.name, entries, errors=True)
    objects = sum(len(entry.get("detections", ())) for entry in entries)
    return DonePart(part, objects, {entry["image"]: entry["error"] for entry in entries if "error" in entry})
