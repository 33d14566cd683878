"""Build a dataset from what an annotation tool has exported: images by name, and shapes of many kinds by class name.

A reader adds images and objects in any order, then calls `ToolExport.index`. What all of them have in common is here:
how images are found, shapes become boxes, classes are numbered and splits are recognised, and what is reported.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import EDGE_TOLERANCE, AnnotationRows, clean_annotations
from modeling_detr.data.dataset_format import Purpose
from modeling_detr.data.file_names import describe_difference, letters, stem
from modeling_detr.data.file_search import FileSearch, FolderListings, Match
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.object_attributes import attribute_columns, named_attributes, unused_attributes
from modeling_detr.data.formats.written_values import to_integer, to_text
from modeling_detr.data.image_headers import MAX_PIXELS, header_size, header_sizes
from modeling_detr.data.image_numbers import number_images
from modeling_detr.data.image_paths import image_folders, is_split_name, refuse_outside, split_in_name, walk_folders
from modeling_detr.data.masks import read_segmentations
from modeling_detr.data.orientation import orient
from modeling_detr.errors_detr import DatasetNotFoundError, DatasetReadError, FileReadError
from modeling_detr.input_files import UTF16_MARKS, is_file, read_ends
from modeling_detr.structures_detr import UNSPLIT, Category, DetectionIndex, ImageReader, ImageRecord, MaskColumn


_NONE: Mapping[str, object] = {}
_END_BYTES = 1 << 16
_SAMPLE = 12  # files that are looked at in each folder
_MAX_SAMPLES = 200  # in all folders
_MAX_DEPTH = 4  # folders down
_ANNOTATION_SUFFIXES = frozenset([".json", ".xml", ".txt", ".csv"])


# Evidence


def sample_files(path: Path, suffix: str) -> list[Path]:
    """Some files with this suffix in `path`, at most four folders down; or `path` itself."""
    if path.is_file():
        return [path] if path.suffix.lower() == suffix and is_file(path) else []
    return list(samples(path).get(suffix, ()))


@functools.lru_cache(maxsize=8)
def samples(path: Path) -> dict[str, list[Path]]:
    """Some annotation files in a folder, at most four folders down, by suffix.

    All formats look at the same ones, and listing a hundred thousand images takes long enough to do it once.
    `open_dataset` clears the cache when it starts.
    """
    found: dict[str, list[Path]] = {}
    for folder, names in walk_folders(path, max_depth=_MAX_DEPTH):
        counts: Counter[str] = Counter()
        for name in names:
            suffix = name[name.rfind(".") :].lower()
            if suffix in _ANNOTATION_SUFFIXES and not name.startswith(".") and counts[suffix] < _SAMPLE:
                file = Path(folder) / name
                if len(found.setdefault(suffix, [])) < _MAX_SAMPLES and is_file(file):
                    found[suffix].append(file)
                    counts[suffix] += 1
    return found


def ends_of(file: Path) -> bytes:
    """The beginning and the end of a file, enough to recognise it without reading what may be gigabytes."""
    try:
        text = read_ends(file, _END_BYTES)
    except FileReadError:
        return b""
    if text.startswith(UTF16_MARKS):
        text = text[2:].replace(b"\0", b"")  # what is looked for is ASCII
    return text.removeprefix(b"\xef\xbb\xbf").lstrip()


def first_line(file: Path) -> str:
    """The first line of a text file that is not empty."""
    lines = ends_of(file).decode(errors="replace").splitlines()
    return next((line for line in lines if line.strip()), "")


def files_with_suffix(path: Path, suffix: str) -> list[Path]:
    """All files with this suffix in a folder and the folders in it; or `path` itself."""
    if path.is_file():
        return [path]
    return [
        Path(folder) / name
        for folder, names in walk_folders(path)
        for name in names
        if name.lower().endswith(suffix) and not name.startswith(".")
    ]


# Reading


@dataclass(slots=True)
class _Image:
    source: str
    names: Sequence[str]
    folder: str
    file: Path | None
    size: tuple[object, object] | None
    split: str | None
    embedded: ImageReader | None
    found: Match | None = None


class ToolExport:
    """The images and objects of an export, collected by a reader.

    Attributes:
        root: Folder of the dataset.
        findings: Collects or raises problems.
        masks: Whether masks are wanted.
        splits: Splits that lists of the dataset define, with the indices of their images; empty: see `add_image`.
    """

    def __init__(
        self,
        path: str | Path,
        findings: Findings,
        task: Purpose,
        images: str | Path | None = None,
        boxes: str | None = None,
        noun: str = "object",
    ) -> None:
        """Begin to read an export.

        Args:
            path: The dataset's folder, or a file in it.
            findings: Collects or raises problems.
            task: What the dataset is opened for.
            images: A further folder of images.
            boxes: `upright` or `stored`, the image that the boxes were drawn on; see `orientation.orient`.
            noun: What the number of an object counts, for messages ("line", "shape").
        """
        path = Path(path)
        self.root = path if path.is_dir() else _folder_of_dataset(path)
        self.findings = findings
        self.masks = task in ("instance", "conversion")
        self._masks_are_optional = task == "conversion"
        self._name = path.stem if path.is_file() else path.resolve().name
        self._folders = [self.root] if images is None else [Path(images), self.root]
        self._listings = FolderListings()
        self._search = FileSearch(self._folders, findings, self._listings)
        self._places: dict[str, list[str]] = {}  # folder of annotations → the usual folders of their images
        self._boxes = boxes
        self._is_relative = False  # whether coordinates are relative to the image
        self._noun = noun
        self._images: list[_Image] = []
        self._rows = AnnotationRows()
        self._segmentations: list[dict[str, Any]] = []
        self._crowd: list[bool] = []
        self._outlines: list[NDArray[np.float64] | None] = []  # of shapes that one polygon describes
        self._labels: dict[str, int] = {}  # in the order in which they are found
        self._listed: dict[str, None] = {}
        self.splits: dict[str, list[int]] = {}
        self._enclosed: Counter[str] = Counter()
        self._unused: Counter[str] = Counter()  # attributes → objects that have them
        self._lost: dict[tuple[str, str], list[str]] = {}

    def list_classes(self, names: Iterable[object]) -> None:
        """Add classes in the order of the export's own list; others follow, sorted by name."""
        self._listed.update(dict.fromkeys(filter(None, map(_class_name, names))))

    def add_image(
        self,
        source: object,
        names: Sequence[str],
        *,
        folder: Path | None = None,
        file: Path | None = None,
        size: tuple[object, object] | None = None,
        split: str | None = None,
        embedded: ImageReader | None = None,
    ) -> int:
        """Add an image and return its index.

        Args:
            source: Where it is described, for messages.
            names: Its names as written, with folders, of which the first that is found counts; one without an image
                suffix is the stem of the image.
            folder: The folder of its annotations; None: that of `file`, or the root.
            file: The file that annotates it and others.
            size: Height and width as written; None: read from the file.
            split: Its split; None: recognised by its folder, by the folder of its annotations, or else by the name of
                `file`, if several of them are named like splits.
            embedded: Reads it from `source` if there is no such file.
        """
        place = folder or (self.root if file is None else file.parent)
        self._images.append(_Image(str(source), names, os.path.normpath(place), file, size, split, embedded))
        return len(self._images) - 1

    @property
    def has_images(self) -> bool:
        """Whether an image has been added."""
        return bool(self._images)

    def refuse_mismatch(self, absent: Iterable[str]) -> None:
        """Report images that are there and have nearly the name of one that `is_there` reports as missing."""
        paths = {letters(stem(path.rpartition("/")[2])): path for path in self._search.files()}
        pairs = [(name, path) for name in absent if (path := paths.get(letters(name))) is not None]
        if pairs:
            shown = "; ".join(
                f"'{name}' and {path} differ in {describe_difference(name, path)}" for name, path in pairs[:3]
            )
            message = f"{counted(len(pairs), 'annotated image')} not there under that name: {shown}"
            self.findings.error(
                "labels do not match", self.root, message, "rename the images, or correct the annotations"
            )

    def is_there(self, names: Sequence[str], split: str | None = None) -> bool:
        """Whether there is an image with one of these names, for exports of which people download a part."""
        return bool(self._look_up(names, str(self.root), split).paths)

    def size(self, image: int, written: tuple[object, object] = (None, None)) -> tuple[int, int] | None:
        """Height and width of an image, for coordinates relative to it; None if it cannot be found or read.

        It is the upright image by default, even if `written`, the size in the export, is that of the stored one.
        """
        self._is_relative = True
        entry, path = self._images[image], self._find(image).path
        if path is None:
            return None
        try:
            upright, stored = header_sizes(path)
        except (DatasetReadError, DatasetNotFoundError) as error:
            self.findings.add("unreadable image", error, image=path)
            return None
        if written == upright:
            entry.size = upright  # otherwise, `orient` reports an image that EXIF turns
        return stored if self._boxes == "stored" else upright

    def add_object(
        self,
        image: int,
        name: object,
        place: int,
        shape: DrawnShape | Callable[[], DrawnShape | None],
        is_crowd: bool = False,
        attributes: Mapping[str, object] = _NONE,
    ) -> None:
        """Add an object.

        Args:
            image: Index of its image.
            name: Its class.
            place: Its number in the file, for messages.
            shape: The shape, or a function that reads it and returns None for a shape without an inside; what it
                raises about the content of a file is reported.
            is_crowd: Whether it is a crowd region.
            attributes: What else is said about it, by the names that the export has for it.
        """
        where = self._where(image, place)
        label = _class_name(name)
        if not label:
            message = f"got class {str(name)[:80]!r}, expected a name"
            self.findings.error("unknown class", where, message, "add its class, or remove the object")
            return
        if callable(shape):
            try:
                drawn = shape()
            except (LookupError, TypeError, ValueError, OverflowError, AttributeError, OSError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                message = f"its shape cannot be read ({reason})"
                self.findings.error("box", f"{where} ({label})", message, "correct it, or remove the object")
                return
        else:
            drawn = shape
        if drawn is None:
            self.leave_out(image, place, "point or line", "has no area")
            return
        is_enclosed = drawn.segmentation is None if self._masks_are_optional else not self.masks
        if drawn.kind != "box" and is_enclosed:
            self._enclosed[drawn.kind] += 1
        self._unused.update(unused_attributes(attributes))
        row_label = self._labels.setdefault(label, len(self._labels))
        self._rows.append(image, row_label, drawn.box, place, named_attributes(attributes) if attributes else _NONE)
        self._crowd.append(is_crowd)
        self._outlines.append(_outline(drawn))
        if self.masks:
            self._segmentations.append({"segmentation": drawn.segmentation})

    def leave_out(self, image: int, place: int, kind: str, reason: str) -> None:
        """Note something that is not an object with a box."""
        self._lost.setdefault((kind, reason), []).append(self._where(image, place))

    def _where(self, image: int, place: int) -> str:
        return f"{self._images[image].source}, {self._noun} {place}"

    def index(self) -> DetectionIndex:
        """Find the images, and build the dataset.

        Raises:
            DatasetNotFoundError: An image is missing.
            DatasetError: The content of a file is invalid, or an image is ambiguous.
        """
        records, kept = self._find_images()
        new_index = np.full(len(self._images), -1, dtype=np.int64)
        new_index[kept] = np.arange(len(kept))
        image_index = new_index[np.array(self._rows.image_index, dtype=np.int64)]
        rows = np.flatnonzero(image_index >= 0)
        measured = [index for index, image in enumerate(kept) if self._images[image].size is None]
        shown = rows[: 0 if self._is_relative else len(rows)]
        records = orient(
            records, image_index[shown], self._rows.boxes[shown], self._boxes, self.root, self.findings, measured
        )
        names = [*self._listed, *sorted(set(self._labels) - set(self._listed))]
        label_of = {name: label for label, name in enumerate(names)}
        labels = np.array([label_of[name] for name in self._labels], dtype=np.int64)
        sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
        self._box_visible_parts(rows, sizes, image_index)
        masks, rows = self._read_masks(rows, sizes, image_index)
        self._note_shapes()
        table = clean_annotations(
            image_index=image_index[rows],
            label=labels[np.array(self._rows.label, dtype=np.int64)[rows]],
            boxes_xyxy=self._rows.boxes[rows],
            image_sizes=sizes,
            is_crowd=np.array(self._crowd, dtype=np.bool_)[rows],
            describe=lambda row: self._describe(int(rows[row])),
            findings=self.findings,
            masks=masks,
            attributes=attribute_columns([self._rows.attributes[row] for row in rows.tolist()]),
        )
        splits = self._splits(records, kept)
        return DetectionIndex(
            name=self._name,
            images=number_images(records, ()),
            categories=tuple(Category(label, name) for label, name in enumerate(names)),
            annotations=table,
            splits=splits,
            notes=tuple(self.findings.notes),
        )

    def _describe(self, row: int) -> str:
        return self._where(self._rows.image_index[row], self._rows.place[row])

    def _read_masks(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], image_index: NDArray[np.int64]
    ) -> tuple[MaskColumn | None, NDArray[np.int64]]:
        """Read the masks of `rows`, and return the rows that have one."""
        if not self.masks:
            return None, rows
        entries = [self._segmentations[row] for row in rows.tolist()]
        masks, without = read_segmentations(
            entries,
            sizes[image_index[rows]],
            lambda row: self._describe(int(rows[row])),
            self.findings,
            self._masks_are_optional,
        )
        return masks, np.delete(rows, without)

    def _box_visible_parts(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], image_index: NDArray[np.int64]
    ) -> None:
        """Replace the boxes of polygons that reach past the edge of the image by those around their visible parts."""
        reaching = []
        for row in rows.tolist():
            outline, (height, width) = self._outlines[row], sizes[image_index[row]].tolist()
            x0, y0, x1, y1 = self._rows.box[row]
            past = max(-x0, -y0, x1 - width, y1 - height)
            if outline is not None and past > EDGE_TOLERANCE and np.isfinite(outline).all():
                visible = drawn_shapes.visible_box(outline, height, width)
                if visible is not None:
                    self._rows.box[row] = visible
                    reaching.append(self._describe(row))
        if reaching:
            note = f"{counted(len(reaching), 'shape')} past the edge of the image; boxes are those around the visible "
            note += f"parts; the first: {reaching[0]}."
            each = ((place, "the shape reaches past the edge of the image") for place in reaching)
            self.findings.warn("past the edge", note, "the box is that around the visible part", each)

    def _note_shapes(self) -> None:
        if self._enclosed:
            kinds = [counted(count, kind, _plural(kind)) for kind, count in sorted(self._enclosed.items())]
            self.findings.notes.append(f"{' and '.join(kinds)} read as enclosing boxes.")
        if self._unused:
            names = [f"{name} ({count:,})" for name, count in self._unused.most_common()]
            fact = f"attributes of objects that are not used: {first_items(names)}"
            self.findings.facts.append(fact)
            self.findings.notes.append(f"{fact[0].upper()}{fact[1:]}.")
        for (kind, reason), places in self._lost.items():
            are = "is" if len(places) == 1 else "are"
            self.findings.warn(
                "not a box",
                f"{counted(len(places), kind, _plural(kind))} {are} left out ({reason}); the first: {places[0]}.",
                "it is left out",
                ((place, f"{kind}: {reason}") for place in places),
            )

    # Images

    def _find(self, image: int) -> Match:
        entry = self._images[image]
        if entry.found is None:
            match = self._look_up(entry.names, entry.folder, entry.split)
            entry.found = self._search.count(entry.names[0], match)
        return entry.found

    def _look_up(self, names: Sequence[str], folder: str, split: str | None) -> Match:
        if folder not in self._places:
            root = os.path.normpath(self.root)
            places = [*image_folders(folder, root), *map(os.path.normpath, self._folders)]
            self._places[folder] = [place for place in dict.fromkeys(places) if self._listings.names(place)]
        places = self._places[folder]
        if split is not None:  # images of a split may be in a folder named like it
            places = [inner for place in places for inner in (f"{place}/{split}", place)]
        matches = (self._search.look_up(name, places, folder) for name in names)
        return next((match for match in matches if match.paths), Match())

    def _find_images(self) -> tuple[list[ImageRecord], list[int]]:
        """Find the images; also return which of those added they are."""
        found = [self._find(image) for image in range(len(self._images))]
        self._search.tell("image", self.root)
        self._report_missing(found)
        records, kept, index_of = [], [], dict[str, int]()
        for index, (image, match) in enumerate(zip(self._images, found, strict=True)):
            if len(match.paths) > 1:
                self._search.report_ambiguous(match, image.source, image.names[0])
                continue
            if match.path is None and image.embedded is None:
                continue
            path, reader = (image.source, image.embedded) if match.path is None else (match.path, None)
            if path in index_of:
                message = f"has the same image as {self._images[index_of[path]].source}: {path}"
                remedy = "remove one of them, or join their objects"
                self.findings.error("one file for several images", image.source, message, remedy, image=path)
                continue
            index_of[path] = index
            size = self._size(image, path, reader)
            if size is not None:
                relative = os.path.relpath(path, self.root)
                image_id = path if relative.startswith("..") else relative
                records.append(ImageRecord(image_id, path, *size, reader))
                kept.append(index)
        refuse_outside([record.path for record in records], self._folders[::-1], self.findings)
        self._note_unused([path for path in self._search.files() if path not in index_of])
        return records, kept

    def _report_missing(self, found: Sequence[Match]) -> None:
        missing = [
            (image.source, image.names[0])
            for image, match in zip(self._images, found, strict=True)
            if not match.paths and image.embedded is None
        ]
        remedy = "put the images into the dataset's folder, name their folder, or remove what names them"
        searched = f"{' and '.join(self._search.roots)} and the folders inside"
        self._search.report_missing(missing, len(found), searched, remedy, {"images": "FOLDER"})

    def _size(self, image: _Image, path: str, reader: ImageReader | None) -> tuple[int, int] | None:
        try:
            if image.size is not None:
                height, width = (to_integer(value, 1, MAX_PIXELS) for value in image.size)
                return height, width
        except ValueError:  # missing or nonsense: the file knows
            pass
        if path in self.findings.broken_images:
            return None
        try:
            return header_size(path, reader)
        except (DatasetReadError, DatasetNotFoundError) as error:
            self.findings.add("unreadable image", error, image=path)
            return None

    def _note_unused(self, unused: Sequence[str]) -> None:
        if unused:
            have = (
                "image is not in the annotations and is" if len(unused) == 1 else "images are not in the annotations "
            )
            have += "" if len(unused) == 1 else "and are"
            self.findings.warn(
                "no annotations",
                f"{len(unused):,} {have} left out; the first: {unused[0]}.",
                "the image is left out",
                ((path, "is not in the annotations") for path in unused),
            )

    def _splits(self, records: Sequence[ImageRecord], kept: Sequence[int]) -> dict[str, NDArray[np.int64]]:
        if self.splits:
            new_index = {image: index for index, image in enumerate(kept)}
            listed = {
                name: [new_index[image] for image in images if image in new_index]
                for name, images in self.splits.items()
            }
            return {name: np.unique(np.array(indices, dtype=np.int64)) for name, indices in listed.items()}
        members: dict[str, list[int]] = {}
        split_of_file = {image.file: split_in_name(image.file.stem) for image in self._images if image.file}
        if len(set(filter(None, split_of_file.values()))) < 2:  # a single test.json is not a split
            split_of_file.clear()
        for index, record in enumerate(records):
            image = self._images[kept[index]]
            folders = (os.path.relpath(place, self.root) for place in (image.folder, os.path.dirname(record.path)))  # noqa: PTH120
            named = (part for folder in folders for part in folder.split("/") if is_split_name(part))
            split = image.split or next(named, None) or (split_of_file.get(image.file) if image.file else None)
            if split is not None:
                members.setdefault(split, []).append(index)
        if not any(map(is_split_name, members)) and len(members) <= 1:  # CVAT and Datumaro name a single one "default"
            return {UNSPLIT: np.arange(len(records))}
        return {name: np.array(indices, dtype=np.int64) for name, indices in members.items()}


def _folder_of_dataset(file: Path) -> Path:
    """The folder of a dataset of which the user has given one file."""
    return file.parent.parent if file.parent.name.lower() in ("annotations", "labels", "json") else file.parent


def _outline(shape: DrawnShape) -> NDArray[np.float64] | None:
    """The only polygon of a shape; None if it has none, or several."""
    polygons = shape.segmentation
    return np.array(polygons[0]) if isinstance(polygons, Sequence) and len(polygons) == 1 else None


def _class_name(name: object) -> str:
    try:
        return " ".join(to_text(name).split())
    except ValueError:
        return ""


def _plural(kind: str) -> str:
    irregular = {"box": "boxes", "rotated box": "rotated boxes", "point or line": "points and lines"}
    return irregular.get(kind, f"{kind}s")
