"""Predictions as tables: CSV for spreadsheets, Parquet for data frames and Arrow."""

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from modeling_detr.atomic_output import replaced_file
from modeling_detr.predicting.journal import Entry
from modeling_detr.predicting.outputs.output import Entries, Output


_ROWS_AT_ONCE = 1000


class CsvTable(Output):
    """`predictions.csv`: a row for each object. Images without objects have none."""

    files = ("predictions.csv",)
    columns = ("image", "label", "name", "score", "x0", "y0", "x1", "y1")

    def finish(self, entries: Entries) -> None:
        """Writes the table."""
        with (
            replaced_file(self.run.folder / self.files[0]) as file,
            file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as text,
        ):
            table = csv.writer(text)
            table.writerow(self.columns)
            for entry in entries():
                for found in entry["detections"]:
                    box = (f"{corner:.2f}" for corner in found["box_xyxy"])
                    table.writerow([entry["image"], found["label"], found["name"], f"{found['score']:.6f}", *box])


class ParquetTable(Output):
    """`predictions.parquet`: a row for each image, with a list for each property of its objects."""

    files = ("predictions.parquet",)

    def finish(self, entries: Entries) -> None:
        """Writes the table, 1,000 images at a time."""
        write_parquet(self.run.folder / self.files[0], entries())


def write_parquet(target: Path, entries: Iterable[Entry], *, errors: bool = False) -> None:
    """Writes a Parquet file with a row for each image, completely or not at all.

    Args:
        target: The file.
        entries: What was predicted for the images.
        errors: Whether it has a column for images that could not be read, `error`, which is null for all others.

    Raises:
        OutputError: It cannot be written.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    columns = [
        ("image", arrow.string()),
        ("height", arrow.int32()),
        ("width", arrow.int32()),
        ("labels", arrow.list_(arrow.int32())),
        ("names", arrow.list_(arrow.string())),
        ("scores", arrow.list_(arrow.float32())),
        ("boxes_xyxy", arrow.list_(arrow.list_(arrow.float32(), 4))),
    ]
    schema = arrow.schema([*columns, ("error", arrow.string())] if errors else columns)
    with (
        replaced_file(target) as file,
        file.open("wb") as content,  # as the path may not be UTF-8
        parquet.ParquetWriter(content, schema) as writer,
    ):
        for rows in _chunks(map(_row, entries)):
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def written_name(name: str) -> str:
    r"""A name as tables have it: what is no text in the name of a file becomes an escape such as `\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _row(entry: Entry) -> dict[str, Any]:
    image = written_name(entry["image"])
    if "error" in entry:
        return {"image": image, "error": written_name(entry["error"])}
    found = entry["detections"]
    return {
        "image": image,
        "height": entry["height"],
        "width": entry["width"],
        "labels": [one["label"] for one in found],
        "names": [one["name"] for one in found],
        "scores": [one["score"] for one in found],
        "boxes_xyxy": [one["box_xyxy"] for one in found],
    }


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _ROWS_AT_ONCE)):
        yield chunk
