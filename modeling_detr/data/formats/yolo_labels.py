"""The label files of a YOLO dataset: which one belongs to an image, and what its lines say."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modeling_detr.data.annotations import AnnotationRows, to_number
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.formats.yolo_description import NAME_FILES, Description
from modeling_detr.data.formats.yolo_lines import Lines
from modeling_detr.data.image_paths import FolderListings, is_split_name
from modeling_detr.errors_detr import DatasetNotFoundError, FileReadError
from modeling_detr.input_files import read_text


_MAX_NUMBERS = 200_000  # in a line, a polygon of 100,000 points


def find_label_files(
    description: Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> list[str | None]:
    """Find the label file of each image, None for backgrounds. Label files for one image folder are in one folder."""
    label_folder = _choose_label_folders(description, images, listings, findings)
    files: list[str | None] = []
    for image in images:
        folder, _, name = image.rpartition("/")
        place = label_folder[folder]
        files.append(_find_label_file(place, folder, name.rpartition(".")[0], listings) if place else None)
    _note_images_without_labels(description, images, files, label_folder, findings)
    _note_labels_without_images(description, label_folder, files, listings, findings)
    return files


def _choose_label_folders(
    description: Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> dict[str, str | None]:
    """Choose, for each folder of images, the folder with most of their label files; None if there are none."""
    stems_of: dict[str, list[str]] = {}
    for image in images:
        folder, _, name = image.rpartition("/")
        stems_of.setdefault(folder, []).append(name.rpartition(".")[0])
    label_folder: dict[str, str | None] = {}
    searched: list[str] = []
    for folder, stems in stems_of.items():
        candidates = _label_folders(Path(folder), description.root)
        counts = [
            sum(listings.find(candidate, f"{stem}.txt") is not None for stem in stems) for candidate in candidates
        ]
        best = int(np.argmax(counts))
        label_folder[folder] = candidates[best] if counts[best] else None
        searched += candidates
        if not counts[best]:
            note = f"no label files for {counted(len(stems), 'image')} in {folder}, treated as background."
            message = f"no label files for its {counted(len(stems), 'image')}"
            findings.warn("no label file", note, "treated as background", [(folder, message)])
    if not any(label_folder.values()):
        raise DatasetNotFoundError(
            description.source,
            f"no image has a label file, searched {', '.join(dict.fromkeys(searched))}",
            "name label files like their images (a.jpg, a.txt), in 'labels' if the images are in a folder 'images'",
        )
    return label_folder


def _find_label_file(place: str, folder: str, stem: str, listings: FolderListings) -> str | None:
    """Find the label file of an image; otherwise one whose name differs only in case and belongs
    to no other image."""
    file = listings.find(place, f"{stem}.txt")
    found = file.rpartition("/")[2].rpartition(".")[0] if file else stem
    return file if found == stem or found not in listings.image_stems(folder) else None


def _note_images_without_labels(
    description: Description,
    images: Sequence[str],
    files: Sequence[str | None],
    label_folder: Mapping[str, str | None],
    findings: Findings,
) -> None:
    total: Counter[str] = Counter()
    without: dict[str, list[str]] = {}
    for image, file in zip(images, files, strict=True):
        folder = image.rpartition("/")[0]
        total[folder] += 1
        if file is None and label_folder[folder]:
            without.setdefault(folder, []).append(image)
    for folder, bare in without.items():
        have = "has no label file and is treated as background"
        if len(bare) > 1:
            have = "have no label file and are treated as backgrounds"
        findings.warn(
            "no label file",
            f"{len(bare)} of {total[folder]} images in {relative_path(folder, description.root)} {have}; the first: "
            f"{bare[0]}.",
            "treated as background",
            ((image, "has no label file, though others in its folder have one") for image in bare),
        )


def _note_labels_without_images(
    description: Description,
    label_folder: Mapping[str, str | None],
    files: Sequence[str | None],
    listings: FolderListings,
    findings: Findings,
) -> None:
    """Note label files that match no image, whether or not the image is in a split."""
    folders_of: dict[str, list[str]] = {}
    for folder, place in label_folder.items():
        if place:
            folders_of.setdefault(place, []).append(folder)
    used = {file for file in files if file}
    for place, folders in folders_of.items():
        stems = {stem for folder in folders for stem in listings.image_stems(folder)}
        lost = [
            name
            for name in sorted(listings.names(place))
            if _may_be_labels(name) and f"{place}/{name}" not in used and name.rpartition(".")[0] not in stems
        ]
        if lost:
            belong = "belongs to no image and is" if len(lost) == 1 else "belong to no image and are"
            findings.warn(
                "label file without image",
                f"{counted(len(lost), 'label file')} in {relative_path(place, description.root)} {belong} left out; "
                f"the first: {place}/{lost[0]}.",
                "the file is left out",
                ((f"{place}/{name}", "belongs to no image") for name in lost),
            )


def _may_be_labels(name: str) -> bool:
    """Whether a text file may contain labels: not a list of classes or images, and not a readme or license."""
    stem, _, suffix = name.rpartition(".")
    about = name in NAME_FILES or is_split_name(stem) or stem.lower().startswith(("readme", "license"))
    return suffix.lower() == "txt" and not about and not name.startswith(".")


def _label_folders(folder: Path, root: Path) -> list[str]:
    """List the folders that may contain the labels of the images in `folder`, the most common ones first."""
    inside = folder.relative_to(root).parts if folder.is_relative_to(root) else folder.parts
    base = root if folder.is_relative_to(root) else Path()
    places = []
    for depth in reversed(range(len(inside))):
        if inside[depth].lower() in ("images", "imgs", "jpegimages"):
            mirrored = base.joinpath(*inside[:depth], "labels", *inside[depth + 1 :])
            places += [mirrored, *(mirrored.with_name(f"{mirrored.name}{end}") for end in ("-labels", "_labels"))]
    places += [folder, folder / "labels", folder.parent / "labels", root / "labels" / folder.name, root / "labels"]
    return list(dict.fromkeys(os.path.normpath(place) for place in places))


# Lines


def read_labels(
    file: str,
    image_index: int,
    scale: tuple[float, float],
    label_of: Mapping[int, int],
    description: Description,
    rows: AnnotationRows,
    lines: Lines,
    findings: Findings,
) -> None:
    """Append the objects of a label file to `rows`.

    Args:
        file: The label file.
        image_index: Index of its image.
        scale: What x and y are divided by to make them relative to the image.
        label_of: Class id in the file → label.
        description: Description of the dataset.
        rows: Gets the objects, with the first four numbers after the class as their box.
        lines: Gets the lines with more numbers.
        findings: Reports invalid lines.
    """
    try:
        text = read_text(file, errors="replace")
    except FileReadError as error:
        findings.add("unreadable file", error, cause=error)
        return
    width, height = scale
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split(maxsplit=_MAX_NUMBERS)
        if not fields:
            continue
        try:
            numbers = [to_number(field) for field in fields]
            class_id = int(numbers[0])
        except (ValueError, OverflowError):
            message = f"got '{line.strip()[:80]}', expected numbers: class, centre x, centre y, width, height"
            findings.error("line", f"{file}, line {number}", message, "correct or remove the line")
            continue
        if class_id != numbers[0] or class_id not in label_of:
            findings.error(
                "unknown class",
                f"{file}, line {number}",
                f"got class id {fields[0]}, expected one of those in {description.source}: {first_items(label_of)}",
                "correct the label, or add the class to that file",
            )
            continue
        if len(numbers) < 5:
            report_line(f"{file}, line {number}", len(numbers), findings)
            continue
        if len(numbers) > 5:
            lines.append(len(rows.place), numbers[1:], width, height)
        box = numbers[1] / width, numbers[2] / height, numbers[3] / width, numbers[4] / height
        rows.append(image_index, label_of[class_id], box, number)


def report_line(where: str, count: int, findings: Findings) -> None:
    """Report a line that is neither a box nor a polygon, with the number of its numbers if that is too small."""
    findings.error(
        "line",
        where,
        f"got {counted(count, 'number')}, expected 5 (class, centre x, centre y, width, height), or a class and the "
        f"coordinates x y of at least three polygon points",
        "correct or remove the line",
    )


def relative_path(path: str, root: Path) -> str:
    """Return `path` relative to `root`, or as it is if it is not inside."""
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
