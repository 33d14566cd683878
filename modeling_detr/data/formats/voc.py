"""The Pascal VOC format: one XML file for each image.

    Annotations/*.xml  JPEGImages/*.jpg  ImageSets/Main/train.txt      the official layout, also VOCdevkit/VOC2012/…
    train/a.xml  train/a.jpg  valid/…                                  XML beside images, one folder for each split
    a.xml  a.jpg                                                       or no splits at all

Coordinates are used as written. (The VOC challenge counted pixels from 1, but most files written since do not, and a
shift would spoil them.) Objects marked as difficult are ordinary boxes by default. An image is found by the stem of
its XML file, or else by the stem of <filename>, whose suffix decides between images with the same stem. Writes the
official layout.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import AnnotationRows, clean_annotations, to_number
from modeling_detr.data.contents import FLAGS
from modeling_detr.data.dataset_format import BOXES_OPTION, IMAGES_OPTION, DatasetFormat, ReadingOption, WrittenDataset
from modeling_detr.data.file_names import stem
from modeling_detr.data.file_search import FileSearch, Match
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.format_limits import refuse_names_outside_xml, refuse_shared_names, warn_of_stuff
from modeling_detr.data.formats.object_attributes import attribute_columns
from modeling_detr.data.formats.voc_boxes import note_other_shapes, read_box
from modeling_detr.data.formats.voc_lists import ListedNames, listed_names, split_of_class_list
from modeling_detr.data.image_copies import UNLISTED, ImageCopies
from modeling_detr.data.image_headers import MAX_PIXELS, header_size
from modeling_detr.data.image_numbers import number_images
from modeling_detr.data.image_paths import (
    image_folders,
    is_image_name,
    is_label_folder,
    is_split_name,
    refuse_outside,
    walk_folders,
)
from modeling_detr.data.orientation import orient
from modeling_detr.errors_detr import (
    DatasetNotFoundError,
    DatasetReadError,
    FileContentError,
    FileReadError,
)
from modeling_detr.input_files import read_ends, read_xml
from modeling_detr.structures_detr import UNSPLIT, Category, DetectionIndex, ImageRecord, Task


_LOOKED_FOR = ".xml files that begin with <annotation>"


@dataclass
class _Files:
    """The files of a dataset."""

    xml: list[Path] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    image_sets: list[Path] = field(default_factory=list)


def is_voc(path: Path) -> bool:
    """Whether there is a VOC annotation file in `path`, at most four folders down."""
    patterns = ("*.xml", "Annotations/*.xml", "*/*.xml", "*/*/*.xml", "*/*/*/*.xml")
    return path.is_dir() and any(_is_annotation(file) for pattern in patterns for file in _first(path.glob(pattern)))


def read_voc(
    path: str | Path,
    findings: Findings | None = None,
    drop_difficult: bool = False,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    """Read a VOC dataset.

    Classes are sorted by name over all files. Images without an XML file are left out, unless they are in a list:
    these have no objects.

    Args:
        path: The dataset's folder.
        findings: Collects problems; None: the first error is raised.
        drop_difficult: Leave out objects marked as difficult; by default they are ordinary boxes.
        images: Folder of the images, inside or outside the dataset's folder.
        boxes: `upright` or `stored`; see `coco.read_coco`.

    Raises:
        DatasetNotFoundError: There is no XML file, or an image is missing.
        DatasetError: A file has unexpected content, or several images match it; the message names file and object.
    """
    root = Path(path)
    files = _walk(root)
    findings = Findings() if findings is None else findings
    trees = _parse_all(files.xml, findings)
    if not trees:
        raise DatasetNotFoundError(root, "no Pascal VOC annotations", f"expected {_LOOKED_FOR}")

    empty = _implied_files(root, files, findings)
    trees += [(file, ElementTree.Element("annotation")) for file in empty]
    names = sorted({name for _, tree in trees for name in _class_names(tree)})
    label_of = {name: label for label, name in enumerate(names)}
    records: list[ImageRecord] = []
    used: list[Path] = []  # the XML file of each record
    rows, difficult, sizeless = AnnotationRows(), list[str](), list[Path]()
    for file, tree, image in _find_images(root, trees, images, findings):
        record = _read_record(root, file, tree, image, sizeless, findings)
        if record is not None:
            difficult += _read_objects(file, tree, len(records), label_of, drop_difficult, rows, findings)
            records.append(record)
            used.append(file)
    _note_sizeless([file for file in sizeless if file not in empty], findings)
    _note_difficult(difficult, drop_difficult, findings)
    note_other_shapes((element for _, tree in trees for element in _objects(tree)), findings)
    _refuse_shared_images(used, records, findings)
    refuse_outside([*map(str, used), *(record.path for record in records)], [root, images], findings)
    image_index = np.array(rows.image_index, dtype=np.int64)
    records = orient(records, image_index, rows.boxes, boxes, root, findings)
    table = clean_annotations(
        image_index=image_index,
        label=np.array(rows.label, dtype=np.int64),
        boxes_xyxy=rows.boxes,
        image_sizes=np.array([(record.height, record.width) for record in records], dtype=np.int64),
        describe=lambda row: f"{used[rows.image_index[row]]}, object {rows.place[row]}",
        findings=findings,
        attributes=attribute_columns(rows.attributes),
    )
    _note_unused_images(files, records, findings)
    return DetectionIndex(
        name=root.resolve().name,
        images=number_images(records, ()),
        categories=tuple(Category(label, name) for label, name in enumerate(names)),
        annotations=table,
        splits=_read_splits(root, used, files, findings),
        notes=tuple(findings.notes),
    )


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Task,  # noqa: ARG001
    images: str | Path | None = None,
    drop_difficult: bool = False,
    boxes: str | None = None,
) -> DetectionIndex:
    return read_voc(path, findings, drop_difficult, images, boxes)


def _note_difficult(difficult: Sequence[str], dropped: bool, findings: Findings) -> None:
    if not difficult:
        return
    objects = f"{counted(len(difficult), 'object')} marked as difficult"
    if dropped:
        findings.warn(
            "difficult",
            f"{objects}, left out as requested by drop_difficult; the first: {difficult[0]}.",
            "it is left out",
            ((where, "is marked as difficult") for where in difficult),
        )
    else:  # not a problem: only the mark is lost
        findings.notes.append(f"{objects}, used like all others (set drop_difficult to leave them out).")


# Files


def _first(files: Iterable[Path], limit: int = 3) -> list[Path]:
    return list(itertools.islice(files, limit))


def _is_annotation(file: Path) -> bool:
    try:
        return (
            re.search(rb"<annotation[\s>]", read_ends(file, 4096).replace(b"\0", b"")) is not None
        )  # not CVAT's <annotations>
    except FileReadError:
        return False


def _walk(root: Path) -> _Files:
    files = _Files()
    for folder, names in walk_folders(root):
        inside = Path(folder).relative_to(root).parts
        if "ImageSets" in inside:
            if inside[-1] == "ImageSets":
                main = Path(folder) / "Main"
                files.image_sets.append(main if main.is_dir() else Path(folder))
            continue
        for name in names:
            if name.lower().endswith(".xml") and not name.startswith("."):
                files.xml.append(Path(folder) / name)
            elif is_image_name(name):
                files.images.append(f"{folder}/{name}")
    return files


def _implied_files(root: Path, files: _Files, findings: Findings) -> dict[Path, str]:
    """The XML files that are not there because their images, which are in the lists, have no objects.

    CVAT and Datumaro write none for such images. They are few: otherwise annotations are missing, which is an error.
    """
    lists = [file for folder in files.image_sets for file in folder.glob("*.txt") if not file.is_symlink()]
    if not lists or not files.xml:
        return {}
    listed, annotated = listed_names(lists), {file.stem for file in files.xml}
    implied: dict[Path, str] = {}
    for image in files.images:
        parts = Path(image).relative_to(root).parts
        if stem(parts[-1]) in listed and stem(parts[-1]) not in annotated:
            folders = ["Annotations" if part == "JPEGImages" else part for part in parts[:-1]]
            implied[root.joinpath(*folders, f"{stem(parts[-1])}.xml")] = image
    if not implied or len(implied) > len(files.xml):
        return {}
    have = "listed image has no XML file and is" if len(implied) == 1 else "listed images have no XML file and are"
    findings.warn(
        "no annotations",
        f"{len(implied):,} {have} read without objects; the first: {next(iter(implied.values()))}.",
        "it is read as an image without objects, for which CVAT and Datumaro write no XML file",
        ((image, "is in a list, but has no XML file") for image in implied.values()),
    )
    return implied


def _parse_all(files: Sequence[Path], findings: Findings) -> list[tuple[Path, ElementTree.Element]]:
    trees: list[tuple[Path, ElementTree.Element]] = []
    others: list[tuple[Path, ElementTree.Element]] = []
    for file in files:
        try:
            tree = read_xml(file)
        except (FileReadError, FileContentError) as error:
            findings.add("unreadable file", error, cause=error)
            continue
        (trees if tree.tag == "annotation" else others).append((file, tree))
    if others:
        file, tree = others[0]
        are = "XML file is not a VOC annotation" if len(others) == 1 else "XML files are not VOC annotations"
        findings.warn(
            "no annotations",
            f"{len(others)} {are}, left out; the first: {file} begins with <{tree.tag}>, not with <annotation>.",
            "the file is left out",
            ((file, f"begins with <{tree.tag}>, not with <annotation>") for file, tree in others),
        )
    return trees


def _find_images(
    root: Path,
    trees: Sequence[tuple[Path, ElementTree.Element]],
    images: str | Path | None,
    findings: Findings,
) -> list[tuple[Path, ElementTree.Element, str]]:
    """Return the XML files with the paths of their images, and report those without."""
    search = FileSearch([root, images], findings)
    found: list[tuple[Path, ElementTree.Element, str]] = []
    missing: list[tuple[Path, str]] = []
    for file, tree in trees:
        match = _find_image(root, file, tree, search, findings)
        if match is not None and match.path is None:
            missing.append((file, file.stem))
        elif match is not None and match.path is not None:
            found.append((file, tree, match.path))
    search.tell("image", root)
    searched = f"all folders in {' and '.join(search.roots)}"
    remedy = "put the images into JPEGImages or beside the XML files, name their folder, or remove the XML files"
    search.report_missing(missing, len(trees), searched, remedy, {"images": "FOLDER"})
    return found


def _find_image(
    root: Path, file: Path, tree: ElementTree.Element, search: FileSearch, findings: Findings
) -> Match | None:
    """Find the image with the stem of the XML file, or else of <filename>; what is written decides between several.

    Returns None if there are several, which is reported.
    """
    written, folder, path = (_written(tree, key) for key in ("filename", "folder", "path"))
    folders = [*image_folders(str(file.parent), str(root)), *search.roots]
    inner = "/".join(part for part in file.parent.relative_to(root).parts if not is_label_folder(part))
    suffix = f".{written.rpartition('.')[2]}" if is_image_name(written.rpartition("/")[2]) else ""
    names = list(dict.fromkeys([file.stem, *([stem(written)] if written else [])]))
    matches = (search.find_in(folders, name) for name in names)
    ends = (search.find_by_end(f"{inner}/{name}{suffix}", str(file.parent)) for name in names)
    match = next((match for match in (*matches, *ends) if match.paths), Match())
    for hint in (path, f"{folder}/{written}", f"{file.stem}{suffix}") if written else ():
        match = match.narrowed(hint)
    if len(match.paths) > 1:
        findings.error(
            "ambiguous name",
            file,
            f"its image may be {first_items(match.paths, 3, ' or ')}, and <filename> is '{written}'",
            "write the full file name into <filename>, or remove the other images",
        )
        return None
    return search.count(names[0], match)


def _written(tree: ElementTree.Element, key: str) -> str:
    return (tree.findtext(key) or "").strip().replace("\\", "/")


def _note_sizeless(files: Sequence[Path], findings: Findings) -> None:
    if files:
        note = f"{counted(len(files), 'XML file')} without the size of the image; the first: {files[0]}."
        each = ((file, "no image size") for file in files)
        findings.warn("image size", note, "it is read from the image file", each)


def _refuse_shared_images(used: Sequence[Path], records: Sequence[ImageRecord], findings: Findings) -> None:
    """Report images that several XML files have: the picture of one of them is probably another."""
    file_of: dict[str, Path] = {}
    for file, record in zip(used, records, strict=True):
        other = file_of.setdefault(record.path, file)
        if other != file:
            message = f"its image, {record.path}, is also that of {other}"
            remedy = "remove one of the two, or give its image another name"
            findings.error("one file for several images", file, message, remedy, image=record.path)


def _note_unused_images(files: _Files, records: Sequence[ImageRecord], findings: Findings) -> None:
    used = {record.path for record in records}
    unused = [path for path in files.images if path not in used]
    if unused:
        have = "image has no XML file and is" if len(unused) == 1 else "images have no XML file and are"
        findings.warn(
            "no annotations",
            f"{len(unused)} {have} left out (an image without objects needs an XML file without objects); the first: "
            f"{unused[0]}.",
            "the image is left out (one without objects needs an XML file without objects)",
            ((path, "has no XML file") for path in unused),
        )


# Content


def _objects(tree: ElementTree.Element) -> list[ElementTree.Element]:
    """The objects of a file, without those that LabelMe has marked as deleted."""
    return [element for element in tree.iterfind("object") if (element.findtext("deleted") or "").strip() != "1"]


def _class_names(tree: ElementTree.Element) -> list[str]:
    return [name for element in _objects(tree) if (name := (element.findtext("name") or "").strip())]


def _read_record(
    root: Path, file: Path, tree: ElementTree.Element, path: str, sizeless: list[Path], findings: Findings
) -> ImageRecord | None:
    size = []
    for key, of_labelme in (("height", "nrows"), ("width", "ncols")):
        text = (tree.findtext(f"size/{key}") or tree.findtext(f"imagesize/{of_labelme}") or "0").strip()
        try:
            number = to_number(text)
            if not -MAX_PIXELS < number < MAX_PIXELS:
                raise ValueError
            size.append(int(number))
        except ValueError:
            message = f"<{key}> of the image is '{text}', expected an integer"
            findings.error("image size", file, message, "correct or remove it")
            size.append(0)
    if min(size) <= 0:
        sizeless.append(file)
        try:
            size = list(header_size(path))
        except (DatasetReadError, DatasetNotFoundError) as error:
            findings.add("unreadable image", error, image=path)
            return None
    inner = file.relative_to(root).with_suffix("").parts
    image_id = "/".join(part for part in inner if part.lower() not in ("annotations", "annotation"))
    return ImageRecord(image_id, path, size[0], size[1])


def _read_objects(
    file: Path,
    tree: ElementTree.Element,
    image_index: int,
    label_of: Mapping[str, int],
    drop_difficult: bool,
    rows: AnnotationRows,
    findings: Findings,
) -> list[str]:
    """Append the objects of one file to `rows`; return the locations of those marked as difficult."""
    difficult = []
    for number, element in enumerate(_objects(tree), start=1):
        if (element.findtext("difficult") or "").strip() == "1":
            difficult.append(f"{file}, object {number}")
            if drop_difficult:
                continue
        named_box = _read_object(file, number, element, findings)
        if named_box is not None:
            name, box = named_box
            rows.append(image_index, label_of[name], box, number, _read_flags(element))
    return difficult


def _read_flags(element: ElementTree.Element) -> dict[str, str]:
    flags = {name: (element.findtext(name) or "").strip() for name in FLAGS}
    return {name: text for name, text in flags.items() if text}


def _read_object(
    file: Path, number: int, element: ElementTree.Element, findings: Findings
) -> tuple[str, tuple[float, float, float, float]] | None:
    where = f"{file}, object {number}"
    name = (element.findtext("name") or "").strip()
    if not name:
        findings.error("unknown class", where, "no <name>", "add the name of its class, or remove the object")
        return None
    where = f"{where} ({name})"
    try:
        box = read_box(element)
    except ValueError as error:
        findings.error("box", where, str(error), "correct it, or remove the object")
        return None
    if box is None:
        message = "no <bndbox>, expected one with <xmin>, <ymin>, <xmax>, <ymax>"
        findings.error("box", where, message, "add it, or remove the object")
        return None
    return name, box


# Splits


def _read_splits(root: Path, used: Sequence[Path], files: _Files, findings: Findings) -> dict[str, NDArray[np.int64]]:
    """Read the splits and the indices of their images from ImageSets, or else from folders named like splits.

    Args:
        root: The dataset's folder.
        used: The XML file of each image.
        files: All files.
        findings: Reports names in a list that have no XML file.
    """
    members: dict[str, set[int]] = {}
    by_class: dict[str, set[int]] = {}  # splits that only the lists of classes name, as VoTT writes them
    for folder in files.image_sets:
        base = folder.parent if folder.name == "ImageSets" else folder.parent.parent
        known = dict.fromkeys(files.xml, -1) if findings.collects else {}  # unused files have been reported
        known |= {file: index for index, file in enumerate(used)}
        inside = {file: index for file, index in known.items() if file.is_relative_to(base)}
        names = ListedNames(base, inside, findings)
        for list_file in sorted(folder.glob("*.txt")):
            if not refuse_outside([str(list_file)], [root], findings):
                continue  # a link to a file elsewhere, which is not opened
            images = names.read(list_file)
            name = split_of_class_list(list_file.stem) if images is not None and images.of_class else list_file.stem
            if images is not None and name is not None:
                (by_class if images.of_class else members).setdefault(name, set()).update(images.indices)
        names.tell()
    members = members or by_class
    if not members:
        for index, file in enumerate(used):
            for part in file.relative_to(root).parts[:-1]:
                if is_split_name(part):
                    members.setdefault(part, set()).add(index)
                    break
    if len(members) == 1 and not is_split_name(next(iter(members))):  # CVAT lists all images in default.txt
        members = {UNSPLIT: next(iter(members.values()))}
    if not members:
        members[UNSPLIT] = set(range(len(used)))
    return {name: np.array(sorted(indices), dtype=np.int64) for name, indices in members.items()}


# Writing


def _write(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    refuse_shared_names(index, "voc")
    refuse_names_outside_xml(index, "voc")
    notes = warn_of_stuff(index)
    used = {int(label) for label in np.unique(index.annotations.label)}
    unused = [category.name for label, category in enumerate(index.categories) if label not in used]
    if unused:
        notes.append(f"voc has no list of classes: classes without a box are lost ({', '.join(unused)}).")
    notes.append("voc has no class ids: readers sort the classes by name.")

    copies = ImageCopies(index, folder, lambda _: "JPEGImages", link)
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for image, name in enumerate(copies.name):
        (folder / "Annotations" / f"{Path(name).stem}.xml").write_text(_to_xml(index, image, name), encoding="utf-8")
    for split, members in copies.splits.items():
        if split != UNLISTED:
            lines = [f"{Path(copies.name[image]).stem}\n" for image in members.tolist()]
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return WrittenDataset(index, copies.files, notes + copies.notes)


def _to_xml(index: DetectionIndex, image: int, name: str) -> str:
    record, rows, table = index.images[image], index.annotation_rows(image), index.annotations
    flags = {name: table.attributes[name][rows] for name in FLAGS if name in table.attributes}
    flags["difficult"] = np.nan_to_num(flags.get("difficult", np.zeros(len(table.label[rows]))))  # expected by readers
    objects = [
        (
            index.categories[label].name,
            box,
            {flag: f"{value:.0f}" for flag, value in zip(flags, values, strict=True) if not math.isnan(value)},
        )
        for label, box, values in zip(
            table.label[rows].tolist(),
            table.boxes_xyxy[rows].tolist(),
            zip(*flags.values(), strict=True),
            strict=True,
        )
    ]
    return annotation_xml(name, record.height, record.width, objects)


def annotation_xml(
    name: str, height: int, width: int, objects: Iterable[tuple[str, Sequence[float], Mapping[str, str]]]
) -> str:
    """The annotation of one image, as XML.

    Args:
        name: Name of its file.
        height: Its height.
        width: Its width.
        objects: The class, the box xyxy in pixels, and further elements of each object: name → content.
    """
    written = "".join(
        f"  <object>\n    <name>{escape(category)}</name>\n"
        + "".join(f"    <{element}>{content}</{element}>\n" for element, content in others.items())
        + f"    <bndbox><xmin>{x0:.10g}</xmin><ymin>{y0:.10g}</ymin><xmax>{x1:.10g}</xmax><ymax>{y1:.10g}</ymax>"
        f"</bndbox>\n  </object>\n"
        for category, (x0, y0, x1, y1), others in objects
    )
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{escape(name)}</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{written}</annotation>\n"
    )


FORMAT = DatasetFormat(
    name="voc",
    find=is_voc,
    read=_read,
    looked_for="*.xml",
    evidence=".xml files that begin with <annotation>",
    options=(
        IMAGES_OPTION,
        BOXES_OPTION,
        ReadingOption("drop_difficult", "leave out objects marked as difficult in Pascal VOC", bool),
    ),
    write=_write,
    carries=frozenset(FLAGS),
    holds="a class, a box and the marks difficult, truncated and occluded",
)
