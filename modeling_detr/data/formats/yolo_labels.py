"""The label files of a YOLO dataset: which one belongs to an image, and what its lines say."""

import difflib
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modeling_detr.data.annotations import AnnotationRows, to_number
from modeling_detr.data.file_names import describe_difference, folded, stem
from modeling_detr.data.file_search import FileSearch, FolderListings
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.formats.yolo_description import NAME_FILES, Description, follow
from modeling_detr.data.formats.yolo_lines import Lines
from modeling_detr.data.image_paths import is_split_name
from modeling_detr.errors_detr import DatasetNotFoundError, FileReadError
from modeling_detr.input_files import read_text


_FEW = 0.1  # share of the label files up to which those without an image may be left over from deleted images
_MAX_COMPARED = 2000  # names among which similar ones are looked for
_MAX_NUMBERS = 200_000  # in a line, a polygon of 100,000 points


def find_label_files(
    description: Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> list[str | None]:
    """Find the label file of each image, None for backgrounds. Label files for one image folder are in one folder."""
    label_folder = _choose_label_folders(description, images, listings, findings)
    search = FileSearch([], findings, listings)
    files: list[str | None] = []
    for image in images:
        folder, _, name = image.rpartition("/")
        place = label_folder[folder]
        files.append(_find_label_file(place, image, stem(name), search, listings) if place else None)
    search.tell("label file", description.source)
    _refuse_shared_labels(images, files, findings)
    lost = _labels_without_images(label_folder, files, listings)
    _refuse_mismatch(images, files, label_folder, lost, findings)
    _note_images_without_labels(description, images, files, label_folder, findings)
    _note_labels_without_images(description, lost, findings)
    return files


def _choose_label_folders(
    description: Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> dict[str, str | None]:
    """Choose, for each folder of images, the folder with most of their label files, or else one with label files that
    have other names; None if there are none."""
    stems_of: dict[str, list[str]] = {}
    for image in images:
        folder, _, name = image.rpartition("/")
        stems_of.setdefault(folder, []).append(stem(name))
    label_folder: dict[str, str | None] = {}
    searched: list[str] = []
    unmatched: list[str] = []
    for folder, stems in stems_of.items():
        candidates = _label_folders(Path(folder), description.root, listings)
        counts = [
            sum(bool(listings.find(candidate, f"{name}.txt").paths) for name in stems) for candidate in candidates
        ]
        best = int(np.argmax(counts))
        label_folder[folder] = candidates[best] if counts[best] else None
        searched += candidates
        if not counts[best]:
            unmatched.append(folder)
    taken = {*label_folder.values()}
    for folder in unmatched:
        stems = stems_of[folder]
        others = [place for place in _label_folders(Path(folder), description.root, listings) if place not in taken]
        label_folder[folder] = next((place for place in others if _has_labels(place, listings)), None)
        if label_folder[folder] is None:
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


def _find_label_file(place: str, image: str, name: str, search: FileSearch, listings: FolderListings) -> str | None:
    """Find the label file of an image; otherwise one that is spelled in another way and belongs to no other image."""
    match = listings.find(place, f"{name}.txt")
    if not match.as_written and match.paths:
        others = listings.image_stems(image.rpartition("/")[0])
        match = match._replace(
            paths=tuple(file for file in match.paths if stem(file.rpartition("/")[2]) not in others)
        )
    if len(match.paths) > 1:
        search.report_ambiguous(match, image, f"{name}.txt")
    return search.count(f"{name}.txt", match).path


def _refuse_shared_labels(images: Sequence[str], files: Sequence[str | None], findings: Findings) -> None:
    """Report label files that images of different folders share: one of the files has overwritten another."""
    image_of: dict[str, str] = {}
    for image, file in zip(images, files, strict=True):
        if file is None:
            continue
        other = image_of.setdefault(file, image)
        if other.rpartition("/")[0] != image.rpartition("/")[0]:
            findings.error(
                "one label file for several images",
                file,
                f"belongs to {other} and to {image}",
                "put the labels of each folder of images into a folder of its own",
                image=image,
            )


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


def _labels_without_images(
    label_folder: Mapping[str, str | None], files: Sequence[str | None], listings: FolderListings
) -> dict[str, list[str]]:
    """List the label files of each folder that match no image, whether or not the image is in a split."""
    folders_of: dict[str, list[str]] = {}
    for folder, place in label_folder.items():
        if place:
            folders_of.setdefault(place, []).append(folder)
    used = {file for file in files if file}
    lost: dict[str, list[str]] = {}
    for place, folders in folders_of.items():
        stems = {name for folder in folders for name in listings.image_stems(folder)}
        lost[place] = [
            name
            for name in sorted(listings.names(place))
            if _may_be_labels(name) and f"{place}/{name}" not in used and name.rpartition(".")[0] not in stems
        ]
    return lost


def _refuse_mismatch(
    images: Sequence[str],
    files: Sequence[str | None],
    label_folder: Mapping[str, str | None],
    lost: Mapping[str, Sequence[str]],
    findings: Findings,
) -> None:
    """Report folders whose label files mostly find no image: their images would be learned as backgrounds."""
    bare_in: dict[str, list[str]] = {}
    total: Counter[str] = Counter()
    for image, file in zip(images, files, strict=True):
        place = label_folder[image.rpartition("/")[0]]
        if place is not None:
            total[place] += 1
            if file is None:
                bare_in.setdefault(place, []).append(image)
    for place, bare in bare_in.items():
        labels, images_here = lost[place], total[place]
        paired = images_here - len(bare)
        most_labels = len(labels) > paired and len(bare) > _FEW * images_here
        most_images = 2 * len(bare) > images_here and len(labels) > _FEW * (paired + len(labels))
        if most_labels or most_images:
            pairs = _most_similar(labels[:_MAX_COMPARED], bare[:_MAX_COMPARED])
            shown = "; ".join(f"{label} and {image} differ in {difference}" for label, image, difference in pairs)
            findings.error(
                "labels do not match",
                place,
                f"{len(labels):,} of {counted(paired + len(labels), 'label file')} match no image, and {len(bare):,} "
                f"of {counted(images_here, 'image')} in {bare[0].rpartition('/')[0]} no label file: {shown}",
                "name each label file like its image (a.jpg, a.txt), or remove those without an image",
            )


def _most_similar(labels: Sequence[str], images: Sequence[str], limit: int = 3) -> list[tuple[str, str, str]]:
    """Pair label files with the images whose names are most similar; also return what differs."""
    image_of = {folded(stem(image.rpartition("/")[2])): image for image in images}
    pairs = []
    for label in labels[:limit]:
        name = stem(label)
        (close,) = difflib.get_close_matches(folded(name), image_of, n=1, cutoff=0)
        image = image_of[close].rpartition("/")[2]
        pairs.append((label, image, "extension" if name == image else describe_difference(name, image)))
    return pairs


def _note_labels_without_images(
    description: Description, lost: Mapping[str, Sequence[str]], findings: Findings
) -> None:
    for place, names in lost.items():
        if names:
            belong = "belongs to no image and is" if len(names) == 1 else "belong to no image and are"
            findings.warn(
                "label file without image",
                f"{counted(len(names), 'label file')} in {relative_path(place, description.root)} {belong} left out; "
                f"the first: {place}/{names[0]}.",
                "the file is left out",
                ((f"{place}/{name}", "belongs to no image") for name in names),
            )


def _has_labels(folder: str, listings: FolderListings) -> bool:
    """Whether a folder has label files: texts that begin with a number."""
    names = itertools.islice(filter(_may_be_labels, sorted(listings.names(folder))), 3)
    return any(_begins_with_number(f"{folder}/{name}") for name in names)


def _begins_with_number(file: str) -> bool:
    try:
        return to_number(read_text(file, errors="replace").split(maxsplit=1)[0]) >= 0
    except (OSError, ValueError, IndexError):
        return False


def _may_be_labels(name: str) -> bool:
    """Whether a text file may contain labels: not a list of classes or images, and not a readme or license."""
    stem, _, suffix = name.rpartition(".")
    about = name in NAME_FILES or is_split_name(stem) or stem.lower().startswith(("readme", "license"))
    return suffix.lower() == "txt" and not about and not name.startswith(".")


def _label_folders(folder: Path, root: Path, listings: FolderListings) -> list[str]:
    """List the folders that may contain the labels of the images in `folder`, the most common ones first."""
    inside = folder.relative_to(root).parts if folder.is_relative_to(root) else folder.parts
    base = root if folder.is_relative_to(root) else Path()
    places = []
    for depth in reversed(range(len(inside))):
        if inside[depth].lower() in ("images", "imgs", "jpegimages"):
            mirrored = base.joinpath(*inside[:depth], "labels", *inside[depth + 1 :])
            places += [mirrored, *(mirrored.with_name(f"{mirrored.name}{end}") for end in ("-labels", "_labels"))]
    places += [folder, folder / "labels", folder.parent / "labels", root / "labels" / folder.name, root / "labels"]
    return list(dict.fromkeys(_as_on_disk(os.path.normpath(place), root, listings) for place in places))


def _as_on_disk(place: str, root: Path, listings: FolderListings) -> str:
    """A folder in `root` that may be spelled in another way."""
    if listings.names(place) or not Path(place).is_relative_to(root):
        return place
    return follow(os.path.normpath(root), Path(place).relative_to(root).parts, listings) or place


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
