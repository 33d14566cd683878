"""Open a dataset in any format."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np

from modeling_detr.data.crowds import settle_crowds
from modeling_detr.data.dataset_format import CROWDS_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings, first_items
from modeling_detr.data.formats import FORMATS, reading_options
from modeling_detr.data.formats.tool_exports import samples
from modeling_detr.data.image_paths import folders_in
from modeling_detr.data.labels import MAX_CLASSES, only_things
from modeling_detr.data.splits import choose_split
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError, DetrError, did_you_mean
from modeling_detr.input_files import require_file
from modeling_detr.remote_addresses import is_remote, without_credentials
from modeling_detr.structures_detr import DetectionIndex, Task


_NEEDED = {"detection": "boxes", "instance": "masks", "panoptic": "panoptic segments"}  # task → what it needs


def open_dataset(
    path: str | Path,
    split: str | None = None,
    format: str | None = None,  # noqa: A002 (the word that users know)
    findings: Findings | None = None,
    task: Purpose = "detection",
    **options: object,
) -> DetectionIndex:
    """Open a dataset in any format of `FORMATS`: COCO, YOLO, Pascal VOC, `datasets`, exports of annotation tools.

    Args:
        path: The dataset's folder; a COCO annotation file (.json); a YOLO description (.yaml); a parquet file; the
            name of a dataset on the Hub (owner/name); or `shapes`, with options as in
            `shapes?size=128&train=8000&val=400&seed=0&panoptic=true`. If a folder without a dataset
            contains a single folder, that one is opened. Also the address of a folder or of such a file in an object
            store or on a web server (`s3://`, `gs://`, `hf://datasets/`, `https://`); see `data.remote`.
        split: Name of a split, or several joined by `+` (`train+val`); None: all images. Classes and labels are always
            those of the whole dataset.
        format: A key of `FORMATS`; None: detected. In a folder with both COCO formats, the task `panoptic` reads the
            panoptic files, all other tasks the instances.
        findings: Collects problems and their locations (`detr data check`); None: the first error is raised.
        task: What the dataset is opened for: `detection` (boxes), `instance` (things with their masks) or `panoptic`
            (every pixel belongs to a thing or to stuff). `conversion` keeps all that can be written in another format:
            boxes, and the masks of objects that have one.
        **options: Options of the format; None and False mean "not set". `images` (most formats): a folder of
            images, which may be outside the dataset's folder, or an address of one; other images outside it are an
            error. `drop_difficult` (VOC): leave out objects marked as difficult. `box_format` (hf, COCO): convention
            of the boxes, one of `dataset_format.BoxFormat` (COCO: `xywh` or `xyxy`); detected by default. `crowds`:
            `as_objects` makes crowd regions ordinary objects, `as_crowds` accepts a dataset that has nothing else.
            `boxes`: whether they were drawn on the `upright` image or on the one `stored`, without its EXIF
            orientation.

    Returns:
        The index of images and annotations; its `notes` list what was left out or changed.

    Raises:
        DatasetNotFoundError: `path` does not exist, or images or labels are missing.
        StoreError: An object store or web server does not answer.
        DatasetError: The format cannot be detected or lacks what the task needs, the split does not exist, or a file
            has unexpected content.
        TypeError: No format has this option.
    """
    if task not in (*get_args(Task), "conversion"):
        raise DatasetError("task", f"got '{task}'", did_you_mean(task, get_args(Task)))
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    findings = Findings() if findings is None else findings
    path, images = (without_credentials(str(place)) for place in (path, given.get("images", "")))
    if not is_remote(path) and not is_remote(images):
        index = _open(path, format, findings, task, given)
    else:
        from modeling_detr.data.remote.opening import RemoteData

        remote = RemoteData(path, given | ({"images": images} if images else {}))
        with remote.reading(findings):
            index = _open(remote.path, format, findings, task, remote.options)
        index = remote.index(index)
    return index if split is None else choose_split(index, split)


def _open(
    path: str | Path,
    format: str | None,  # noqa: A002
    findings: Findings,
    task: Purpose,
    given: Mapping[str, object],
) -> DetectionIndex:
    """Open all splits of a dataset that is on this machine, or a built-in one, or from the Hub; see `open_dataset`."""
    chosen, place = _choose_format(path, format, "detection" if task == "conversion" else task)
    _check_options(chosen, place, given)
    if task == "conversion":
        task = "conversion" if "instance" in chosen.tasks else "detection"
    elif task not in chosen.tasks:
        able = [name for name, entry in FORMATS.items() if task in entry.tasks]
        raise DatasetError(
            place,
            f"format '{chosen.name}' has no {_NEEDED[task]}, which task '{task}' needs",
            f"choose another task, or use a dataset in one of the formats {', '.join(able)}",
        )
    findings.format = chosen.name
    given = dict(given)
    crowds = given.pop(CROWDS_OPTION.name, None)
    index = _read(chosen, place, findings, task, given)
    index = settle_crowds(index, None if crowds is None else str(crowds), place, findings)
    if len(index.categories) > MAX_CLASSES:
        raise DatasetError(place, f"{len(index.categories):,} classes, more than the limit of {MAX_CLASSES:,}")
    if task == "instance" and not all(category.is_thing for category in index.categories):
        index = only_things(index)
    return index


def _read(
    chosen: DatasetFormat, place: str | Path, findings: Findings, task: Purpose, given: Mapping[str, object]
) -> DetectionIndex:
    """Read a dataset; whatever a reader raises becomes an error that names it."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # boxes of 1e308 pixels become infinite, which is reported
            return chosen.read(place, findings=findings, task=task, **given)
    except DetrError:
        raise
    except Exception as error:  # something in the dataset that its reader does not expect
        reason = " ".join(str(error).split()) or "no details"
        problem = f"cannot be read as format '{chosen.name}' ({type(error).__name__}: {reason})"
        raise DatasetReadError(place, problem, "compare it with the description of the format") from error


