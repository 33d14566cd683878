"""The built-in dataset: circles, squares, triangles and stars over textured ground. Nothing lies on disk.

An image is a function of (seed, split, number, size): the index draws where the shapes are, and `render` draws the
same again when the pixels are wanted. Train and validation images come from different streams of random numbers. The
geometry is in one place, `Shape.outline`: boxes are the extent of it, and pixels (and whatever else is wanted of a
shape, such as its mask) come from `coverage`.

An image has a virtual path, `shapes?size=128&seed=0/train/000017.png`, which `images.read_image` knows. With
`classes=circle,square` only those are drawn, and they are the dataset's classes in that order. With `panoptic=true`
the ground is a class as well, of stuff.
"""

import difflib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, MaskColumn


KINDS = ("circle", "square", "triangle", "star")
SHARE_OF_SIDE = (0.18, 0.45)  # smallest and largest shape
MOST_OBJECTS = 5
MOST_COVER = 0.2  # of the smaller of two boxes may lie under the other, so that no shape is hidden
LEAST_CONTRAST = 90  # in grey levels of the channel that differs most, between a shape and the ground
_OVERSAMPLING = 4  # subpixels a side, for smooth edges
_TRIES = 40
_SPLIT_STREAM = {"train": 1, "val": 2}
_PREFIX = "shapes?"
_GROUND = -1

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ShapesOptions:
    """What can be set in `shapes?size=…&train=…&val=…&seed=…&classes=…&panoptic=…`.

    Attributes:
        size: Side of an image in pixels.
        train: Images of the training split.
        val: Images of the validation split.
        seed: Seed of everything that is drawn.
        classes: The kinds that are drawn, of `KINDS`; a kind's label is its position here.
        panoptic: Whether the ground is a class too, the last one: stuff, what is left of the image.
    """

    size: int = 128
    train: int = 8000
    val: int = 400
    seed: int = 0
    classes: tuple[str, ...] = KINDS
    panoptic: bool = False

    @property
    def kinds(self) -> tuple[int, ...]:
        """Positions of the classes in `KINDS`."""
        return tuple(KINDS.index(name) for name in self.classes)

    def prefix(self) -> str:
        """How the virtual path of an image begins: what decides its pixels."""
        chosen = "" if self.classes == KINDS else f"&classes={','.join(self.classes)}"
        return f"{_PREFIX}size={self.size}&seed={self.seed}{chosen}"


@dataclass(frozen=True, slots=True)
class Shape:
    """One object: its kind (a position in `KINDS`), corner and side of its square box in pixels, and its colour."""

    kind: int
    x: float
    y: float
    side: float
    colour: Colour

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Corners (x0, y0, x1, y1) in pixels; the shape touches all four sides."""
        return self.x, self.y, self.x + self.side, self.y + self.side

    def outline(self) -> NDArray[np.float64]:
        """The corners (K, 2) of the shape's polygon, x and y in pixels."""
        return _unit_outlines()[self.kind] * self.side + (self.x, self.y)


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image shows: the colour of its ground and its shapes, later ones on top."""

    ground: Colour
    shapes: tuple[Shape, ...]


# The dataset


def is_shapes(path: str | Path) -> bool:
    """Whether `path` names this dataset, not a folder (for a folder of that name write `./shapes`)."""
    return str(path) == "shapes" or str(path).startswith(_PREFIX)


@dataclass(frozen=True, slots=True, eq=False)
class ShapeMasks:
    """What is seen of each shape, drawn when asked for.

    Attributes:
        paths: Virtual path of each image.
        image: (A,) int64, position in `paths`.
        shape: (A,) int64, position in the scene's shapes; `_GROUND` for the rest of the image.
    """

    paths: tuple[str, ...]
    image: NDArray[np.int64]
    shape: NDArray[np.int64]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The masks (n, size, size) bool. A pixel belongs to the uppermost shape that has half of it."""
        if len(rows) == 0:
            return np.zeros((0, 0, 0), np.bool_)
        options, scene, _ = _parse_image_path(self.paths[self.image[rows[0]]])
        seen = np.full((options.size, options.size), _GROUND, np.int64)
        for number, shape in enumerate(scene.shapes):
            inside, top, left = coverage(shape.outline(), options.size, options.size)
            seen[top : top + inside.shape[0], left : left + inside.shape[1]][inside >= 128] = number
        masks: NDArray[np.bool_] = seen == self.shape[rows][:, None, None]
        return masks


