"""The interface of outputs, and what they know of their run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import Entry
from modeling_detr.predicting.result import Prediction
from modeling_detr.structures_detr import DetectionIndex


Entries = Callable[[], Iterator[Entry]]
"""Returns the entries of a run's images in their order, as often as it is called; one entry is in memory at a time."""


@dataclass(frozen=True)
class OutputRun:
    """The run that an output belongs to.

    Attributes:
        folder: The folder of the results.
        class_names: Label → name of the class.
        dataset: The dataset whose images they are, for its ids; None: they are files.
    """

    folder: Path
    class_names: Mapping[int, str]
    dataset: DetectionIndex | None = None


class Output:
    """Writes the predictions of a run in one form. A subclass writes files of each image, of all, or both.

    Several processes may each call `add` for images of their own; one of them calls `finish`.

    Attributes:
        files: What `finish` writes, relative to the folder of the results.
        listed_as: The key under which the entry of an image lists the files of `add`, relative to that folder: a name,
            or a list. They are removed if the image changes before an interrupted run continues.
    """

    files: tuple[str, ...] = ()
    listed_as: str = ""

    def __init__(self, run: OutputRun) -> None:
        self.run = run

    def add(self, image: InputImage, prediction: Prediction) -> dict[str, Any] | None:
        """Writes the files of one image.

        Returns:
            What its entry says about them; None: nothing.

        Raises:
            OutputError: They cannot be written.
        """

    def files_of(self, entry: Entry) -> list[str]:
        """The files of one image, by its entry."""
        listed = entry.get(self.listed_as, [])
        return [listed] if isinstance(listed, str) else listed

    def finish(self, entries: Entries) -> None:
        """Writes the files about all images, completely or not at all.

        Raises:
            OutputError: They cannot be written.
        """
