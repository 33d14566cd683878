"""Predictions of millions of images as a Parquet table in parts, `predictions.parquet/part-….parquet`.

A part holds the images of a range of the list of images, and its name says which. Parts are therefore the same
whatever shard, machine or engine predicts them, and one that exists is done: nothing else is kept about progress.
Parts appear whole or not at all. `parts.json` beside them says what they were made with, so that none of another model
or with another threshold gets between them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modeling_detr.atomic_output import make_folder, new_file
from modeling_detr.errors_detr import OutputError, OutputExistsError
from modeling_detr.input_files import read_json
from modeling_detr.output_errors import explained_output
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import changed_settings
from modeling_detr.predicting.outputs.tables import ParquetTable, written_name


TABLE = ParquetTable.files[0]  # a file of an undivided run, a folder of parts here; both read as one table
SETTINGS = "parts.json"
DEFAULT_IMAGES = 1000  # per part


class Shard(NamedTuple):
    """One of several runs that share the images: `number`, from 1, of `total`."""

    number: int
    total: int

    @classmethod
    def of(cls, text: str) -> "Shard":
        """The shard that a text such as `3/16` stands for.

        Raises:
            ValueError: It stands for none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text, flags=re.ASCII)
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.total:
            raise ValueError(f"got '{text}', expected a number from 1 and their count, such as 3/16")
        return shard

    def split(self, number: int, count: int) -> "Shard":
        """The shard of one of `count` processes that share this one; `number` from 0."""
        return Shard((self.number - 1) * count + number + 1, self.total * count)

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


class Part(NamedTuple):
    """The images of a part: those with the indices `first`, …, `end` - 1."""

    first: int
    end: int

    @property
    def name(self) -> str:
        """The name of its file; names sort as parts do."""
        return f"part-{self.first:010d}-{self.end - 1:010d}.parquet"

    @property
    def indices(self) -> range:
        """The indices of its images."""
        return range(self.first, self.end)


class Parts:
    """The parts of a run, on disk.

    Args:
        results: The folder of the results.
        images: All images, of all shards.
        images_per_part: Images in each part; the last one has the rest.
    """

    def __init__(self, results: Path, images: Sequence[InputImage], images_per_part: int = DEFAULT_IMAGES) -> None:
        self.results, self.images, self.images_per_part = results, images, images_per_part
        self.table = results / TABLE
        starts = range(0, len(images), images_per_part)
        self.all = [Part(first, min(first + images_per_part, len(images))) for first in starts]

    def open(self, settings: Mapping[str, Any]) -> None:
        """Starts a run or joins one; several processes may call it at the same time.

        Args:
            settings: What decides the predictions, for JSON.

        Raises:
            OutputError: Parts with other settings, or of other images, or other tables are in the folder, or it cannot
                be written.
        """
        file = self.results / SETTINGS
        settings = {
            **settings,
            "images": len(self.images),
            "image_list": _digest(self.images),
            "images_per_part": self.images_per_part,
        }
        make_folder(self.table)
        if self.done() and not file.exists():  # in this order, as another shard may start at the same time
            remedy = "choose another folder, or remove the parts"
            raise OutputError(self.table, f"holds parts, but {file} is missing, which says how they were made", remedy)
        try:
            with new_file(file) as partial:
                partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="ascii")
        except OutputExistsError:  # it goes on, or another shard was faster
            listed = changed_settings(read_json(file), settings)
            if listed:
                remedy = "repeat the command with the same settings and images, or choose another folder"
                raise OutputError(self.results, f"holds parts of another run ({listed})", remedy) from None

        others = sorted(self.done() - {part.name for part in self.all})
        if others:
            problem = f"holds {others[0]}, which is no part of this run but would be read as one"
            raise OutputError(self.table, problem, "move it away")

    def of(self, shard: Shard) -> list[Part]:
        """The parts of a shard, in order: every `total`-th, so that shards take equally long."""
        return self.all[shard.number - 1 :: shard.total]

    def done(self) -> set[str]:
        """The names of the parts that exist."""
        with explained_output(self.table):
            return {file.name for file in self.table.glob("[!._]*.parquet")}

    def missing(self) -> list[Part]:
        """The parts that do not exist yet."""
        done = self.done()
        return [part for part in self.all if part.name not in done]

    def unreadable(self, part: Part) -> int | None:
        """How many images of a part could not be read; None: the part is damaged, or has other images.

        Raises:
            OutputError: The file cannot be opened.
        """
        from pyarrow import ArrowException, parquet

        with explained_output(self.table / part.name):
            file = (self.table / part.name).open("rb")
        with file:
            try:
                table = parquet.read_table(file, columns=["image", "error"])
                names, errors = table.column("image").to_pylist(), table.column("error")
            except (ArrowException, OSError, KeyError):
                return None
        whole = names == [written_name(self.images[index].source) for index in part.indices]
        return len(errors) - errors.null_count if whole else None


def _digest(images: Sequence[InputImage]) -> str:
    """What tells a list of images from others."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.source.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]
