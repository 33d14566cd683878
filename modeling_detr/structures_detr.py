"""The data structures of the package: a dataset, a sample, a batch, an assignment, a result.

Each stage (dataset → sample → batch → model → assignment → result) takes and returns these, so this file imports
nothing else of the package.

Shapes: N objects of one image · A annotations of a dataset · B images of a batch · K predictions · H, W pixels.
Boxes have their format in their name where it is not obvious: `boxes_xyxy` are corners in pixels, `boxes_cxcywh`
centre and size relative to the **unpadded** image. Sizes are `(height, width)`.
"""

import dataclasses
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, NotRequired, Protocol, TypedDict, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors


Task = Literal["detection", "instance", "panoptic"]  # boxes; things with masks; every pixel of things and stuff

UNSPLIT = "all"  # the only split of a dataset that is not divided into splits


# Datasets


# Returns the image at a path that is not a file: a binary file object with its encoded bytes (JPEG, PNG, …), or its
# pixels (H, W, 3) uint8 RGB. Called in loader processes and from several threads: it must be picklable (a function
# of a module, or an instance of a class of one) and thread-safe.
ImageReader = Callable[[str], BinaryIO | NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a dataset.

    Attributes:
        id: The dataset's id of the image, used when results are written.
        path: Path of the file, or what identifies the image to `reader`; unique in the dataset.
        height: Height in pixels that the annotations refer to.
        width: Width in pixels that the annotations refer to.
        reader: Reads an image that is not a file (an entry of an archive, a row of a table); None: `path` is a file.
        number: Its id in COCO files and predictions if the dataset has no ids of its own that are valid there; None:
            `id`. See `number_images`.
        ignores_exif: Whether the annotations refer to the image as stored, without its EXIF orientation. False: the
            size tells; both fit an image that is square or upside down, which is then read upright.
    """

    id: int | str
    path: str
    height: int
    width: int
    reader: ImageReader | None = None
    number: int | None = None
    ignores_exif: bool = False

    @property
    def coco_id(self) -> int | str:
        """Its id in COCO files and in saved predictions."""
        return self.id if self.number is None else self.number


@dataclass(frozen=True, slots=True, eq=False)
class TextColumn(Sequence[str]):
    """A sequence of texts as one array of bytes.

    Attributes:
        prefix: What all texts start with.
        encoded: The rest of all texts in UTF-8, one after the other. Lone surrogates (file names that are not
            UTF-8) are kept.
        starts: (N + 1,) int64, where the rest of each text starts, and where the last one ends.
    """

    prefix: str
    encoded: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TextColumn":
        """A column of these texts."""
        prefix = os.path.commonprefix(texts)  # noqa: RUF071 (character by character)
        encoded = [text[len(prefix) :].encode("utf-8", "surrogatepass") for text in texts]
        starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=starts[1:])
        return cls(prefix, np.frombuffer(b"".join(encoded), np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "TextColumn": ...
    def __getitem__(self, row: int | slice) -> "str | TextColumn":
        """A text, or the column of a slice."""
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        row = range(len(self))[row]  # counts negative ones from the end; raises an IndexError
        rest = self.encoded[self.starts[row] : self.starts[row + 1]].tobytes()
        return self.prefix + rest.decode("utf-8", "surrogatepass")

    def take(self, rows: NDArray[np.int64]) -> "TextColumn":
        """Selects rows."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return TextColumn(self.prefix, self.encoded[places], starts)


@dataclass(frozen=True, slots=True, eq=False)
class ImageTable(Sequence[ImageRecord]):
    """The images of a dataset as columns: a sequence of `ImageRecord`s, which are made when they are asked for.

    A million images are a few arrays, which loader processes share with the main process. Python objects would be
    copied into each of them, page by page, because using an object writes its reference count.

    Attributes:
        sizes: (I, 2) int64, height and width of each image.
        paths: Path of each image.
    """

    sizes: NDArray[np.int64]
    paths: TextColumn
    _ids: TextColumn
    _id_is_int: NDArray[np.bool_]
    _readers: tuple[ImageReader | None, ...]  # distinct
    _reader: NDArray[np.int32]  # (I,) index in `_readers`
    _numbers: NDArray[np.int64]  # (I,) -1: None
    _ignores_exif: NDArray[np.bool_]

    @classmethod
    def of(cls, records: Iterable[ImageRecord]) -> "ImageTable":
        """A table of these images."""
        if isinstance(records, ImageTable):
            return records
        records = list(records)
        readers = {id(record.reader): record.reader for record in records}
        places = {reader: place for place, reader in enumerate(readers)}
        return cls(
            sizes=np.array([(record.height, record.width) for record in records], np.int64).reshape(-1, 2),
            paths=TextColumn.of([record.path for record in records]),
            _ids=TextColumn.of([str(record.id) for record in records]),
            _id_is_int=np.array([not isinstance(record.id, str) for record in records], np.bool_),
            _readers=tuple(readers.values()),
            _reader=np.array([places[id(record.reader)] for record in records], np.int32),
            _numbers=np.array([-1 if record.number is None else record.number for record in records], np.int64),
            _ignores_exif=np.array([record.ignores_exif for record in records], np.bool_),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, image: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, image: slice) -> "ImageTable": ...
    def __getitem__(self, image: int | slice) -> "ImageRecord | ImageTable":
        """The record of an image, or the table of a slice."""
        if isinstance(image, slice):
            return self.take(np.arange(len(self))[image])
        row = range(len(self))[image]  # counts negative ones from the end; raises an IndexError
        height, width = self.sizes[row].tolist()
        number = int(self._numbers[row])
        return ImageRecord(
            id=int(self._ids[row]) if self._id_is_int[row] else self._ids[row],
            path=self.paths[row],
            height=height,
            width=width,
            reader=self._readers[self._reader[row]],
            number=None if number == -1 else number,
            ignores_exif=bool(self._ignores_exif[row]),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def take(self, images: NDArray[np.int64]) -> "ImageTable":
        """Selects images."""
        return ImageTable(
            sizes=self.sizes[images],
            paths=self.paths.take(images),
            _ids=self._ids.take(images),
            _id_is_int=self._id_is_int[images],
            _readers=self._readers,
            _reader=self._reader[images],
            _numbers=self._numbers[images],
            _ignores_exif=self._ignores_exif[images],
        )


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a dataset.

    Attributes:
        id: The dataset's id of the class, used when results are written.
        name: Name of the class.
        is_thing: Whether it has countable objects (a cat). False: stuff, one region per image (the sky).
    """

    id: int
    name: str
    is_thing: bool = True


_MASKS_PER_READ = 200


class MaskSource(Protocol):
    """Masks in some format: polygons, run-length encodings, the segments of a PNG file."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Reads the masks (n, H, W) bool of `rows` (n,) of this source, all of one image, at its size."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskColumn:
    """The masks of annotations, read on demand.

    Attributes:
        sources: The sources of the masks.
        source: (A,) int64, index in `sources`; -1: the row has no mask, which is read as an empty one.
        row: (A,) int64, row in that source.
    """

    sources: tuple[MaskSource, ...]
    source: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, source: MaskSource, count: int) -> "MaskColumn":
        """All `count` rows of one source."""
        return cls((source,), np.zeros(count, np.int64), np.arange(count))

    @property
    def is_present(self) -> NDArray[np.bool_]:
        """Whether each row (A,) has a mask."""
        return self.source >= 0

    def spread(self, rows: NDArray[np.int64], count: int) -> "MaskColumn":
        """A column of `count` rows, of which `rows` (A,) are those of this column and the others have no mask."""
        source, row = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        source[rows], row[rows] = self.source, self.row
        return MaskColumn(self.sources, source, row)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: "slice | NDArray[np.int64] | NDArray[np.bool_]") -> "MaskColumn":
        """Selects rows; nothing is read."""
        return MaskColumn(self.sources, self.source[rows], self.row[rows])

    @classmethod
    def concatenate(cls, columns: Sequence["MaskColumn"]) -> "MaskColumn":
        """Joins columns in their order."""
        starts = np.cumsum([0, *(len(column.sources) for column in columns)])
        shifted = [
            np.where(column.is_present, column.source + start, -1)
            for column, start in zip(columns, starts[:-1], strict=True)
        ]
        return cls(
            sources=tuple(source for column in columns for source in column.sources),
            source=np.concatenate([np.zeros(0, np.int64), *shifted]),
            row=np.concatenate([np.zeros(0, np.int64), *(column.row for column in columns)]),
        )

    def read(self, height: int, width: int) -> NDArray[np.bool_]:
        """Reads the masks (A, height, width) bool of all rows, which belong to one image of this size.

        Raises:
            OSError: A file with masks cannot be read.
            ValueError: A mask has another size.
        """
        masks = np.zeros((len(self), height, width), np.bool_)
        for source_index in np.unique(self.source[self.is_present]).tolist():
            of_source = np.flatnonzero(self.source == source_index)
            # in parts, so that thousands of masks do not take twice their memory
            for rows in np.split(of_source, range(_MASKS_PER_READ, len(of_source), _MASKS_PER_READ)):
                source_masks = self.sources[source_index].read(self.row[rows])
                if source_masks.shape[1:] != (height, width):
                    raise ValueError(
                        f"masks have size {source_masks.shape[2]}x{source_masks.shape[1]} (width x height), expected "
                        f"the image's, {width}x{height}."
                    )
                masks[rows] = source_masks
        return masks


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationTable:
    """Annotations as columns, one row per object, ordered by image. A million rows are still a few arrays.

    Attributes:
        image_index: (A,) int64, index of the image in `DetectionIndex.images`; ascending.
        label: (A,) int64, dense label in 0…C-1, the index of the category in `DetectionIndex.categories`.
        boxes_xyxy: (A, 4) float64, corners in pixels, clipped to the image.
        area: (A,) float64, the area in square pixels that the dataset gives, or else the box's.
        is_crowd: (A,) bool; crowd regions are used in evaluation, never in training.
        masks: The mask of each row, read on demand; None if the dataset has none or the task needs none.
        attributes: What else the dataset says about objects: `difficult`, `truncated` and `occluded` (1 or 0), and
            `score`. Name → (A,) float64, NaN where it does not say. Neither training nor evaluation uses them.
    """

    image_index: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    area: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    masks: MaskColumn | None = None
    attributes: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: "slice | NDArray[np.int64] | NDArray[np.bool_]") -> "AnnotationTable":
        """Selects rows."""
        return AnnotationTable(
            image_index=self.image_index[rows],
            label=self.label[rows],
            boxes_xyxy=self.boxes_xyxy[rows],
            area=self.area[rows],
            is_crowd=self.is_crowd[rows],
            masks=None if self.masks is None else self.masks[rows],
            attributes={name: values[rows] for name, values in self.attributes.items()},
        )

    @classmethod
    def concatenate(cls, tables: Sequence["AnnotationTable"]) -> "AnnotationTable":
        """Joins tables in their order; no tables give an empty table. Masks are kept if all tables have them."""
        masks = [table.masks for table in tables if table.masks is not None]
        names = dict.fromkeys(name for table in tables for name in table.attributes)
        return cls(
            image_index=np.concatenate([np.zeros(0, np.int64), *(table.image_index for table in tables)]),
            label=np.concatenate([np.zeros(0, np.int64), *(table.label for table in tables)]),
            boxes_xyxy=np.concatenate([np.zeros((0, 4)), *(table.boxes_xyxy for table in tables)]),
            area=np.concatenate([np.zeros(0), *(table.area for table in tables)]),
            is_crowd=np.concatenate([np.zeros(0, np.bool_), *(table.is_crowd for table in tables)]),
            masks=MaskColumn.concatenate(masks) if masks and len(masks) == len(tables) else None,
            attributes={
                name: np.concatenate([table.attributes.get(name, np.full(len(table), np.nan)) for table in tables])
                for name in names
            },
        )


