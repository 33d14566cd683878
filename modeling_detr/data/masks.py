"""Masks, kept compact as in their files and decoded one image at a time: polygons, RLE (run-length encoding), PNG.

A annotations of a dataset · n rows to read, all of one image · H, W pixels.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from modeling_detr.coco_masks_detr import (
    MAX_OUTLINE,
    MAX_POLYGONS,
    compressed_run_lengths,
    invalid_run_lengths,
    outline_length,
)
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.image_headers import image_source, opened_image
from modeling_detr.structures_detr import ImageReader, MaskColumn


_PIXELS_IN_MEMORY = 1 << 26

Segmentation = list[list[float]] | dict[str, Any]  # COCO's polygons x, y, x, y, …, or compressed RLE
ReadMasks = tuple[MaskColumn, list[int]]  # masks of the rows that have one, and the rows without one


# COCO's segmentations


@dataclass(frozen=True, slots=True, eq=False)
class CocoMasks:
    """Polygons and RLE masks of a COCO file, concatenated: two buffers instead of a million lists.

    Attributes:
        sizes: (A, 2) int64, height and width of each row's image.
        is_rle: (A,) bool; True: RLE, False: polygons.
        spans: (A, 2) int64, where a row begins and ends in `runs` or `polygons`.
        runs: COCO's compressed RLE, as bytes.
        polygons: float64; for each polygon the number of its coordinates, followed by x, y, x, y, ….
    """

    sizes: NDArray[np.int64]
    is_rle: NDArray[np.bool_]
    spans: NDArray[np.int64]
    runs: bytes
    polygons: NDArray[np.float64]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Decode the masks (n, H, W) bool."""
        from pycocotools import mask as coco_mask

        if len(rows) == 0:
            return np.zeros((0, 0, 0), np.bool_)
        masks: NDArray[np.bool_] = coco_mask.decode([self._run_lengths(int(row)) for row in rows]).view(np.bool_)
        return masks.transpose(2, 0, 1)

    def _run_lengths(self, row: int) -> Any:
        from pycocotools import mask as coco_mask

        height, width = self.sizes[row].tolist()
        if self.is_rle[row]:
            start, stop = self.spans[row].tolist()
            return {"size": [height, width], "counts": self.runs[start:stop]}
        polygons = [polygon.tolist() for polygon in self._polygons_of(row)]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))

    def segmentation(self, row: int) -> "Segmentation":
        """The mask of a row as COCO writes it."""
        if self.is_rle[row]:
            runs = self._run_lengths(row)
            return {"size": runs["size"], "counts": runs["counts"].decode("ascii")}
        return [polygon.tolist() for polygon in self._polygons_of(row)]

    def boxes(self) -> NDArray[np.float64]:
        """The boxes (A, 4) that enclose the masks, as x, y, width, height."""
        from pycocotools import mask as coco_mask

        boxes = np.zeros((len(self.spans), 4))
        for row in range(len(boxes)):
            if self.is_rle[row]:
                boxes[row] = coco_mask.toBbox(self._run_lengths(row))
            else:
                points = np.concatenate([*self._polygons_of(row)]).reshape(-1, 2)
                boxes[row] = *points.min(0), *(points.max(0) - points.min(0))
        return boxes

    def _polygons_of(self, row: int) -> Iterator[NDArray[np.float64]]:
        start, stop = self.spans[row].tolist()
        while start < stop:
            first, start = start + 1, start + 1 + int(self.polygons[start])
            yield self.polygons[first:start]

    def unsafe_rows(self) -> dict[int, str]:
        """The rows on which pycocotools' C code would crash or fill the memory, with what is wrong with each."""
        unsafe: dict[int, str] = {}
        rle = np.flatnonzero(self.is_rle)
        if len(rle):
            invalid = invalid_run_lengths(self.runs, self.spans[rle], self.sizes[rle].prod(-1))
            unsafe |= dict.fromkeys(rle[invalid].tolist(), "the runs do not cover exactly the image")
        drawn = np.flatnonzero(~self.is_rle)
        if len(drawn):
            starts = self.spans[drawn, 0]
            least, most = (extreme.reduceat(self.polygons, starts) for extreme in (np.minimum, np.maximum))
            with np.errstate(invalid="ignore", over="ignore"):
                longest = (self.spans[drawn, 1] - starts) * (most - least)  # an upper bound, quickly computed
            is_safe = (least > -MAX_OUTLINE) & (most < MAX_OUTLINE) & (longest < MAX_OUTLINE)
            for row in drawn[~is_safe].tolist():
                if not outline_length(self._polygons_of(row)) < MAX_OUTLINE:
                    unsafe[row] = f"points that are not finite, or an outline of {MAX_OUTLINE:,} pixels or more"
        return unsafe


