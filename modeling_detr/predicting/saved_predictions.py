"""Predictions that `detr predict` has written as Parquet, read for the images of a dataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_detr.errors_detr import FileMissingError, FileReadError, PredictionError
from modeling_detr.input_files import read_json
from modeling_detr.predicting.parts import SETTINGS, TABLE, Part
from modeling_detr.structures_detr import DetectionIndex, DetectionResult


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
        file = self.table.parent / SETTINGS
        self.settings: dict[str, Any] = read_json(file) if self.table.is_dir() and file.is_file() else {}
        if self.table.is_dir():
            self._check_complete(file)

    def of_images(self, index: DetectionIndex) -> Iterator[tuple[int, DetectionResult]]:
        """The predictions for the images of a dataset; those for others are left out.

        Yields:
            The index of an image in `index.images`, with its objects.

        Raises:
            PredictionError: An image of the dataset has none, or could not be read.
            FileReadError: A part is damaged.
        """
        place_of = {_absolute(_as_written(record.path)): at for at, record in enumerate(index.images)}
        found = np.zeros(len(index), np.bool_)
        for row in self._rows():
            at = place_of.get(_absolute(row["image"]))
            if at is None:
                continue
            if row["labels"] is None:
                problem = f"has no predictions, because it could not be read ({row['error']})"
                raise PredictionError(row["image"], problem, "repair it, remove its part and predict again")
            found[at] = True
            yield at, _result(row)
        if not found.all():
            missing = [index.images[at].path for at in np.flatnonzero(~found).tolist()]
            problem = f"has no predictions for {len(missing)} of {len(index)} images: {_listed(missing)}"
            raise PredictionError(self.table, problem, "predict for the dataset with --data, under the same path")

    def _rows(self) -> Iterator[dict[str, Any]]:
        import pyarrow as arrow
        from pyarrow import parquet

        for file in sorted(self.table.glob("part-*.parquet")) if self.table.is_dir() else [self.table]:
            try:
                for batch in parquet.ParquetFile(file).iter_batches():
                    yield from batch.to_pylist()
            except (arrow.ArrowException, OSError, KeyError) as error:
                remedy = "remove it and repeat the command that wrote it"
                raise FileReadError(file, f"cannot be read ({str(error).rstrip('.')})", remedy) from error

    def _check_complete(self, file: Path) -> None:
        if not self.settings:
            raise PredictionError(self.table, f"{file} is missing, which says how many parts there are")
        count, size = self.settings["images"], self.settings["images_per_part"]
        parts = [Part(first, min(first + size, count)).name for first in range(0, count, size)]
        missing = [name for name in parts if not (self.table / name).is_file()]
        if missing:
            problem = f"{len(missing)} of {len(parts)} parts are missing: {_listed(missing)}"
            raise PredictionError(self.table, problem, "predict for them: repeat the command with --shard 1/1")


def _as_written(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


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