def read_shapes(path: str = "shapes", panoptic: bool = False) -> DetectionIndex:
    """The dataset with the options in `path`, as in `shapes?size=128&train=8000&val=400&seed=0&classes=circle,star`.

    Masks show what is seen of each shape; boxes are those of the whole shape.

    Args:
        path: `shapes`, with or without options.
        panoptic: Make the ground a class, as `panoptic=true` among the options does.

    Raises:
        ValueError: An option is unknown or its value makes no sense.
    """
    options = _parse_options(path)
    options = replace(options, panoptic=options.panoptic or panoptic)
    images: list[ImageRecord] = []
    labels, boxes, image_index, numbers = [], [], [], []
    splits = {}
    for split, count in (("train", options.train), ("val", options.val)):
        splits[split] = np.arange(len(images), len(images) + count)
        for number in range(count):
            scene = draw_scene(options.size, options.seed, split, number, options.kinds)
            for position, shape in enumerate(scene.shapes):
                labels.append(options.kinds.index(shape.kind))
                boxes.append(shape.box)
                image_index.append(len(images))
                numbers.append(position)
            if options.panoptic:
                labels.append(len(options.classes))
                boxes.append((0.0, 0.0, float(options.size), float(options.size)))
                image_index.append(len(images))
                numbers.append(_GROUND)
            file = f"{options.prefix()}/{split}/{number:06d}.png"
            images.append(ImageRecord(len(images), file, options.size, options.size))
    boxes_xyxy = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    categories = [Category(label, name) for label, name in enumerate(options.classes)]
    if options.panoptic:
        categories.append(Category(len(categories), "ground", is_thing=False))
    masks = ShapeMasks(
        tuple(image.path for image in images),
        np.array(image_index, dtype=np.int64),
        np.array(numbers, dtype=np.int64),
    )
    return DetectionIndex(
        name="shapes",
        images=tuple(images),
        categories=tuple(categories),
        annotations=AnnotationTable(
            image_index=np.array(image_index, dtype=np.int64),
            label=np.array(labels, dtype=np.int64),
            boxes_xyxy=boxes_xyxy,
            area=(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1),
            is_crowd=np.zeros(len(labels), dtype=np.bool_),
            masks=MaskColumn.of(masks, len(labels)),
        ),
        splits=splits,
    )


def _parse_options(path: str) -> ShapesOptions:
    values: dict[str, Any] = {}
    known = list(ShapesOptions.__dataclass_fields__)
    for key, text in parse_qsl(path.removeprefix("shapes").removeprefix("?"), keep_blank_values=True):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"'{path}': unknown option '{key}'; did you mean '{near}'? Options: {', '.join(known)}.")
        if key == "classes":
            values[key] = _parse_classes(path, text)
            continue
        if key == "panoptic":
            if text not in ("true", "false"):
                raise ValueError(f"'{path}': panoptic is '{text}'; wanted true or false.")
            values[key] = text == "true"
            continue
        least = {"size": 16, "train": 0, "val": 0, "seed": 0}[key]
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"'{path}': {key} is '{text}'; wanted a whole number of at least {least}.")
        values[key] = int(text)
    return ShapesOptions(**values)


def _parse_classes(path: str, text: str) -> tuple[str, ...]:
    classes = tuple(text.split(","))
    for name in classes:
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"'{path}': there is no shape '{name}'; did you mean '{near}'? Shapes: {', '.join(KINDS)}."
            )
    if len(set(classes)) < len(classes):
        raise ValueError(f"'{path}': classes is '{text}'; wanted each shape once.")
    return classes


# Scenes


def draw_scene(
    size: int, seed: int, split: str, number: int, kinds: Sequence[int] = tuple(range(len(KINDS)))
) -> Scene:
    """What image `number` of a split shows; the same whenever and wherever it is asked for.

    Args:
        size: Side of the image in pixels.
        seed: The dataset's.
        split: `train` or `val`.
        number: The image's position in its split.
        kinds: Which kinds are drawn, as positions in `KINDS`.
    """
    draw = _stream(seed, split, number)
    ground: Colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
    shapes: list[Shape] = []
    for _ in range(draw.randint(1, MOST_OBJECTS)):
        for _ in range(_TRIES):
            side = draw.uniform(*SHARE_OF_SIDE) * size
            x, y = draw.uniform(0, size - side), draw.uniform(0, size - side)
            if all(_cover(x, y, side, other) <= MOST_COVER for other in shapes):
                shapes.append(Shape(kinds[draw.randrange(len(kinds))], x, y, side, _contrasting(draw, ground)))
                break
    return Scene(ground, tuple(shapes))


