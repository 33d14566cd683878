"""The nouns that travel through the package: what a dataset, a sample, a batch, a match and a result are.

Every stage of the walk (dataset → sample → batch → model → match → result) takes and returns one of these, so this
file imports nothing of ours and everything else may import it.

Shapes: N objects of one image · A annotations of a whole dataset · B images of a batch · H, W pixels.
Boxes carry their format in their name wherever it could be doubted: `boxes_xyxy` are corners in pixels,
`boxes_cxcywh` centre and size relative to the **unpadded** image. Sizes are `(height, width)`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors


Task = Literal["detection", "instance", "panoptic"]  # boxes; things with masks; every pixel of things and stuff

UNSPLIT = "all"  # the only split of a dataset that is not divided into splits


# What a dataset is


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a dataset.

    Attributes:
        id: The dataset's own id of the image, used when results are written.
        path: Where the file lies.
        height: Height in pixels, as the annotations see the image.
        width: Width in pixels, as the annotations see the image.
    """

    id: int | str
    path: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a dataset.

    Attributes:
        id: The dataset's own id of the class, used when results are written.
        name: What it is called.
        is_thing: Whether it has single objects (a cat). False: stuff, one region an image (the sky).
    """

    id: int
    name: str
    is_thing: bool = True


class MaskSource(Protocol):
    """Where masks lie in some format: polygons, run lengths, the segments of a PNG file."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The masks (n, H, W) bool of the source's own `rows` (n,), all of one image, at its height and width."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskColumn:
    """The masks of annotations, read only when they are asked for.

    Attributes:
        sources: Where they lie.
        source: (A,) int64, position in `sources`.
        row: (A,) int64, row in that source.
    """

    sources: tuple[MaskSource, ...]
    source: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, source: MaskSource, count: int) -> "MaskColumn":
        """All `count` rows of one source."""
        return cls((source,), np.zeros(count, np.int64), np.arange(count))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: "slice | NDArray[np.int64] | NDArray[np.bool_]") -> "MaskColumn":
        """The chosen rows, as a column; nothing is read."""
        return MaskColumn(self.sources, self.source[rows], self.row[rows])

    @classmethod
    def concatenate(cls, columns: Sequence["MaskColumn"]) -> "MaskColumn":
        """All rows of `columns` in their order."""
        starts = np.cumsum([0, *(len(column.sources) for column in columns)])
        shifted = [column.source + start for column, start in zip(columns, starts[:-1], strict=True)]
        return cls(
            sources=tuple(source for column in columns for source in column.sources),
            source=np.concatenate([np.zeros(0, np.int64), *shifted]),
            row=np.concatenate([np.zeros(0, np.int64), *(column.row for column in columns)]),
        )

    def read(self, height: int, width: int) -> NDArray[np.bool_]:
        """The masks (A, height, width) bool of all rows, which are of one image of that size.

        Raises:
            OSError: A file that holds masks cannot be read.
            ValueError: Masks are not of this size; the message says what to do.
        """
        masks = np.zeros((len(self), height, width), np.bool_)
        for number in np.unique(self.source).tolist():
            rows = self.source == number
            found = self.sources[number].read(self.row[rows])
            if found.shape[1:] != (height, width):
                raise ValueError(
                    f"masks of {found.shape[1]}x{found.shape[2]} (height x width) for an image of {height}x{width}; "
                    f"write masks of the image's own size."
                )
            masks[rows] = found
        return masks


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationTable:
    """Annotations as columns, one row an object, ordered by image. A million rows stay a few arrays.

    Attributes:
        image_index: (A,) int64, position of the image in `DetectionIndex.images`; ascending.
        label: (A,) int64, dense label in 0…C-1, the position of the category in `DetectionIndex.categories`.
        boxes_xyxy: (A, 4) float64, corners in pixels, as the dataset gives them, clipped to the image.
        area: (A,) float64, the dataset's own area in square pixels, the box's where it gives none.
        is_crowd: (A,) bool; a crowd region is never trained on and is kept for the evaluation.
        masks: The mask of each row, read when asked for; None where the dataset has none or they are not wanted.
    """

    image_index: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    area: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    masks: MaskColumn | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: "slice | NDArray[np.int64] | NDArray[np.bool_]") -> "AnnotationTable":
        """The chosen rows, as a table."""
        return AnnotationTable(
            image_index=self.image_index[rows],
            label=self.label[rows],
            boxes_xyxy=self.boxes_xyxy[rows],
            area=self.area[rows],
            is_crowd=self.is_crowd[rows],
            masks=None if self.masks is None else self.masks[rows],
        )

    @classmethod
    def concatenate(cls, tables: Sequence["AnnotationTable"]) -> "AnnotationTable":
        """All rows of `tables` in their order; the empty table if there are none. Masks stay if all have them."""
        masks = [table.masks for table in tables if table.masks is not None]
        return cls(
            image_index=np.concatenate([np.zeros(0, np.int64), *(table.image_index for table in tables)]),
            label=np.concatenate([np.zeros(0, np.int64), *(table.label for table in tables)]),
            boxes_xyxy=np.concatenate([np.zeros((0, 4)), *(table.boxes_xyxy for table in tables)]),
            area=np.concatenate([np.zeros(0), *(table.area for table in tables)]),
            is_crowd=np.concatenate([np.zeros(0, np.bool_), *(table.is_crowd for table in tables)]),
            masks=MaskColumn.concatenate(masks) if masks and len(masks) == len(tables) else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class DetectionIndex:
    """A detection dataset, whatever format it came from: images, categories, annotations.

    Labels are dense, `0…C-1`, in the order of `categories`; `categories[label].id` is the dataset's own id.

    Attributes:
        name: What it is called in logs and reports.
        images: The images, in a stable order.
        categories: The classes; a class keeps its label whichever split is selected.
        annotations: The objects, ordered by image.
        splits: Name of each split → ascending positions in `images`. An image may belong to several.
        notes: What the reader left out or repaired, one plain sentence each.
    """

    name: str
    images: tuple[ImageRecord, ...]
    categories: tuple[Category, ...]
    annotations: AnnotationTable
    splits: Mapping[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_splits(self) -> bool:
        """Whether the dataset is divided into splits. Readers give one that is not the single split `UNSPLIT`."""
        return not set(self.splits) <= {UNSPLIT}

    @property
    def id2label(self) -> dict[int, str]:
        """Dense label → class name, as a model's config wants it."""
        return {label: category.name for label, category in enumerate(self.categories)}

    def annotation_rows(self, position: int) -> slice:
        """The rows of `annotations` that belong to the image at `position`."""
        start, stop = np.searchsorted(self.annotations.image_index, [position, position + 1])
        return slice(int(start), int(stop))

    def read_masks(self, position: int, rows: "slice | NDArray[np.int64] | None" = None) -> NDArray[np.bool_]:
        """The masks (N, H, W) bool of the image at `position`: of its `rows` of `annotations`, or of all.

        Raises:
            OSError: A file that holds masks cannot be read.
            ValueError: The dataset has no masks, or not of the image's size.
        """
        if self.annotations.masks is None:
            raise ValueError(f"{self.name} has no masks; open it for a task that needs them (instance, panoptic).")
        record = self.images[position]
        column = self.annotations.masks[self.annotation_rows(position) if rows is None else rows]
        try:
            return column.read(record.height, record.width)
        except ValueError as error:
            raise ValueError(f"{self.name}, image {record.id} ({record.path}): {error}") from error

    def read_panoptic(self, position: int) -> "PanopticResult":
        """The image at `position` as one map of segments, crowd regions among them; their ids are 1, 2, … in the order
        of its annotations, and 0 is void.

        Raises:
            OSError: A file that holds masks cannot be read.
            ValueError: The dataset has no masks, or some of the image's overlap.
        """
        segments = np.zeros((self.images[position].height, self.images[position].width), np.int64)
        covered = 0
        for number, mask in enumerate(self.read_masks(position), start=1):
            segments[mask] = number
            covered += int(np.count_nonzero(mask))
        if covered > np.count_nonzero(segments):
            raise ValueError(
                f"{self.name}: masks of image {self.images[position].id} overlap, where each pixel should belong to "
                f"one segment; open the dataset's panoptic annotations, or judge by mask AP."
            )
        labels = self.annotations.label[self.annotation_rows(position)].tolist()
        return {
            "segmentation": torch.from_numpy(segments),
            "segments_info": [{"id": number, "label_id": label} for number, label in enumerate(labels, start=1)],
        }

    def select(self, positions: "Sequence[int] | NDArray[np.int64]", name: str | None = None) -> "DetectionIndex":
        """The images at `positions` (each once, in ascending order), with their annotations and all categories."""
        chosen = np.unique(np.asarray(positions, dtype=np.int64))
        new_position = np.full(len(self.images), -1, dtype=np.int64)
        new_position[chosen] = np.arange(len(chosen))
        table = self.annotations.take(new_position[self.annotations.image_index] >= 0)
        return DetectionIndex(
            name=name or self.name,
            images=tuple(self.images[position] for position in chosen),
            categories=self.categories,
            annotations=dataclasses.replace(table, image_index=new_position[table.image_index]),
            splits={
                split: new_position[members][new_position[members] >= 0] for split, members in self.splits.items()
            },
            notes=self.notes,
        )

    def split(self, names: str) -> "DetectionIndex":
        """The images of one split, or of several joined by `+` (`"train+val"`), each image once.

        Raises:
            ValueError: A split of that name does not exist; the message lists those that do.
        """
        wanted = names.split("+")
        for split in wanted:
            if split not in self.splits:
                known = ", ".join(sorted(self.splits)) or "none"
                raise ValueError(f"{self.name} has no split '{split}'; its splits are: {known}.")
        return self.select(np.concatenate([self.splits[split] for split in wanted]), f"{self.name}[{names}]")


# What is trained on


class DetectionTarget(TypedDict):
    """The objects of one image before batching; rows of all fields but `image_index` belong together.

    boxes: (N, 4) float32 corners in pixels (format XYXY). class_labels: (N,) int64, dense. area: (N,) float32 square
    pixels. image_index: position of the image in its `DetectionIndex`. masks: (N, H, W) bool, where they are wanted.
    """

    boxes: tv_tensors.BoundingBoxes
    class_labels: Tensor
    area: Tensor
    image_index: int
    masks: NotRequired[tv_tensors.Mask]


class DetectionSample(TypedDict):
    """One image (3, H, W) uint8 RGB with its objects. A dict, since torchvision v2 passes dataclass fields by."""

    image: tv_tensors.Image
    target: DetectionTarget


class DetectionLabels(TypedDict):
    """The objects of one image as the loss takes them: `class_labels` (N,) int64 and `boxes` (N, 4) cxcywh in [0, 1]
    of the unpadded image are needed; `image_index` and `size` (2,) say which image it is and its unpadded size;
    `masks` (N, height, width) bool are of the unpadded image; `noise_seed` is of what denoising draws for it."""

    class_labels: Tensor
    boxes: Tensor
    masks: NotRequired[Tensor]
    area: NotRequired[Tensor]
    image_index: NotRequired[Tensor]
    size: NotRequired[Tensor]
    noise_seed: NotRequired[int]


class DetectionBatch(TypedDict):
    """pixel_values (B, 3, H, W), padded right and bottom with zeros; pixel_mask (B, H, W) int64, 1 = image; labels."""

    pixel_values: Tensor
    pixel_mask: Tensor
    labels: list[DetectionLabels]


# What comes out


class Assignment(NamedTuple):
    """Which queries an image's targets were matched to: two (K,) int64 tensors, K = min(queries, targets), ordered by
    query."""

    queries: Tensor
    targets: Tensor


class DetectionResult(TypedDict):
    """Predictions of one image: scores (K,), labels (K,) int64, boxes (K, 4) xyxy in pixels of the original image, and
    where the task has them masks (K, H, W) bool, of the original image's size."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    masks: NotRequired[Tensor]


class SegmentInfo(TypedDict):
    """One segment of a panoptic prediction: `id`, its pixels' value in `PanopticResult.segmentation`; `label_id`, its
    class; `score`, of its query (the highest of those that were fused); `was_fused`, whether it has several."""

    id: int
    label_id: int
    score: NotRequired[float]
    was_fused: NotRequired[bool]


class PanopticResult(TypedDict):
    """Prediction of one image: segmentation (H, W) int, the id of each pixel's segment, at the original image's size;
    pixels whose id is none of `segments_info` belong to no segment. Transformers' form."""

    segmentation: Tensor
    segments_info: list[SegmentInfo]


class InstanceResult(DetectionResult):
    """Instances of one image, which may overlap; and `segmentation` (H, W) int with `segments_info` as in
    `PanopticResult`, the same with the higher score in front."""

    segmentation: Tensor
    segments_info: list[SegmentInfo]


def check_labels(labels: Iterable[DetectionLabels], num_labels: int, names: Sequence[str] | None = None) -> None:
    """Checks on the host what the loss takes for granted, so that a step on a GPU needs no synchronisation.

    Args:
        labels: One dict an image with `class_labels` (N,) integers and `boxes` (N, 4) cxcywh in [0, 1].
        num_labels: Number of classes of the model; labels are `0…num_labels-1`.
        names: What to call each image in a message; "image 0 of the batch" … if not given.

    Raises:
        ValueError: A label is out of range (the original would train it as "no object", or crash on the device), boxes
            are not normalised cxcywh, or shapes do not fit. The message says where, got, wanted and the remedy.
    """
    for position, label in enumerate(labels):
        where = names[position] if names is not None else f"image {position} of the batch"
        for key in ("class_labels", "boxes"):
            if key not in label:
                raise ValueError(f"{where}: its labels lack '{key}'; got {sorted(label)}.")
        classes, boxes = label["class_labels"], label["boxes"]
        if classes.ndim != 1 or boxes.ndim != 2 or boxes.shape[-1] != 4 or len(classes) != len(boxes):
            raise ValueError(
                f"{where}: class_labels of shape {tuple(classes.shape)} and boxes of shape {tuple(boxes.shape)} do "
                f"not fit; wanted (N,) and (N, 4)."
            )
        if classes.is_floating_point() or classes.dtype == torch.bool:
            raise ValueError(f"{where}: class_labels have dtype {classes.dtype}; wanted integers (int64).")
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
    """Checks by their shapes alone, which costs no synchronisation, that every object of a batch has a mask.

    Args:
        labels: One dict an image with `class_labels` (N,) and `masks` (N, height, width) of the unpadded image.
        canvas_size: Height and width of the padded batch.

    Raises:
        ValueError: An image's masks are missing, not one an object, or larger than the batch.
    """
    for position, label in enumerate(labels):
        where, count = f"image {position} of the batch", len(label["class_labels"])
        if "masks" not in label:
            raise ValueError(
                f"{where}: its labels lack 'masks', which segmentation learns from; got {sorted(label)}. Wanted "
                f"({count}, height, width) bool, of the unpadded image."
            )
        shape = tuple(label["masks"].shape)
        if len(shape) != 3 or shape[0] != count or shape[1] > canvas_size[0] or shape[2] > canvas_size[1]:
            raise ValueError(
                f"{where}: masks of shape {shape} for {count} objects in a batch of {canvas_size[0]}x{canvas_size[1]} "
                f"(height x width); wanted ({count}, height, width) of the unpadded image."
            )


def check_boxes_cxcywh(boxes: Tensor, where: str) -> None:
    """Raises a ValueError that says `where` if `boxes` (N, 4) are not finite numbers in [0, 1]."""
    if not bool(torch.isfinite(boxes).all()):
        raise ValueError(f"{where}: boxes hold NaN or infinite numbers; remove those annotations.")
    tolerance = 1e-3  # rounding of boxes that end at the edge of a large image
    outside = ((boxes < -tolerance) | (boxes > 1 + tolerance)).any(-1)
    if bool(outside.any()):
        raise ValueError(
            f"{where}: box {[round(number, 4) for number in boxes[outside][0].tolist()]} is not normalised; wanted "
            f"(centre x, centre y, width, height) divided by the unpadded image's width and height, all in [0, 1]."
        )