def read_segmentations(
    entries: Sequence[Mapping[str, Any]],
    sizes: NDArray[np.int64],
    describe: Callable[[int], str],
    findings: Findings,
    optional: bool = False,
) -> ReadMasks:
    """Read the masks of COCO annotations from their `segmentation`: polygons, compressed or plain RLE.

    Args:
        entries: The annotations.
        sizes: (A, 2) height and width of each one's image.
        describe: Names a row in a message.
        findings: Reports rows without a mask.
        optional: Keep rows without a mask: the column then has all rows.

    Returns:
        The masks, and the rows without one that are not in the column.
    """
    unreadable: list[tuple[str, str]] = []
    runs, polygons = bytearray(), array("d")
    spans, is_rle, absent = [], [], []
    for row, entry in enumerate(entries):
        segmentation = entry.get("segmentation")
        height, width = sizes[row].tolist()
        start = len(runs), len(polygons)
        rle = isinstance(segmentation, Mapping)
        try:
            if isinstance(segmentation, Mapping):
                runs += compressed_run_lengths(segmentation, height, width)
            else:
                if len(segmentation or ()) > MAX_POLYGONS:
                    raise ValueError(f"more than {MAX_POLYGONS:,} polygons")
                for polygon in segmentation or ():
                    if len(polygon) >= 6:  # fewer than three points have no inside
                        polygons.append(len(polygon) // 2 * 2)
                        polygons.extend(polygon[: len(polygon) // 2 * 2])
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            del runs[start[0] :], polygons[start[1] :]
            unreadable.append((describe(row), str(error)))
        stop = len(runs), len(polygons)
        if stop == start:
            absent.append(row)
            continue
        is_rle.append(rle)
        spans.append((start[not rle], stop[not rle]))
    present = np.delete(np.arange(len(entries)), absent)
    source = CocoMasks(
        sizes[present],
        np.array(is_rle, dtype=np.bool_),
        np.array(spans, dtype=np.int64).reshape(-1, 2),
        bytes(runs),
        np.frombuffer(polygons, dtype=np.float64) if polygons else np.zeros(0),
    )
    unsafe = source.unsafe_rows()
    for row, problem in unsafe.items():
        unreadable.append((describe(int(present[row])), problem))
    _report_unreadable(unreadable, findings, is_error=not optional)
    kept = np.delete(np.arange(len(present)), [*unsafe])
    column = MaskColumn.of(source, len(present))[kept]
    if optional:
        return column.spread(present[kept], len(entries)), []
    absent = sorted([*absent, *present[[*unsafe]].tolist()])
    report_absent(absent, len(entries), describe, findings)
    return column, absent


def polygon_masks(numbers: NDArray[np.float64], spans: NDArray[np.int64], sizes: NDArray[np.int64]) -> MaskColumn:
    """Masks from polygons in one array; those that cannot be drawn are left out as rows without a mask.

    Args:
        numbers: Of each polygon the number of its coordinates, followed by x, y, x, y, … in pixels.
        spans: (A, 2) where each begins and ends in `numbers`.
        sizes: (A, 2) height and width of each one's image.
    """
    source = CocoMasks(sizes, np.zeros(len(spans), np.bool_), spans, b"", numbers)
    is_drawn = spans[:, 1] - spans[:, 0] >= 7  # three points and their number
    is_drawn[[*source.unsafe_rows()]] = False
    return MaskColumn((source,), np.where(is_drawn, 0, -1), np.arange(len(spans)))


def _report_unreadable(unreadable: Sequence[tuple[str, str]], findings: Findings, *, is_error: bool) -> None:
    expected = "expected polygons [[x, y, x, y, …], …] or run-length encoding {size: [height, width], counts: …}"
    messages = [(where, f"unreadable segmentation ({problem}), {expected}") for where, problem in unreadable]
    if is_error:
        for where, message in messages:
            findings.error("segmentation", where, message, "correct it, or remove the annotation")
    elif messages:
        note = f"{counted(len(messages), 'mask')} left out, but not the box; the first: {': '.join(messages[0])}."
        findings.warn("segmentation", note, "the mask is left out", messages)


def report_absent(absent: Sequence[int], count: int, describe: Callable[[int], str], findings: Findings) -> None:
    """Report the annotations without a segmentation, out of `count` in the dataset, which are left out."""
    if not absent:
        return
    first = describe(absent[0])
    if len(absent) == count:
        findings.error(
            "segmentation",
            first,
            "no segmentation, like all other annotations",
            "add segmentations, or train on boxes only",
            {"task": "detection"},
        )
        return
    have = "annotation has no segmentation and is" if len(absent) == 1 else "annotations have no segmentation and are"
    findings.warn(
        "no segmentation",
        f"{len(absent)} {have} left out; the first: {first}.",
        "the annotation is left out",
        ((describe(row), "no segmentation") for row in absent),
    )


def boxes_of_segmentations(
    entries: Sequence[Mapping[str, Any]],
    sizes: NDArray[np.int64],
    describe: Callable[[int], str],
    findings: Findings,
) -> NDArray[np.float64]:
    """Return the boxes (A, 4) around segmentations, as x, y, width, height; NaN where there is no valid one.

    See `read_segmentations`.
    """
    boxes = np.full((len(entries), 4), np.nan)
    given = [row for row, entry in enumerate(entries) if entry.get("segmentation")]
    if given:
        members = [entries[row] for row in given]
        column, absent = read_segmentations(members, sizes[given], lambda row: describe(given[row]), findings)
        (source,) = column.sources
        if isinstance(source, CocoMasks):
            boxes[np.delete(given, absent)] = source.boxes()[column.row]
    return boxes


def segmentations(masks: MaskColumn, height: int, width: int) -> "list[Segmentation | None]":
    """The masks of one image as COCO writes them: as they are if they come from such a file, others as RLE.

    None where there is no mask, or an empty one.

    Raises:
        OSError: A file with masks cannot be read.
        ValueError: A mask does not have this size.
    """
    from pycocotools import mask as coco_mask

    written: list[Segmentation | None] = [None] * len(masks)
    pixels = []  # rows whose pixels must be read
    for place, (source, row) in enumerate(zip(masks.source.tolist(), masks.row.tolist(), strict=True)):
        origin = masks.sources[source] if source >= 0 else None
        if isinstance(origin, CocoMasks):
            written[place] = origin.segmentation(row)
        elif origin is not None:
            pixels.append(place)
    for place, inside in zip(
        pixels, read_one_by_one(masks[np.array(pixels, dtype=np.int64)], height, width), strict=True
    ):
        if inside.any():
            runs = coco_mask.encode(np.asfortranarray(inside.view(np.uint8)))
            written[place] = {"size": [height, width], "counts": runs["counts"].decode("ascii")}
    return written


def read_one_by_one(masks: MaskColumn, height: int, width: int) -> Iterator[NDArray[np.bool_]]:
    """Yield the masks (height, width) bool of one image, few of which are in memory at a time."""
    count = max(1, _PIXELS_IN_MEMORY // (height * width))
    for start in range(0, len(masks), count):
        yield from masks[start : start + count].read(height, width)


# Panoptic segments


@dataclass(frozen=True, slots=True, eq=False)
class PanopticMasks:
    """Segments in PNG files, where the colour of a pixel is the id of its segment.

    Attributes:
        files: The PNG files.
        file: (A,) int64, index into `files`.
        segment: (A,) int64, id of each row's segment in its file.
        reader: Reads PNG files that are not on the disk; None: they are.
    """

    files: tuple[str, ...]
    file: NDArray[np.int64]
    segment: NDArray[np.int64]
    reader: ImageReader | None = None

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Decode the masks (n, H, W) bool."""
        if len(rows) == 0:
            return np.zeros((0, 0, 0), np.bool_)
        segments = read_segment_ids(self.files[self.file[rows[0]]], self.reader)
        masks: NDArray[np.bool_] = segments == self.segment[rows].astype(np.int32)[:, None, None]
        return masks


def read_segment_ids(path: str, reader: ImageReader | None = None) -> NDArray[np.int32]:
    """Read the segment id of every pixel (H, W) of a panoptic PNG: red + 256 green + 256² blue, or the grey value.

    Args:
        path: The PNG file.
        reader: Reads it if it is not on the disk.

    Raises:
        DatasetNotFoundError: The file does not exist.
        DatasetReadError: It is not a readable image.
    """
    source = image_source(path, reader)
    with opened_image(path, cast(str | BinaryIO, source), "panoptic image") as image:
        if image.mode in ("L", "I", "I;16"):
            return np.asarray(image).astype(np.int32)
        colours = np.asarray(image.convert("RGB"), dtype=np.int32)
    segment_ids: NDArray[np.int32] = colours[..., 0] + 256 * colours[..., 1] + 256 * 256 * colours[..., 2]
    return segment_ids