def _stream(seed: int, split: str, number: int) -> random.Random:
    return random.Random(seed << 48 | _SPLIT_STREAM[split] << 40 | number)


def _cover(x: float, y: float, side: float, other: Shape) -> float:
    """The share of the smaller of two boxes that lies under the other."""
    width = min(x + side, other.x + other.side) - max(x, other.x)
    height = min(y + side, other.y + other.side) - max(y, other.y)
    return max(width, 0.0) * max(height, 0.0) / min(side, other.side) ** 2


def _contrasting(draw: random.Random, ground: Colour) -> Colour:
    while True:
        colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
        if max(abs(mine - theirs) for mine, theirs in zip(colour, ground, strict=True)) >= LEAST_CONTRAST:
            return colour


@lru_cache
def _unit_outlines() -> tuple[NDArray[np.float64], ...]:
    """The polygon of each kind, stretched to touch all sides of the unit square."""
    circle = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 64, endpoint=False)]
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    triangle = [(0.5, 0), (1, 1), (0, 1)]
    radii = [1.0 if corner % 2 == 0 else 0.42 for corner in range(10)]
    star = [(r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)]
    outlines = []
    for points in (circle, square, triangle, star):
        corners = np.array(points, dtype=np.float64)
        low, high = corners.min(0), corners.max(0)
        outlines.append((corners - low) / (high - low))
    return tuple(outlines)


# Pixels


def coverage(outline: NDArray[np.float64], height: int, width: int) -> tuple[NDArray[np.uint8], int, int]:
    """How much of each pixel lies inside an outline, 0…255, of the part of the image that it touches.

    Args:
        outline: (K, 2) corners of a polygon, x and y in pixels.
        height: Height of the image.
        width: Width of the image.

    Returns:
        The part (h, w) uint8, and the row and column of the image at which it begins.
    """
    left, top = np.maximum(np.floor(outline.min(0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(outline.max(0)).astype(int), (width, height)).tolist()
    canvas = Image.new("L", ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING))
    # Pillow's polygon includes its border; half a subpixel less puts the edge where it belongs.
    corners = (outline - (left, top)) * _OVERSAMPLING - 0.5
    ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING)), top, left


def render(path: str) -> NDArray[np.uint8]:
    """Draws the image of a virtual path: pixels (H, W, 3) uint8 RGB.

    Raises:
        ValueError: No such path is made by this dataset.
    """
    options, scene, stream = _parse_image_path(path)
    return _paint(scene, options.size, np.random.default_rng(stream))


def _parse_image_path(path: str) -> tuple[ShapesOptions, Scene, list[int]]:
    """The options in a virtual path, what its image shows, and the seed of its texture."""
    try:
        options_text, split, name = path.rsplit("/", 2)
        options, number = _parse_options(options_text), int(name.removesuffix(".png"))
        scene = draw_scene(options.size, options.seed, split, number, options.kinds)
    except (KeyError, ValueError) as error:
        raise ValueError(f"'{path}' is no image of the built-in shapes: {error}.") from error
    return options, scene, [options.seed, _SPLIT_STREAM[split], number]


def _paint(scene: Scene, size: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    cells = draw.integers(-40, 41, (6, 6, 3)) + np.array(scene.ground)  # clouds, from a few random cells
    clouds = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.array(clouds).astype(np.int16)
    for shape in scene.shapes:
        inside, top, left = coverage(shape.outline(), size, size)
        part = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
        part += (np.array(shape.colour) - part) * inside[:, :, None].astype(np.int32) // 255
    grain = np.frombuffer(draw.bytes(pixels.size), dtype=np.uint8).reshape(pixels.shape)
    painted: NDArray[np.uint8] = np.clip(pixels + (grain >> 4) - 8, 0, 255).astype(np.uint8)
    return painted
