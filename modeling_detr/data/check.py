"""What `detr data check` says of a dataset: its counts, and everything that is wrong with it.

Every image is decoded once, by threads (Pillow lets others work meanwhile): JPEG at an eighth of its size, which reads
the whole file and so finds one that is cut off, but takes less time than all pixels. What is kept of an image is
272 bytes, for finding it again in another split.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.data.findings import Finding, Findings
from modeling_detr.data.image_files import EXIF_ORIENTATION
from modeling_detr.data.images import read_image
from modeling_detr.data.open import open_dataset
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex, ImageRecord


_CHUNK = 512  # images that are under way at a time
_ALIKE_BITS = 12  # of 256: most that near-duplicates differ in
_LEAST_STRUCTURE = 4.0  # standard deviation in grey levels, below which images are not compared
_ALIKE_LEVELS = 6.0  # grey levels of 255: most that their thumbnails differ by on average


@dataclass(frozen=True)
class CheckReport:
    """A dataset and what is wrong with it.

    Attributes:
        index: What could be read.
        findings: Errors first; within a severity in the order they were found.
        format: As found; None for the built-in shapes, or if it cannot be told.
        bad_images: Positions of images that cannot be used.
    """

    index: DetectionIndex
    findings: tuple[Finding, ...]
    format: str | None
    bad_images: tuple[int, ...]

    @property
    def errors(self) -> int:
        """How many findings stop or spoil training."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def good_images(self) -> NDArray[np.int64]:
        """Positions of the images that can be used."""
        return np.setdiff1d(np.arange(len(self.index)), np.array(self.bad_images, dtype=np.int64))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        index = self.index
        return {
            "name": index.name,
            "format": self.format,
            **_counts(index, np.arange(len(index))),
            "splits": {name: _counts(index, members) for name, members in index.splits.items()},
            "classes": _classes(index),
            "box_sizes": _quantiles(_box_sides(index.annotations)),
            "objects_an_image": _quantiles(_objects(index).astype(np.float64)),
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def to_text(self, shown: int = 10) -> str:
        """The report as lines; of each kind of finding the first `shown`."""
        content = self.as_dict()
        lines = [
            f"{content['name']} ({self.format or 'no format'}): {content['images']:,} images, {content['boxes']:,} "
            f"boxes, {len(content['classes'])} classes"
        ]
        for name, split in content["splits"].items():
            lines.append(
                f"  split {name}: {split['images']:,} images ({split['images_without_boxes']:,} without boxes), "
                f"{split['boxes']:,} boxes" + (f", {split['crowds']:,} of crowds" if split["crowds"] else "")
            )
        for entry in content["classes"]:
            lines.append(
                f"  class {entry['id']} {entry['name']}: {entry['boxes']:,} boxes ({entry['share']:.1%}) in "
                f"{entry['images']:,} images"
            )
        for title, key, unit in (
            ("box size (square root of its area)", "box_sizes", " px"),
            ("objects an image", "objects_an_image", ""),
        ):
            if content[key]:
                figures = ", ".join(f"{name} {value:.4g}{unit}" for name, value in content[key].items())
                lines.append(f"  {title}: {figures}")
        kinds: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            kinds.setdefault((finding.severity, finding.kind), []).append(finding)
        for (severity, kind), found in kinds.items():
            lines.append(f"{severity}: {kind} ({len(found):,})")
            lines += [f"  {finding}" for finding in found[:shown]]
            if len(found) > shown:
                lines.append(f"  and {len(found) - shown:,} more (--all shows them)")
        lines.append(f"{self.errors:,} errors, {len(self.findings) - self.errors:,} warnings")
        return "\n".join(lines)

    def clean_index(self) -> DetectionIndex:
        """The dataset without images that cannot be used, and with exact duplicates of boxes once."""
        index = self.index.select(self.good_images)
        repeated = np.zeros(len(index.annotations), np.bool_)
        repeated[_duplicates(index.annotations)] = True
        return dataclasses.replace(index, annotations=index.annotations.take(~repeated))


def check_dataset(
    path: str | Path,
    format: str | None = None,  # noqa: A002 (the word that users know)
    *,
    images: bool = True,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
    reading: Mapping[str, Any] | None = None,
) -> CheckReport:
    """Reads a dataset past all errors, decodes its images, and says what was found.

    Args:
        path: See `open_dataset`.
        format: See there.
        images: Whether the images are decoded.
        threads: That decode; None: as many as there are cores.
        progress: Called with a number of images that have been looked at.
        reading: Further arguments of `open_dataset`: images, drop_difficult, box_format.

    Raises:
        FileNotFoundError: There is nothing at `path`.
    """
    findings = Findings(collects=True)
    try:
        index = open_dataset(path, format=format, findings=findings, **(reading or {}))
    except (ValueError, OSError) as error:
        if not Path(path).expanduser().exists():
            raise
        message, _, remedy = str(error).rstrip(".").removeprefix(f"{path}: ").removeprefix(f"{path} ").partition("; ")
        findings.error("unreadable dataset", f"{path}:", message, remedy or "mend it")
        index = DetectionIndex(Path(path).name, (), (), AnnotationTable.concatenate([]))
    _check_annotations(index, findings)
    prints: NDArray[np.uint8] | None = None
    if images:
        prints = _check_images(index, findings, threads or os.cpu_count() or 1, progress)
    _check_splits(index, findings)
    if prints is not None:
        _check_leaks(index, prints, findings)
    bad = [number for number, record in enumerate(index.images) if record.path in findings.broken_images]
    ordered = sorted(findings.items, key=lambda finding: finding.severity != "error")
    return CheckReport(index, tuple(ordered), findings.format, tuple(bad))


# Counts


def _counts(index: DetectionIndex, members: NDArray[np.int64]) -> dict[str, int]:
    inside = np.zeros(len(index), np.bool_)
    inside[members] = True
    table = index.annotations
    rows = inside[table.image_index]
    with_boxes = len(np.unique(table.image_index[rows]))
    return {
        "images": int(inside.sum()),
        "images_without_boxes": int(inside.sum()) - with_boxes,
        "boxes": int(rows.sum()),
        "crowds": int(table.is_crowd[rows].sum()),
    }


def _classes(index: DetectionIndex) -> list[dict[str, Any]]:
    table = index.annotations
    boxes = np.bincount(table.label, minlength=len(index.categories))
    pairs = np.unique(np.stack([table.label, table.image_index]), axis=1)
    images = np.bincount(pairs[0], minlength=len(index.categories))
    return [
        {
            "id": category.id,
            "name": category.name,
            "boxes": int(boxes[label]),
            "share": float(boxes[label] / max(1, len(table))),
            "images": int(images[label]),
        }
        for label, category in enumerate(index.categories)
    ]


def _box_sides(table: AnnotationTable) -> NDArray[np.float64]:
    sides: NDArray[np.float64] = np.sqrt((table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]).prod(-1))
    return sides


