"""What the choices of `detr train auto` know about a dataset: counts and sizes, from headers and annotations only."""

from dataclasses import dataclass

import numpy as np

from modeling_detr.data.findings import counted
from modeling_detr.structures_detr import DetectionIndex


_FEWEST_BOXES = 5  # of a class whose size counts


@dataclass(frozen=True)
class DataFacts:
    """A dataset in numbers. Crowd regions do not count as objects.

    The side of an object is the square root of its box's area, relative to the shorter side of its image.

    Attributes:
        name: Name of the training images.
        num_images: Number of training images.
        num_eval_images: Number of evaluation images.
        num_objects: Number of objects to train on.
        classes: Names of the classes.
        most_objects: Largest number of objects in an image.
        usual_most_objects: The 99th percentile of that number.
        median_objects: Its median over the images that have objects.
        median_side: Median side of the objects, from 0 to 1.
        smallest_class: The class whose median side is smallest, among those with a few boxes.
        small_side: That side, from 0 to 1.
        width: Median width of the images, in pixels.
        height: Median height of the images, in pixels.
        aspect: Longer by shorter side of the images, 95th percentile.
    """

    name: str
    num_images: int
    num_eval_images: int
    num_objects: int
    classes: tuple[str, ...]
    most_objects: int
    usual_most_objects: int
    median_objects: int
    median_side: float
    smallest_class: str
    small_side: float
    width: int
    height: int
    aspect: float

    @classmethod
    def of(cls, train: DetectionIndex, evaluation: DetectionIndex) -> "DataFacts":
        """Measures the training images, of which at least one has an object."""
        table = train.annotations.take(~train.annotations.is_crowd)
        sizes = train.image_sizes[:, ::-1].astype(np.float64)  # width and height
        boxes = table.boxes_xyxy
        areas = (boxes[:, 2] - boxes[:, 0]).clip(min=0) * (boxes[:, 3] - boxes[:, 1]).clip(min=0)
        sides = np.sqrt(areas) / sizes.min(axis=1)[table.image_index]
        counts = np.bincount(table.image_index, minlength=len(train))
        names = [category.name for category in train.categories]
        medians = {
            label: float(np.median(sides[table.label == label]))
            for label, number in enumerate(np.bincount(table.label, minlength=len(names)))
            if number >= min(_FEWEST_BOXES, len(table))
        }
        median_side = float(np.median(sides))
        label = min(medians, key=medians.__getitem__, default=int(table.label[0]))
        width, height = np.median(sizes, axis=0)
        return cls(
            name=train.name,
            num_images=len(train),
            num_eval_images=len(evaluation),
            num_objects=len(table),
            classes=tuple(names),
            most_objects=int(counts.max()),
            usual_most_objects=int(np.percentile(counts, 99, method="higher")),
            median_objects=int(np.median(counts[counts > 0])),
            median_side=median_side,
            smallest_class=names[label],
            small_side=medians.get(label, median_side),
            width=round(float(width)),
            height=round(float(height)),
            aspect=float(np.percentile(sizes.max(axis=1) / sizes.min(axis=1), 95)),
        )

    @property
    def shortest_edge(self) -> int:
        """The shorter side of a typical image, in pixels."""
        return min(self.width, self.height)

    def describe(self) -> str:
        """The facts in a line."""
        classes = counted(len(self.classes), "class", "classes")
        small = f"; those of '{self.smallest_class}' {self.pixels(self.small_side)}" if len(self.classes) > 1 else ""
        return (
            f"{counted(self.num_images, 'image')} of {self.width}x{self.height} to train on, {self.num_eval_images:,} "
            f"to evaluate on, {classes}; {counted(self.median_objects, 'object')} per image (at most "
            f"{self.most_objects:,}), typically {self.pixels(self.median_side)} pixels wide{small}"
        )

    def pixels(self, side: float) -> int:
        """A relative side in pixels of a typical image."""
        return max(1, round(side * self.shortest_edge))