@dataclass(frozen=True, slots=True, eq=False)
class DetectionIndex:
    """A detection dataset of any format: images, categories, annotations.

    Labels are dense, `0…C-1`, in the order of `categories`; `categories[label].id` is the dataset's id.

    Attributes:
        name: Its name in logs and reports.
        images: The images, in a stable order. Any sequence of records becomes an `ImageTable`.
        categories: The classes; labels are the same in every split.
        annotations: The objects, ordered by image.
        splits: Name of each split → ascending indices in `images`. An image may belong to several.
        notes: What the reader dropped or repaired, one sentence each.
    """

    name: str
    images: Sequence[ImageRecord]
    categories: tuple[Category, ...]
    annotations: AnnotationTable
    splits: Mapping[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", ImageTable.of(self.images))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_sizes(self) -> NDArray[np.int64]:
        """(I, 2) height and width of each image."""
        return cast(ImageTable, self.images).sizes

    @property
    def image_paths(self) -> TextColumn:
        """The path of each image."""
        return cast(ImageTable, self.images).paths

    @property
    def has_splits(self) -> bool:
        """Whether the dataset is divided into splits. Readers give one that is not the single split `UNSPLIT`."""
        return not set(self.splits) <= {UNSPLIT}

    @property
    def id2label(self) -> dict[int, str]:
        """Dense label → class name, as in a model's config."""
        return {label: category.name for label, category in enumerate(self.categories)}

    def annotation_rows(self, image_index: int) -> slice:
        """The rows of `annotations` that belong to an image."""
        start, stop = np.searchsorted(self.annotations.image_index, [image_index, image_index + 1])
        return slice(int(start), int(stop))

    def read_masks(self, image_index: int, rows: "slice | NDArray[np.int64] | None" = None) -> NDArray[np.bool_]:
        """Reads the masks (N, H, W) bool of an image.

        Args:
            image_index: Index of the image.
            rows: Rows of `annotations` that belong to it; None: all that do.

        Raises:
            OSError: A file with masks cannot be read.
            ValueError: The dataset has no masks, or a mask does not have the image's size.
        """
        if self.annotations.masks is None:
            raise ValueError(f"{self.name} has no masks; open it for a task that needs them (instance, panoptic).")
        record = self.images[image_index]
        column = self.annotations.masks[self.annotation_rows(image_index) if rows is None else rows]
        try:
            return column.read(record.height, record.width)
        except ValueError as error:
            raise ValueError(f"{self.name}, image {record.id} ({record.path}): {error}") from error

    def read_panoptic(self, image_index: int) -> "PanopticResult":
        """Reads the masks of an image, crowd regions included, as one map of segments.

        Segment ids are 1, 2, … in the order of the annotations, and 0 is void.

        Raises:
            OSError: A file with masks cannot be read.
            ValueError: The dataset has no masks, or masks of the image overlap.
        """
        record = self.images[image_index]
        segments = np.zeros((record.height, record.width), np.int64)
        covered = 0
        for segment_id, mask in enumerate(self.read_masks(image_index), start=1):
            segments[mask] = segment_id
            covered += int(np.count_nonzero(mask))
        if covered > np.count_nonzero(segments):
            raise ValueError(
                f"{self.name}: masks of image {record.id} overlap, expected each pixel to belong to one segment; open "
                f"the dataset's panoptic annotations, or evaluate with task 'instance'."
            )
        labels = self.annotations.label[self.annotation_rows(image_index)].tolist()
        return {
            "segmentation": torch.from_numpy(segments),
            "segments_info": [
                {"id": segment_id, "label_id": label} for segment_id, label in enumerate(labels, start=1)
            ],
        }

    def select(self, image_indices: "Sequence[int] | NDArray[np.int64]", name: str | None = None) -> "DetectionIndex":
        """Selects images, each once and in ascending order, with their annotations and all categories."""
        selected = np.unique(np.asarray(image_indices, dtype=np.int64))
        new_index = np.full(len(self.images), -1, dtype=np.int64)
        new_index[selected] = np.arange(len(selected))
        table = self.annotations.take(new_index[self.annotations.image_index] >= 0)
        return DetectionIndex(
            name=name or self.name,
            images=cast(ImageTable, self.images).take(selected),
            categories=self.categories,
            annotations=dataclasses.replace(table, image_index=new_index[table.image_index]),
            splits={split: new_index[members][new_index[members] >= 0] for split, members in self.splits.items()},
            notes=self.notes,
        )

    def split(self, names: str) -> "DetectionIndex":
        """Selects the images of one split, or of several joined by `+` (`"train+val"`), each image once.

        Raises:
            ValueError: There is no such split.
        """
        selected = names.split("+")
        for split in selected:
            if split not in self.splits:
                existing = ", ".join(sorted(self.splits)) or "none"
                raise ValueError(f"{self.name} has no split '{split}'; its splits are: {existing}.")
        return self.select(np.concatenate([self.splits[split] for split in selected]), f"{self.name}[{names}]")


# Training data


class DetectionTarget(TypedDict):
    """The objects of one image before batching; rows of all fields but `image_index` belong together.

    boxes: (N, 4) float32 corners in pixels (format XYXY). class_labels: (N,) int64, dense. area: (N,) float32 square
    pixels. image_index: index of the image in its `DetectionIndex`. masks: (N, H, W) bool, if the task needs them.
    teacher_scores: (N,) float32, in training with a teacher: 0 for annotated objects, and for objects that the teacher
    predicts their score; the masks of these are empty.
    """

    boxes: tv_tensors.BoundingBoxes
    class_labels: Tensor
    area: Tensor
    image_index: int
    masks: NotRequired[tv_tensors.Mask]
    teacher_scores: NotRequired[Tensor]


class DetectionSample(TypedDict):
    """One image (3, H, W) uint8 RGB with its objects. A dict, because torchvision v2 ignores dataclass fields.

    unreadable: images that could not be read, in whose place this one is, index → reason.
    """

    image: tv_tensors.Image
    target: DetectionTarget
    unreadable: NotRequired[dict[int, str]]


class DetectionLabels(TypedDict):
    """The objects of one image as the loss expects them.

    class_labels: (N,) int64. boxes: (N, 4) cxcywh in [0, 1] of the unpadded image. masks: (N, height, width) bool of
    the unpadded image. image_index: index of the image in its dataset. size: (2,) its unpadded height and width.
    noise_seed: seeds the noise of denoising for this image. teacher_labels (K,) int64, teacher_boxes (K, 4) cxcywh and
    teacher_scores (K,) in (0, 1]: what a teacher predicts. Only `class_labels` and `boxes` are required.
    """

    class_labels: Tensor
    boxes: Tensor
    masks: NotRequired[Tensor]
    area: NotRequired[Tensor]
    image_index: NotRequired[Tensor]
    size: NotRequired[Tensor]
    noise_seed: NotRequired[int]
    teacher_labels: NotRequired[Tensor]
    teacher_boxes: NotRequired[Tensor]
    teacher_scores: NotRequired[Tensor]


class DetectionBatch(TypedDict):
    """A batch for the model.

    pixel_values: (B, 3, H, W), padded with zeros on the right and at the bottom. pixel_mask: (B, H, W) int64, 1 for
    image and 0 for padding. labels: the objects of each image. unreadable: images that could not be read and were
    replaced by others, index → reason; the loader takes them out of the batch.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    labels: list[DetectionLabels]
    unreadable: NotRequired[dict[int, str]]


# Results


class Assignment(NamedTuple):
    """The pairs of queries and targets of one image: two (K,) int64 tensors of indices, K = min(queries, targets),
    ordered by query."""

    queries: Tensor
    targets: Tensor


class DetectionResult(TypedDict):
    """Detections in one image: scores (K,), labels (K,) int64, boxes (K, 4) xyxy in pixels of the original image, and
    for segmentation masks (K, H, W) bool of the original image's size."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    masks: NotRequired[Tensor]


class SegmentInfo(TypedDict):
    """One segment of a panoptic prediction.

    id: the value of its pixels in `PanopticResult.segmentation`. label_id: its class. score: the highest score of its
    queries. was_fused: whether it has several queries.
    """

    id: int
    label_id: int
    score: NotRequired[float]
    was_fused: NotRequired[bool]


class PanopticResult(TypedDict):
    """The segments of one image, in Transformers' format.

    segmentation: (H, W) int, the id of each pixel's segment, at the original image's size. segments_info: the
    segments; pixels with another id belong to none.
    """

    segmentation: Tensor
    segments_info: list[SegmentInfo]


class InstanceResult(DetectionResult):
    """Detections in one image with their masks, which may overlap; and the same as a map without overlap, the higher
    score in front: `segmentation` (H, W) int, or its run lengths, with `segments_info`, as in `PanopticResult`."""

    segmentation: Tensor | list[list[int]]
    segments_info: list[SegmentInfo]


def labels_as_tensors(labels: Iterable[Mapping[str, object]]) -> list[DetectionLabels]:
    """Labels as the loss expects them, from tensors, NumPy arrays, lists or other sequences of numbers.

    Args:
        labels: One dict per image; `class_labels`, `boxes` and `masks` are converted, other keys are kept.

    Raises:
        ValueError: There is not one dict per image, or values are not numbers.
    """
    expected = "expected one dict per image with 'class_labels' and 'boxes'"
    if isinstance(labels, Mapping | Tensor | str) or not isinstance(labels, Iterable):
        raise ValueError(f"labels: got {type(labels).__name__}, {expected}.")
    converted = []
    for index, label in enumerate(labels):
        where = f"image {index} of the batch"
        if not isinstance(label, Mapping):
            raise ValueError(f"{where}: its labels are {type(label).__name__}, {expected}.")
        tensors = {key: _numbers(key, label[key], where) for key in ("class_labels", "boxes", "masks") if key in label}
        converted.append(cast(DetectionLabels, {**label, **tensors}))
    return converted


def _numbers(key: str, values: object, where: str) -> Tensor:
    """Values of a label as a tensor. An empty one gets the type and shape that no objects have."""
    if isinstance(values, Tensor):
        tensor = values
    else:
        try:
            is_array = isinstance(values, np.ndarray) and values.dtype != object
            array = cast(NDArray[np.generic], values) if is_array else np.array(list(cast(Iterable[object], values)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: got {key} {str(values)[:80]}, expected rows of equal length.") from error
        if array.dtype.kind not in "buif":
            raise ValueError(f"{where}: got {key} {str(values)[:80]}, expected numbers.")
        tensor = torch.tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array)
    if tensor.numel() == 0 and key != "masks":
        shape, dtype = ((0,), torch.int64) if key == "class_labels" else ((0, 4), tensor.dtype)
        tensor = tensor.reshape(shape).to(dtype)
    return tensor


def check_labels(labels: Iterable[DetectionLabels], num_labels: int, names: Sequence[str] | None = None) -> None:
    """Checks the labels on the host, before they are on a GPU, where a check would force a synchronisation.

    Args:
        labels: One dict per image with `class_labels` (N,) integers and `boxes` (N, 4) cxcywh in [0, 1].
        num_labels: Number of classes of the model; labels are `0…num_labels-1`.
        names: The name of each image in error messages. None: "image 0 of the batch" etc.

    Raises:
        ValueError: A label is out of range (the original would train it as "no object", or crash on the device), boxes
            are not normalised cxcywh, or shapes are wrong.
    """
    for index, label in enumerate(labels):
        where = names[index] if names is not None else f"image {index} of the batch"
        for key in ("class_labels", "boxes"):
            if key not in label:
                raise ValueError(f"{where}: its labels lack '{key}'; got {sorted(label)}.")
        classes, boxes = label["class_labels"], label["boxes"]
        if classes.ndim != 1 or boxes.ndim != 2 or boxes.shape[-1] != 4 or len(classes) != len(boxes):
            raise ValueError(
                f"{where}: got class_labels of shape {tuple(classes.shape)} and boxes of shape {tuple(boxes.shape)}, "
                f"expected (N,) and (N, 4)."
            )
        if classes.is_floating_point() or classes.dtype == torch.bool:
            raise ValueError(f"{where}: class_labels have dtype {classes.dtype}, expected integers (int64).")
        if len(classes) == 0:
            continue
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= num_labels:
            raise ValueError(
                f"{where}: class label {low if low < 0 else high}, but the model has {num_labels} classes "
                f"(0-{num_labels - 1}); set num_labels, or map the dataset's ids to 0-{num_labels - 1}."
            )
        check_boxes_cxcywh(boxes, where)


def check_masks(labels: Sequence[DetectionLabels], canvas_size: tuple[int, int]) -> None:
    """Checks that every object of a batch has a mask; only by shapes, which needs no synchronisation.

    Args:
        labels: One dict per image with `class_labels` (N,) and `masks` (N, height, width) of the unpadded image.
        canvas_size: Height and width of the padded batch.

    Raises:
        ValueError: An image has no masks, not one per object, or larger ones than the batch.
    """
    for index, label in enumerate(labels):
        where, count = f"image {index} of the batch", len(label["class_labels"])
        if "masks" not in label:
            raise ValueError(
                f"{where}: its labels lack 'masks', which the segmentation loss needs; got {sorted(label)}, expected "
                f"masks ({count}, height, width) bool of the unpadded image."
            )
        shape = tuple(label["masks"].shape)
        if len(shape) != 3 or shape[0] != count or shape[1] > canvas_size[0] or shape[2] > canvas_size[1]:
            raise ValueError(
                f"{where}: masks of shape {shape} for {count} objects in a batch of {canvas_size[1]}x{canvas_size[0]} "
                f"(width x height), expected ({count}, height, width) of the unpadded image."
            )


def check_boxes_cxcywh(boxes: Tensor, where: str) -> None:
    """Checks that boxes (N, 4) are finite numbers in [0, 1].

    Args:
        boxes: cxcywh, relative to the unpadded image.
        where: The name of the image in error messages.

    Raises:
        ValueError: A number is not finite, or outside [0, 1].
    """
    if not bool(torch.isfinite(boxes).all()):
        raise ValueError(f"{where}: boxes contain NaN or infinite numbers; remove these annotations.")
    tolerance = 1e-3  # boxes at the edge of a large image are rounded
    outside = ((boxes < -tolerance) | (boxes > 1 + tolerance)).any(-1)
    if bool(outside.any()):
        raise ValueError(
            f"{where}: box {[round(number, 4) for number in boxes[outside][0].tolist()]} is not normalised, expected "
            f"(centre x, centre y, width, height) divided by the unpadded image's width and height, all in [0, 1]."
        )