def _objects(index: DetectionIndex) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.bincount(index.annotations.image_index, minlength=len(index)).astype(np.int64)
    return counts


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    points = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
    return dict(zip(("least", "10%", "median", "90%", "most"), (float(point) for point in points), strict=True))


# Annotations and splits


def _check_annotations(index: DetectionIndex, findings: Findings) -> None:
    table = index.annotations
    if len(index) and not len(table):
        findings.error("no boxes", f"{index.name}:", "no image has a box", "annotate it, or point at its labels")
    counts = _objects(index)
    most = 100  # queries of the original
    if (counts > most).any():
        findings.warn(
            "many objects",
            "images hold more objects than 100.",
            f"those beyond the model's queries take no part; raise model_config.num_queries above {counts.max()}",
            (
                (f"{index.images[position].path}:", f"holds {counts[position]} objects")
                for position in np.flatnonzero(counts > most).tolist()
            ),
        )


def _duplicates(table: AnnotationTable) -> NDArray[np.int64]:
    """Rows that repeat image, class, box and crowd of an earlier one exactly."""
    if not len(table):
        return np.zeros(0, np.int64)
    rows = np.column_stack([table.image_index, table.label, table.is_crowd, table.boxes_xyxy])
    _, first = np.unique(rows, axis=0, return_index=True)
    return np.setdiff1d(np.arange(len(table)), first)


def _check_splits(index: DetectionIndex, findings: Findings) -> None:
    splits = _separate_splits(index)
    if len(splits) > 1:
        table = index.annotations
        found: list[tuple[object, str]] = []
        for label, category in enumerate(index.categories):
            images = np.unique(table.image_index[table.label == label])
            inside = [name for name, members in splits.items() if len(np.intersect1d(images, members))]
            if len(inside) == 1:
                found.append((f"class '{category.name}'", f"has boxes in the split '{inside[0]}' only"))
        if found:
            findings.warn("class in one split", "classes are in one split only.", "nothing is done about it", found)
    for name, members in index.splits.items():
        if not np.isin(index.annotations.image_index, members).any() and len(index.annotations):
            findings.warn(
                "split without boxes",
                f"{name} has no boxes.",
                "it cannot be trained on or evaluated",
                [(f"split '{name}'", "has no boxes")],
            )


def _separate_splits(index: DetectionIndex) -> dict[str, NDArray[np.int64]]:
    """The splits but those that hold another one whole (trainval)."""
    sets = {name: {*members.tolist()} for name, members in index.splits.items() if len(members)}
    return {
        name: index.splits[name]
        for name, members in sets.items()
        if not any(other < members for other in sets.values())
    }


# Images


