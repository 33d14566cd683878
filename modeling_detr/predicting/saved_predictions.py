"""Predictions that `detr predict` has written as Parquet, read for the images of a dataset."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_detr.errors_detr import FileMissingError, FileReadError, PredictionError
from modeling_detr.input_files import read_json
from modeling_detr.predicting.outputs.tables import written_name
from modeling_detr.predicting.parts import SETTINGS, TABLE, Part
from modeling_detr.structures_detr import DetectionIndex, DetectionResult


_COLUMNS = ["image", "labels", "names", "scores", "boxes_xyxy"]
_ERROR = {"error"}  # a column of parts
_MOST_NAMED = 3  # in a message


class SavedPredictions:
    """The table of a run, in parts or in one file.

    Args:
        folder: The folder of the results, or `predictions.parquet` itself.

    Attributes:
        table: The file, or the folder of the parts.
        settings: What the parts were made with; empty for a table in one file.

    Raises:
        FileMissingError: There is no table.
        PredictionError: Parts are missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.table = Path(folder) if Path(folder).name == TABLE else Path(folder, TABLE)
        if not self.table.exists():
            remedy = "expected the --output_dir of 'detr predict --shard' or 'detr predict --save parquet'"
            raise FileMissingError(folder, f"has no {TABLE}", remedy)
        self.settings: dict[str, Any] = {}
        self._files = [self.table]
        if self.table.is_dir():
            self.settings, parts = _parts_of(self.table.parent / SETTINGS, self.table)
            self._files = [self.table / part.name for part in parts]
            self._check_complete()

    def of_images(
        self, index: DetectionIndex, class_names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, DetectionResult]]:
        """The predictions for the images of a dataset; those for others are left out.

        Args:
            index: The dataset.
            class_names: The classes that the labels must stand for; None: any.

        Yields:
            The index of an image in `index.images`, with its objects.

        Raises:
            PredictionError: An image has none, has them twice, or could not be read; or classes differ.
            FileReadError: A part is damaged.
        """
        place_of = {_absolute(written_name(record.path)): at for at, record in enumerate(index.images)}
        found = np.zeros(len(index), np.bool_)
        for row in self._rows():
            at = place_of.get(_absolute(row["image"]))
            if at is None:
                continue
            if row["labels"] is None:
                problem = f"has no predictions, because it could not be read ({row['error']})"
                raise PredictionError(row["image"], problem, "repair it, remove its part and predict again")
            if found[at]:
                raise PredictionError(
                    self.table, f"has two rows for {row['image']}", "predict again, into a new folder"
                )
            if class_names is not None:
                self._check_classes(row, class_names)
            found[at] = True
            yield at, _result(row)
        if not found.all():
            missing = [index.images[at].path for at in np.flatnonzero(~found).tolist()]
            problem = f"has no predictions for {len(missing)} of {len(index)} images: {_listed(missing)}"
            raise PredictionError(self.table, problem, "predict for the dataset with --data, under the same path")

    def _rows(self) -> Iterator[dict[str, Any]]:
        import pyarrow as arrow
        from pyarrow import parquet

        for file in self._files:
            try:
                with file.open("rb") as content:  # as the path may not be UTF-8
                    for batch in parquet.ParquetFile(content).iter_batches():
                        yield from batch.select([*_COLUMNS, *_ERROR.intersection(batch.schema.names)]).to_pylist()
            except (arrow.ArrowException, OSError, KeyError) as error:
                remedy = "remove it and repeat the command that wrote it"
                raise FileReadError(file, f"cannot be read ({str(error).rstrip('.')})", remedy) from error

    def _check_complete(self) -> None:
        missing = [file.name for file in self._files if not file.is_file()]
        if missing:
            problem = f"{len(missing)} of {len(self._files)} parts are missing: {_listed(missing)}"
            raise PredictionError(self.table, problem, "predict for them: repeat the command with --shard 1/1")

    def _check_classes(self, row: dict[str, Any], class_names: Sequence[str]) -> None:
        for label, name in zip(row["labels"], row["names"], strict=True):
            expected = class_names[label] if 0 <= label < len(class_names) else "no class"
            if name != expected:
                problem = f"has '{name}' as class {label}, which is {expected} in the model"
                raise PredictionError(self.table, problem, "pass the model that made these predictions")


def _parts_of(file: Path, table: Path) -> tuple[dict[str, Any], list[Part]]:
    """The settings of a run, and its parts."""
    if not file.is_file():
        raise PredictionError(table, f"{file} is missing, which says how many parts there are")
    settings = read_json(file)
    count, size = map(settings.get, ("images", "images_per_part")) if isinstance(settings, dict) else (None, None)
    if not (isinstance(count, int) and isinstance(size, int) and min(count, size) > 0):
        raise PredictionError(file, "does not say how many images there are", "predict again, into a new folder")
    return settings, [Part(first, min(first + size, count)) for first in range(0, count, size)]


def _absolute(path: str) -> Path:
    return Path(path).absolute()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def _result(row: dict[str, Any]) -> DetectionResult:
    return {
        "scores": torch.tensor(row["scores"], dtype=torch.float32),
        "labels": torch.tensor(row["labels"], dtype=torch.int64),
        "boxes": torch.tensor(row["boxes_xyxy"], dtype=torch.float32).reshape(-1, 4),
    }