def _choose_format(
    path: str | Path,
    format: str | None,  # noqa: A002
    task: Task,
) -> tuple[DatasetFormat, str | Path]:
    """Return the format of a dataset, and the name, file or folder to read it from."""
    if format is not None and format not in FORMATS:
        raise DatasetError("format", f"got '{format}'", did_you_mean(format, FORMATS))
    candidates = list(FORMATS.values()) if format is None else [FORMATS[format]]
    text = str(path)
    for candidate in candidates:
        if candidate.is_name(text, candidate.name == format):
            return candidate, text
    place = Path(path).expanduser()
    if not place.exists():
        other = next(
            (name for name, entry in FORMATS.items() if format is not None and entry.is_name(text, False)), None
        )
        if other is not None:
            raise DatasetNotFoundError(
                text, f"no such file or folder, read as format '{format}'", "choose another format", {"format": other}
            )
        raise DatasetNotFoundError(place, f"no such file or folder ({place.resolve()})", "check the path or name")
    return (FORMATS[format], place) if format is not None else _detect_format(place, task)


def _detect_format(path: Path, task: Task) -> tuple[DatasetFormat, Path]:
    """Detect the format of the dataset at `path`, or in the only folder inside it."""
    samples.cache_clear()
    place: Path | None = path
    while place is not None:
        fitting = [entry for entry in FORMATS.values() if entry.find(place)]
        fitting = fitting or [entry for entry in FORMATS.values() if entry.find_hints(place)]
        if len(fitting) > 1:
            fitting = [entry for entry in fitting if task in entry.tasks] or fitting
            names = {entry.name for entry in fitting}
            fitting = [entry for entry in fitting if names.isdisjoint(entry.defers_to)]
        if len(fitting) > 1:
            raise DatasetError(
                place,
                f"could be read as {' or as '.join(entry.name for entry in fitting)}",
                "pass the path of the annotation file (.json) or description (.yaml), or choose the format",
                {"format": fitting[0].name},
            )
        if fitting:
            return fitting[0], place
        place = _only_folder(place)
    if not path.is_dir():
        require_file(path)
        remedy = "expected a dataset's folder, or a .json, .xml, .csv, .yaml or .parquet file"
        raise DatasetError(path, "not a dataset file", remedy)
    entries = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    if not entries:
        raise DatasetError(path, "an empty folder", "pass the folder of a dataset")
    raise DatasetError(
        path,
        f"found only {first_items(entries, 3)}, no annotations",
        f"expected one of {', '.join(f'{entry.looked_for} ({name})' for name, entry in FORMATS.items())}",
    )


def _only_folder(path: Path) -> Path | None:
    """Return the only folder in `path`, as archives often unpack to one; None if there is none or several."""
    folders = [folder for folder in folders_in(path) if not folder.name.startswith("__")]
    return folders[0] if len(folders) == 1 else None


def _check_options(chosen: DatasetFormat, place: str | Path, given: Mapping[str, object]) -> None:
    """Raise an error if an option is unknown, belongs to another format, or is a folder that does not exist."""
    known = reading_options()
    taken = {option.name for option in chosen.options}
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"open_dataset() has no option '{name}'; {did_you_mean(name, known)}")
        if name not in taken:
            able = [entry.name for entry in FORMATS.values() if known[name] in entry.options]
            raise DatasetError(
                place,
                f"format '{chosen.name}' has no option '{name}'",
                "drop it, or choose another format",
                {"format": able[0]},
            )
        if known[name].choices and value not in known[name].choices:
            raise DatasetError(name, f"got '{value}'", did_you_mean(str(value), known[name].choices))
        if known[name].kind is Path and not Path(str(value)).is_dir():
            raise DatasetNotFoundError(value, "no such folder", f"set {name} to an existing folder")