def _check_images(
    index: DetectionIndex, findings: Findings, threads: int, progress: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Decodes every image; returns a thumbnail (N, 16, 17) uint8 of each, zeros of those that cannot be read."""
    thumbnails = np.zeros((len(index), 16, 17), np.uint8)

    def look(position: int) -> Exception | None:
        try:
            thumbnails[position] = _thumbnail(index.images[position])
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            return error
        return None

    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, and of large images
        for start in range(0, len(index), _CHUNK):
            chunk = [
                position
                for position in range(start, min(start + _CHUNK, len(index)))
                if index.images[position].path not in findings.broken_images
            ]
            for position, error in zip(chunk, pool.map(look, chunk), strict=True):
                if error is not None:
                    _add_image_error(index.images[position].path, error, findings)
            progress(min(start + _CHUNK, len(index)) - start)
    return thumbnails


def _add_image_error(path: str, error: Exception, findings: Findings) -> None:
    message, separator, remedy = str(error).removeprefix(f"{path}: ").rstrip(".").rpartition("; ")
    if not separator:
        message, remedy = remedy, "replace it, or remove it and its annotations"
    kind = "image size" if isinstance(error, ValueError) else "unreadable image"
    findings.error(kind, f"{path}:", message, remedy, image=path)


def _thumbnail(record: ImageRecord) -> NDArray[np.uint8]:
    """The image in 16 x 17 grey pixels, after everything in it has been read.

    Raises:
        OSError: It is not there or cannot be decoded.
        ValueError: It has not the size that its annotations say.
    """
    if Path(record.path).is_file():
        try:
            with Image.open(record.path) as image:
                orientation = image.getexif().get(EXIF_ORIENTATION, 1) if image.format == "JPEG" else 1
                upright = (image.height, image.width) == (record.height, record.width)
                if image.format == "JPEG" and orientation == 1 and upright:
                    image.draft("L", (image.width // 8, image.height // 8))
                    return _shrink(image)
        except (OSError, SyntaxError):
            pass  # the reader below says what it is
    return _shrink(Image.fromarray(read_image(record).permute(1, 2, 0).numpy()))


def _shrink(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX))


def _check_leaks(index: DetectionIndex, thumbnails: NDArray[np.uint8], findings: Findings) -> None:
    """Images of one split that are in another too, as the same file or as one that looks the same."""
    splits = _separate_splits(index)
    if len(splits) < 2:
        return
    membership = np.zeros((len(index), len(splits)), np.bool_)
    for column, members in enumerate(splits.values()):
        membership[members, column] = True
    names = list(splits)

    def of(position: int) -> str:
        return " and ".join(name for name, inside in zip(names, membership[position], strict=True) if inside)

    several = np.flatnonzero(membership.sum(1) > 1).tolist()
    if several:
        findings.warn(
            "image in several splits",
            f"{len(several)} images are in several splits.",
            "nothing is done about it; figures of such a split flatter",
            ((f"{index.images[position].path}:", f"is in the splits {of(position)}") for position in several),
        )
    pairs = _alike(thumbnails, membership)
    if pairs:
        findings.warn(
            "near-duplicate images",
            f"{len(pairs)} images look the same as one of another split.",
            "nothing is done about it; figures of such a split flatter",
            (
                (
                    f"{index.images[first].path}:",
                    f"(split {of(first)}) looks the same as {index.images[second].path} (split {of(second)})",
                )
                for first, second in pairs
            ),
        )


def _alike(thumbnails: NDArray[np.uint8], membership: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Images that look the same as one of another split, each with one such: the slopes of grey agree, and the levels.

    Candidates share one of 16 bands of their 256 slopes, as those that differ in fewer than 16 always do. Images
    without structure are left out, and of many alike in a band each is compared with its neighbours only.
    """
    slopes = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    bits = np.packbits(slopes.reshape(len(thumbnails), 256), axis=1)  # (N, 32)
    structured = np.array([thumbnail.std() > _LEAST_STRUCTURE for thumbnail in thumbnails], dtype=np.bool_)
    structured &= membership.any(1)
    found: dict[int, int] = {}
    for band in range(16):
        part = bits[:, 2 * band].astype(np.int64) << 8 | bits[:, 2 * band + 1]
        order = np.argsort(part, kind="stable")
        order = order[structured[order]]
        for step in range(1, 33):
            left, right = order[:-step], order[step:]
            rows = part[left] == part[right]
            if not rows.any():
                break
            left, right = left[rows], right[rows]
            rows = ~(membership[left] & membership[right]).any(1)
            left, right = left[rows], right[rows]
            for start in range(0, len(left), 65536):
                one, two = left[start : start + 65536], right[start : start + 65536]
                near = np.bitwise_count(bits[one] ^ bits[two]).sum(1) <= _ALIKE_BITS
                for first, second in zip(one[near].tolist(), two[near].tolist(), strict=True):
                    first, second = min(first, second), max(first, second)
                    levels = np.abs(thumbnails[first].astype(np.int16) - thumbnails[second]).mean()
                    if second not in found and levels <= _ALIKE_LEVELS:
                        found[second] = first
    return sorted((first, second) for second, first in found.items())
