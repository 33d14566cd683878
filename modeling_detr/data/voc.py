"""Reads datasets in the format of Pascal VOC: one XML file an image.

    Annotations/*.xml  JPEGImages/*.jpg  ImageSets/Main/train.txt      the official layout, also VOCdevkit/VOC2012/…
    train/a.xml  train/a.jpg  valid/…                                  XML beside images, a folder for each split
    a.xml  a.jpg                                                       or no splits at all

Coordinates are taken as they are written. (The original challenge counted pixels from 1; most files written since do
not, and a shift would spoil those.) Objects marked difficult are ordinary boxes. An image is found by the stem of its
XML file, else by that of <filename>; the ending there decides between images of one stem.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import AnnotationRows, clean_annotations, to_number
from modeling_detr.data.findings import Findings
from modeling_detr.data.image_files import header_size, is_image_name, is_split_name, refuse_outside
from modeling_detr.structures_detr import UNSPLIT, Category, DetectionIndex, ImageRecord


_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")


@dataclass
class _Files:
    """The files of a dataset, found in one walk; images are keyed by folder and stem, and by stem alone.

    Several images may share a stem (a.jpg beside a.png), so each key leads to a list.
    """

    xml: list[Path] = field(default_factory=list)
    images: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    by_stem: dict[str, list[str]] = field(default_factory=dict)
    image_sets: list[Path] = field(default_factory=list)


def is_voc(path: Path) -> bool:
    """Whether a VOC annotation file lies in `path`, at most four folders down."""
    patterns = ("*.xml", "Annotations/*.xml", "*/*.xml", "*/*/*.xml", "*/*/*/*.xml")
    return path.is_dir() and any(_is_annotation(file) for pattern in patterns for file in _first(path.glob(pattern)))


def read_voc(
    path: str | Path,
    findings: Findings | None = None,
    drop_difficult: bool = False,
    images: str | Path | None = None,
) -> DetectionIndex:
    """Reads a VOC dataset. Classes are sorted by name over all files; images without an XML file are left out.

    Args:
        path: The dataset's folder.
        findings: Takes what is wrong; None: the first error is raised.
        drop_difficult: Leave out objects that are marked difficult; without it they are ordinary boxes.
        images: A folder that images lie in, inside the dataset's or elsewhere.

    Raises:
        FileNotFoundError: There is no XML file, or an image is missing.
        ValueError: A file is not what it should be, or several images fit it; the message names file, object, got
            and wanted.
    """
    root = Path(path)
    files = _walk(root)
    findings = Findings() if findings is None else findings
    if images is not None:
        elsewhere = _walk(Path(images))
        files.images = {**files.images, **elsewhere.images}
        files.by_stem = {**files.by_stem, **elsewhere.by_stem}
    trees = _parse_all(files.xml, findings)
    if not trees:
        raise FileNotFoundError(f"{root} holds no Pascal VOC annotations: no XML file that begins with <annotation>.")

    names = sorted({name for _, tree in trees for name in _class_names(tree)})
    label_of = {name: label for label, name in enumerate(names)}
    records: list[ImageRecord] = []
    used: list[Path] = []  # the XML file of each record
    rows = AnnotationRows()
    difficult: list[str] = []
    for file, tree in trees:
        record = _read_record(root, file, tree, files, findings)
        if record is None:
            continue
        for number, element in enumerate(tree.iterfind("object"), start=1):
            if (element.findtext("difficult") or "").strip() == "1":
                difficult.append(f"{file}: object {number}")
                if drop_difficult:
                    continue
            found = _read_object(file, number, element, findings)
            if found is not None:
                rows.append(len(records), label_of[found[0]], found[1], number)
        records.append(record)
        used.append(file)

    if difficult and drop_difficult:
        findings.warn(
            "difficult",
            f"{len(difficult)} objects marked difficult are left out, as you say; the first: {difficult[0]}.",
            "it is left out",
            ((where, "is marked difficult") for where in difficult),
        )
    elif difficult:  # nothing is wrong: only the mark is not kept
        findings.notes.append(
            f"{len(difficult)} objects marked difficult are boxes like others (drop_difficult leaves them out)."
        )
    refuse_outside([*map(str, used), *(record.path for record in records)], [root, images], findings)
    table = clean_annotations(
        image_index=np.array(rows.image_index, dtype=np.int64),
        label=np.array(rows.label, dtype=np.int64),
        boxes_xyxy=rows.boxes,
        image_sizes=np.array([(record.height, record.width) for record in records], dtype=np.int64),
        describe=lambda row: f"{used[rows.image_index[row]]}: object {rows.place[row]}",
        findings=findings,
    )
    _note_unused_images(files, records, findings)
    return DetectionIndex(
        name=root.resolve().name,
        images=tuple(records),
        categories=tuple(Category(label, name) for label, name in enumerate(names)),
        annotations=table,
        splits=_read_splits(root, used, files, findings),
        notes=tuple(findings.notes),
    )


# Files


def _first(files: Iterable[Path], number: int = 3) -> list[Path]:
    return [file for file, _ in zip(files, range(number), strict=False)]


def _is_annotation(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"<annotation" in stream.read(4096)


def _walk(root: Path) -> _Files:
    files = _Files()
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if Path(folder).name == "ImageSets":
            main = Path(folder) / "Main"
            files.image_sets.append(main if main.is_dir() else Path(folder))
            inner.clear()
            continue
        for name in sorted(names):
            stem, _, suffix = name.rpartition(".")
            if suffix.lower() == "xml" and not name.startswith("."):
                files.xml.append(Path(folder) / name)
            elif is_image_name(name):
                files.images.setdefault((folder, stem), []).append(f"{folder}/{name}")
                files.by_stem.setdefault(stem, []).append(f"{folder}/{name}")
    return files


def _parse_all(files: Sequence[Path], findings: Findings) -> list[tuple[Path, ElementTree.Element]]:
    trees: list[tuple[Path, ElementTree.Element]] = []
    others: list[tuple[Path, ElementTree.Element]] = []
    for file in files:
        try:
            tree = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            remedy = "write it anew or remove it"
            findings.error("unreadable file", f"{file}:", f"not well-formed XML ({error})", remedy, cause=error)
            continue
        (trees if tree.tag == "annotation" else others).append((file, tree))
    if others:
        file, tree = others[0]
        findings.warn(
            "no annotations",
            f"{len(others)} XML files are no VOC annotations and are left out; the first: {file} begins with "
            f"<{tree.tag}>, not with <annotation>.",
            "the file is left out",
            ((file, f"begins with <{tree.tag}>, not with <annotation>") for file, tree in others),
        )
    return trees


def _find_image(root: Path, file: Path, tree: ElementTree.Element, files: _Files, findings: Findings) -> str | None:
    written = Path((tree.findtext("filename") or "").strip().replace("\\", "/"))
    folders = [str(file.parent), *_image_folders(root, file.parent)]
    for stem in dict.fromkeys([file.stem, written.stem]):
        for folder in folders:
            if (folder, stem) in files.images:
                return _choose(file, written.name, files.images[folder, stem], findings)
        if stem in files.by_stem:
            return _choose(file, written.name, files.by_stem[stem], findings)
    findings.error(
        "missing image",
        f"{file}:",
        "its image is missing",
        f"looked for '{file.stem}' and '{written.name}' with the endings of images in {', '.join(folders)}. Put the "
        f"image there, or remove the XML file",
        raises=FileNotFoundError,
    )
    return None


def _choose(file: Path, written: str, images: Sequence[str], findings: Findings) -> str | None:
    """The one of the images that share a stem, by the name that the XML file writes."""
    if len(images) == 1:
        return images[0]
    ending = Path(written).suffix.lower()
    named = [image for image in images if Path(image).name == written]
    named = named or [image for image in images if Path(image).suffix.lower() == ending]
    if len(named) == 1:
        return named[0]
    findings.error(
        "missing image",
        f"{file}:",
        f"its image may be {' or '.join(images)}, and <filename> is '{written}'",
        "write the full name of the right one there, or put that beside the XML file and remove the others",
    )
    return None


def _image_folders(root: Path, folder: Path) -> list[str]:
    """Where the images of the XML files in `folder` may lie: …/Annotations/x ↔ …/JPEGImages/x."""
    parts = folder.relative_to(root).parts
    found = []
    for position in reversed(range(len(parts))):
        if parts[position].lower() in ("annotations", "annotation", "xml", "xmls", "labels"):
            for name in _IMAGE_FOLDERS:
                found.append(str(root.joinpath(*parts[:position], name, *parts[position + 1 :])))
            found.append(str(root.joinpath(*parts[:position], *parts[position + 1 :])))
    return found


def _note_unused_images(files: _Files, records: Sequence[ImageRecord], findings: Findings) -> None:
    used = {record.path for record in records}
    unused = [path for paths in files.images.values() for path in paths if path not in used]
    if unused:
        findings.warn(
            "no annotations",
            f"{len(unused)} images have no XML file and are left out (an image without objects has an XML file "
            f"without objects); the first: {unused[0]}.",
            "the image is left out (one without objects has an XML file without objects)",
            ((path, "has no XML file") for path in unused),
        )


# Content


def _class_names(tree: ElementTree.Element) -> list[str]:
    return [name for element in tree.iterfind("object") if (name := (element.findtext("name") or "").strip())]


def _read_record(
    root: Path, file: Path, tree: ElementTree.Element, files: _Files, findings: Findings
) -> ImageRecord | None:
    path = _find_image(root, file, tree, files, findings)
    if path is None:
        return None
    size = []
    for key in ("height", "width"):
        text = (tree.findtext(f"size/{key}") or "0").strip()
        try:
            size.append(int(to_number(text)))
        except ValueError:
            message, wanted = f"<{key}> of the image is '{text}'", "wanted a whole number of pixels"
            findings.error("image size", f"{file}:", message, wanted)
            size.append(0)
    if min(size) <= 0:
        note = f"gives no size of the image, so that of {path} is taken"
        findings.warn("image size", f"{file}: {note}.", "taken from the image", [(file, "gives no size of the image")])
        try:
            size = list(header_size(path))
        except OSError as error:
            findings.unreadable_image(path, error)
            return None
    inner = file.relative_to(root).with_suffix("").parts
    image_id = "/".join(part for part in inner if part.lower() not in ("annotations", "annotation"))
    return ImageRecord(image_id, path, size[0], size[1])


def _read_object(
    file: Path, number: int, element: ElementTree.Element, findings: Findings
) -> tuple[str, tuple[float, float, float, float]] | None:
    where = f"{file}: object {number}"
    name = (element.findtext("name") or "").strip()
    if not name:
        findings.error("unknown class", where, "has no <name>", "name its class, or remove it")
        return None
    box = element.find("bndbox")
    if box is None:
        findings.error("box", f"{where} ({name})", "has no <bndbox>", "wanted <xmin>, <ymin>, <xmax>, <ymax>")
        return None
    corners = []
    for key in _CORNERS:
        text = (box.findtext(key) or "").strip()
        try:
            corners.append(to_number(text))
        except ValueError:
            wanted = "wanted a number of pixels, such as 12 or 12.5"
            findings.error("box", f"{where} ({name})", f"has the {key} '{text}'", wanted)
            return None
    return name, (corners[0], corners[1], corners[2], corners[3])


# Splits


def _read_splits(root: Path, files: Sequence[Path], found: _Files, findings: Findings) -> dict[str, NDArray[np.int64]]:
    members: dict[str, set[int]] = {}
    for folder in found.image_sets:
        base = folder.parent if folder.name == "ImageSets" else folder.parent.parent
        position_of = {file.stem: position for position, file in enumerate(files) if file.is_relative_to(base)}
        if findings.collects:  # what is wrong with these has been said
            position_of = {file.stem: -1 for file in found.xml if file.is_relative_to(base)} | position_of
        for list_file in sorted(folder.glob("*.txt")):
            positions = _read_list(list_file, position_of, findings)
            if positions is not None:
                members.setdefault(list_file.stem, set()).update(positions)
    if not members:
        for position, file in enumerate(files):
            for part in file.relative_to(root).parts[:-1]:
                if is_split_name(part):
                    members.setdefault(part, set()).add(position)
                    break
    if len(members) == 1 and not is_split_name(next(iter(members))):  # CVAT lists what it exports in default.txt
        members = {UNSPLIT: next(iter(members.values()))}
    if not members:
        members[UNSPLIT] = set(range(len(files)))
    return {name: np.array(sorted(positions), dtype=np.int64) for name, positions in members.items()}


def _read_list(file: Path, position_of: dict[str, int], findings: Findings) -> list[int] | None:
    """The images that a list in ImageSets names; None for the list of one class (`name 1`, `name -1`)."""
    positions = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if name not in position_of:
            stem, _, mark = name.rpartition(" ")
            if mark in ("-1", "0", "1") and stem.strip() in position_of:
                return None
            name = Path(name).stem if is_image_name(name) else name
        if name not in position_of:
            findings.error(
                "missing file",
                f"{file}: line {number}",
                f"names '{name}', but there is no annotation file {name}.xml",
                "add it, or take the line out",
                raises=FileNotFoundError,
            )
            continue
        positions.append(position_of[name])
    return [position for position in positions if position >= 0]
