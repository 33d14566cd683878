"""Check a dataset for `detr data check`: count its content, and report everything that is wrong with it.

Images are decoded once, see `check_pixels`; their thumbnails are kept, to recognise an image in another split.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import repeated_boxes
from modeling_detr.data.check_pixels import Pixels, alike, decode_images, images_to_decode
from modeling_detr.data.contents import CONTENTS, FLAGS, SCORE, count_contents
from modeling_detr.data.dataset_format import Purpose
from modeling_detr.data.findings import Finding, Findings, counted
from modeling_detr.data.formats import FORMATS
from modeling_detr.data.open import open_dataset
from modeling_detr.data.splits import has_role
from modeling_detr.errors_detr import DatasetError, DetrError, StoreError, printable, python_argument
from modeling_detr.remote_addresses import is_remote, without_credentials
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex


_NUM_QUERIES = 100  # of the original model
_SIMILAR = 0.85  # ratio of difflib; "RBBC" and "RBC" have 0.857, "plate" and "plane" 0.8
_RARE = 0.01  # share of the other class's boxes up to which a similar name counts as misspelt
_MAX_COMPARED = 200  # classes; the comparison is quadratic
_HEADINGS = {  # kinds of the JSON report → headings in the text report, where they differ
    "box": "invalid box",
    "line": "invalid line",
    "no box": "annotation without a box",
    "outside": "box outside the image",
    "area": "invalid area",
    "corners": "boxes that may be corners",
}


@dataclass(frozen=True)
class CheckReport:
    """The result of checking a dataset.

    Attributes:
        index: The part of the dataset that could be read.
        findings: All findings, errors first.
        format: Name of the dataset's format; None if it could not be detected.
        bad_images: Indices of the unusable images.
        evidence: What the format was recognised by; None if the user has chosen it.
        facts: What the reader has decided about the dataset as a whole, such as what the lines of its files are.
        names: How the names of files were resolved; see `Findings.names`.
        decoded: How many images were decoded.
        is_sample: Whether they were drawn at random, so that others may be damaged or repeated.
    """

    index: DetectionIndex
    findings: tuple[Finding, ...]
    format: str | None
    bad_images: tuple[int, ...]
    evidence: str | None = None
    facts: tuple[str, ...] = ()
    names: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    decoded: int = 0
    is_sample: bool = False

    @property
    def errors(self) -> int:
        """The number of errors: findings that stop or spoil training."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def good_images(self) -> NDArray[np.int64]:
        """Indices of the usable images."""
        return np.setdiff1d(np.arange(len(self.index)), np.array(self.bad_images, dtype=np.int64))

    def as_dict(self, format_setting: Callable[[str, object], str] = python_argument) -> dict[str, Any]:
        """The report as plain values for JSON; `format_setting` formats a setting the way the user can give it."""
        index = self.index
        return {
            "name": index.name,
            "format": self.format,
            "evidence": self.evidence,
            "facts": list(self.facts),
            "decoded": self.decoded,
            **_counts(index, np.arange(len(index))),
            "splits": {name: _counts(index, members) for name, members in index.splits.items()},
            "classes": _classes(index),
            "box_sizes": _quantiles(_box_sides(index.annotations)),
            "attributes": {name: n for name, n in count_contents(index).items() if name in (*FLAGS, SCORE)},
            "objects_an_image": _quantiles(_objects(index).astype(np.float64)),
            "names": {noun: dict(counts) for noun, counts in self.names.items()},
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "findings": [finding.as_dict(format_setting) for finding in self.findings],
        }

    def to_text(self, shown: int = 3, format_setting: Callable[[str, object], str] = python_argument) -> str:
        """The report as text.

        Args:
            shown: Largest number of findings listed per kind.
            format_setting: Formats a setting the way the user can give it.
        """
        content = self.as_dict()
        lines = [
            f"{content['name']} ({self.format or 'unknown format'}): {counted(content['images'], 'image')}, "
            f"{counted(content['boxes'], 'box', 'boxes')}, {counted(len(content['classes']), 'class', 'classes')}"
        ]
        if self.evidence:
            lines.append(f"  format {self.format}, recognised by {self.evidence}")
        lines += [f"  {fact}" for fact in [*self.facts, *self.sample_note(format_setting)]]
        for name, split in content["splits"].items():
            lines.append(
                f"  split {name}: {counted(split['images'], 'image')} ({split['images_without_boxes']:,} without "
                f"boxes), {counted(split['boxes'], 'box', 'boxes')}"
                + (f", including {counted(split['crowds'], 'crowd region')}" if split["crowds"] else "")
            )
        for entry in content["classes"]:
            lines.append(
                f"  class {entry['id']} {entry['name']}: {counted(entry['boxes'], 'box', 'boxes')} "
                f"({entry['share']:.1%}) in {counted(entry['images'], 'image')}"
            )
        if content["attributes"]:
            read = ", ".join(counted(count, *CONTENTS[name]) for name, count in content["attributes"].items())
            lines.append(f"  {read}, which only conversions use")
        for title, key, unit in (
            ("box size (square root of the area)", "box_sizes", " px"),
            ("objects per image", "objects_an_image", ""),
        ):
            if content[key]:
                least, low, median, high, most = (f"{value:.3g}" for value in content[key].values())
                ranges = f"80% from {low} to {high}{unit}, all from {least} to {most}{unit}"
                lines.append(f"  {title}: median {median}{unit}, {ranges}")
        lines += [f"  names of {noun}s: {text}" for noun, text in self.resolution().items()]
        lines += self._finding_lines(shown, format_setting)
        lines.append(f"{counted(self.errors, 'error')}, {counted(len(self.findings) - self.errors, 'warning')}")
        return "\n".join(map(printable, lines))

    def sample_note(self, format_setting: Callable[[str, object], str] = python_argument) -> list[str]:
        """A sentence that says how many images were decoded, if it was a sample."""
        if not self.is_sample:
            return []
        number = f"decoded {self.decoded:,} of {counted(len(self.index), 'image')}, drawn at random"
        return [f"{number}: others may be damaged or repeated ({format_setting('pixels', 'all')} decodes all)"]

    def resolution(self) -> dict[str, str]:
        """How the names of each kind of file were resolved, in words."""
        return {
            noun: ", ".join(
                f"{count:,} {kind if kind == 'as written' else f'although they differ in {kind}'}"
                for kind, count in counts.items()
                if count
            )
            for noun, counts in self.names.items()
            if sum(counts.values())
        }

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings by heading, such as `error: invalid box`."""
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            heading = f"{finding.severity}: {_HEADINGS.get(finding.kind, finding.kind)}"
            kinds.setdefault(heading, []).append(finding)
        return kinds

    def _finding_lines(self, shown: int, format_setting: Callable[[str, object], str]) -> list[str]:
        lines = []
        for heading, findings in self.by_kind().items():
            lines.append(f"{heading} ({len(findings):,})")
            lines += [f"  {finding.text(format_setting)}" for finding in findings[:shown]]
            if len(findings) > shown:
                lines.append(f"  and {len(findings) - shown:,} more")
        return lines

    def clean_index(self) -> DetectionIndex:
        """The dataset without unusable images and without duplicate boxes."""
        index = self.index.select(self.good_images)
        table = index.annotations
        repeated = repeated_boxes(table.image_index, table.label, table.is_crowd, table.boxes_xyxy)
        return dataclasses.replace(index, annotations=table.take(~repeated))


def check_dataset(
    path: str | Path,
    format: str | None = None,  # noqa: A002 (the word that users know)
    *,
    pixels: Pixels = "all",
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
    reading: Mapping[str, Any] | None = None,
    task: Purpose = "detection",
) -> CheckReport:
    """Read a dataset, continuing after errors, decode its images, and report what is wrong.

    Args:
        path: See `open_dataset`.
        format: See `open_dataset`.
        pixels: Images to decode: `all`, `none`, or at most this many, drawn at random.
        num_workers: Processes that decode them; 0: threads of this one; None: one per core if there are many images.
        progress: Called with the number of images decoded since the last call.
        reading: Options of the format; see `open_dataset`.
        task: See `open_dataset`; for `conversion`, a clean copy keeps masks.

    Raises:
        DatasetNotFoundError: `path` does not exist.
        StoreError: An object store or web server does not answer.
        LoaderError: A process that decodes was killed.
    """
    path = without_credentials(path) if isinstance(path, str) else path
    findings = Findings(collects=True)
    try:
        index = open_dataset(path, format=format, findings=findings, task=task, **dict(reading or {}))
    except (ValueError, OSError) as error:
        if isinstance(error, StoreError) or not (is_remote(str(path)) or Path(path).expanduser().exists()):
            raise
        if not isinstance(error, DetrError):
            error = DatasetError(path, str(error).rstrip("."), "fix the dataset")
        findings.add("unreadable dataset", error)
        index = DetectionIndex(Path(path).name, (), (), AnnotationTable.concatenate([]))
    _check_annotations(index, findings)
    _check_class_names(index, findings)
    decoded = images_to_decode(index, pixels, findings.broken_images)
    thumbnails = decode_images(index, decoded, findings, num_workers, progress) if len(decoded) else None
    _check_splits(index, findings)
    if thumbnails is not None:
        _check_leaks(index, thumbnails, findings)
    bad = [image for image, record in enumerate(index.images) if record.path in findings.broken_images]
    ordered = sorted(findings.items, key=lambda finding: finding.severity != "error")
    evidence = None if format is not None or findings.format is None else FORMATS[findings.format].evidence
    facts, is_sample = tuple(findings.facts), isinstance(pixels, int) and pixels < len(index)
    return CheckReport(
        index, tuple(ordered), findings.format, tuple(bad), evidence, facts, findings.names, len(decoded), is_sample
    )


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
    if len(index) and not len(index.annotations):
        findings.error(
            "no boxes", index.name, "no image has a box", "annotate the images, or check the path of the labels"
        )
    counts = _objects(index)
    if (counts > _NUM_QUERIES).any():
        findings.warn(
            "many objects",
            f"{counted(int((counts > _NUM_QUERIES).sum()), 'image')} with more than {_NUM_QUERIES} objects.",
            f"a model detects at most one object per query; set model_config.num_queries above {counts.max()}",
            (
                (index.images[image].path, f"has {counts[image]} objects")
                for image in np.flatnonzero(counts > _NUM_QUERIES).tolist()
            ),
        )


def _check_class_names(index: DetectionIndex, findings: Findings) -> None:
    """Warn of classes that may be misspelt: equal to another but for case and spacing, or rare and similar."""
    boxes = np.bincount(index.annotations.label, minlength=len(index.categories))
    label_of: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []  # the rarer class, and the one that it is probably meant to be
    for label in np.flatnonzero(boxes)[np.argsort(-boxes[boxes > 0], kind="stable")].tolist():  # frequent ones first
        name = re.sub(r"[\W_]+", "", index.categories[label].name).casefold()
        if name in label_of:
            pairs.append((label, label_of[name]))
            continue
        others = [other for other, seen in label_of.items() if boxes[label] <= _RARE * boxes[seen]]
        if len(index.categories) <= _MAX_COMPARED:
            for other in difflib.get_close_matches(name, others, n=1, cutoff=_SIMILAR):
                if re.sub(r"\d", "", name) != re.sub(r"\d", "", other):  # "size 1" and "size 10" are two classes
                    pairs.append((label, label_of[other]))
        label_of[name] = label
    if pairs:
        names = [category.name for category in index.categories]
        findings.warn(
            "similar class names",
            "some classes have nearly the same name.",
            "if so, rename it in the annotations",
            (
                (
                    f"class '{names[label]}'",
                    f"has {counted(int(boxes[label]), 'box', 'boxes')} and may be another spelling of "
                    f"'{names[other]}' ({counted(int(boxes[other]), 'box', 'boxes')})",
                )
                for label, other in pairs
            ),
        )


def _check_splits(index: DetectionIndex, findings: Findings) -> None:
    splits = _separate_splits(index)
    if len(splits) > 1:
        table = index.annotations
        only: list[tuple[object, str]] = []
        for label in np.unique(table.label).tolist():
            category = index.categories[label]
            images = np.unique(table.image_index[table.label == label])
            inside = [name for name, members in splits.items() if len(np.intersect1d(images, members))]
            if len(inside) == 1:
                only.append(_only_in(category.name, inside[0]))
        if only:
            findings.warn(
                "class in one split",
                "some classes have boxes in a single split only.",
                "divide its images among the splits",
                only,
            )
    for name, members in index.splits.items():
        if not np.isin(index.annotations.image_index, members).any() and len(index.annotations):
            findings.warn(
                "split without boxes",
                f"split '{name}' has no boxes.",
                "it cannot be used for training or evaluation",
                [(f"split '{name}'", "has no boxes")],
            )


def _only_in(name: str, split: str) -> tuple[object, str]:
    """Where a class with boxes in a single split is, and what follows."""
    consequence = "it cannot be evaluated" if has_role(split, "train") else "it cannot be learned"
    return f"class '{name}'", f"has boxes only in the split '{split}', so {consequence}"


def _separate_splits(index: DetectionIndex) -> dict[str, NDArray[np.int64]]:
    """The splits, except those that contain all of another split (trainval)."""
    # by path: in some formats, an image of two splits is listed twice
    sets = {
        name: {index.images[image].path for image in members.tolist()}
        for name, members in index.splits.items()
        if len(members)
    }
    return {
        name: index.splits[name]
        for name, members in sets.items()
        if not any(other < members for other in sets.values())
    }


# Images


def _check_leaks(index: DetectionIndex, thumbnails: NDArray[np.uint8], findings: Findings) -> None:
    """Report images that are in several splits, as the same file or as a near-duplicate."""
    splits = _separate_splits(index)
    if len(splits) < 2:
        return
    membership = np.zeros((len(index), len(splits)), np.bool_)
    for column, members in enumerate(splits.values()):
        membership[members, column] = True
    names = list(splits)

    def splits_of(image: int) -> str:
        return " and ".join(name for name, inside in zip(names, membership[image], strict=True) if inside)

    several = np.flatnonzero(membership.sum(1) > 1).tolist()
    action = "remove it from all but one of them; otherwise metrics on these splits are too optimistic"
    if several:
        findings.warn(
            "image in several splits",
            f"{counted(len(several), 'image')} in several splits.",
            action,
            ((index.images[image].path, f"is in the splits {splits_of(image)}") for image in several),
        )
    pairs = alike(thumbnails, membership)
    if pairs:
        findings.warn(
            "near-duplicate images",
            f"{counted(len(pairs), 'image')} nearly identical to an image in another split.",
            action,
            (
                (
                    index.images[first].path,
                    f"is in split {splits_of(first)}, and also in split {splits_of(second)} as "
                    f"{index.images[second].path}",
                )
                for first, second in pairs
            ),
        )
