"""Draw the built-in dataset: circles, squares, triangles and stars on textured ground. Nothing is stored on disk.

An image is determined by (seed, split, index, size). Its scene is drawn when the dataset is opened, and once more when
`render` needs the pixels. Training and validation images use different streams of random numbers. The geometry is
defined in one place, `Shape.outline`: boxes are its extent, and pixels and masks come from `coverage`.

An image has a virtual path, `shapes?size=128&seed=0/train/000017.png`, which `render` draws. With
`classes=circle,square`, only those are drawn, and they are the dataset's classes in that order. With `side=0.12,0.38`,
shapes have sides of 12 to 38 % of the image's. With `panoptic=true`, the ground is a stuff class.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from modeling_detr.errors_detr import DatasetError, did_you_mean


KINDS = ("circle", "square", "triangle", "star")
SHARE_OF_SIDE = (0.18, 0.45)  # smallest and largest side of a shape, relative to the image's
SMALLEST_SIDE = 0.02  # that an option may ask for
MOST_OBJECTS = 5
MOST_COVER = 0.2  # largest overlap, as a share of the smaller of two boxes, so that no shape is hidden
LEAST_CONTRAST = 90  # between a shape and the ground, in the channel that differs most
_OVERSAMPLING = 4  # subpixels per side of a pixel, for smooth edges
_TRIES = 40
_SPLIT_STREAM = {"train": 1, "val": 2}
_PREFIX = "shapes?"
GROUND = -1  # in place of the index of a shape: the rest of the image

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ShapesOptions:
    """The options in `shapes?size=…&train=…&val=…&seed=…&classes=…&side=…&panoptic=…`.

    Attributes:
        size: Side of an image in pixels.
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of all random numbers.
        classes: The kinds of shapes, a subset of `KINDS`; the label of a kind is its index here.
        side: Smallest and largest side of a shape, relative to the image's.
        panoptic: Whether the ground (the rest of the image) is a class too: the last one, and stuff.
    """

    size: int = 128
    train: int = 8000
    val: int = 400
    seed: int = 0
    classes: tuple[str, ...] = KINDS
    side: tuple[float, float] = SHARE_OF_SIDE
    panoptic: bool = False

    @property
    def kinds(self) -> tuple[int, ...]:
        """Indices of the classes in `KINDS`."""
        return tuple(KINDS.index(name) for name in self.classes)

    def prefix(self) -> str:
        """The start of an image's virtual path: the options that determine its pixels."""
        chosen = "" if self.classes == KINDS else f"&classes={','.join(self.classes)}"
        sides = "" if self.side == SHARE_OF_SIDE else f"&side={self.side[0]:g},{self.side[1]:g}"
        return f"{_PREFIX}size={self.size}&seed={self.seed}{chosen}{sides}"


@dataclass(frozen=True, slots=True)
class Shape:
    """One object: its kind (an index into `KINDS`), corner and side of its square box in pixels, and its colour."""

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
        """The corners (K, 2) of the shape's polygon: x and y in pixels."""
        return _unit_outlines()[self.kind] * self.side + (self.x, self.y)


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image: the colour of the ground, and the shapes from bottom to top."""

    ground: Colour
    shapes: tuple[Shape, ...]


# Names and options


def is_shapes(path: str | Path) -> bool:
    """Whether `path` names this dataset. (A folder with this name can be opened as `./shapes`.)"""
    return str(path) == "shapes" or str(path).startswith(_PREFIX)


def parse_options(path: str) -> ShapesOptions:
    """Parse the options in the name of a dataset.

    Raises:
        DatasetError: An option is unknown or has an invalid value.
    """
    values: dict[str, Any] = {}
    known = list(ShapesOptions.__dataclass_fields__)
    for key, text in parse_qsl(path.removeprefix("shapes").removeprefix("?"), keep_blank_values=True):
        if key not in known:
            raise DatasetError(f"'{path}'", f"unknown option '{key}'", did_you_mean(key, known))
        if key == "classes":
            values[key] = _parse_classes(path, text)
            continue
        if key == "side":
            values[key] = _parse_side(path, text)
            continue
        if key == "panoptic":
            if text not in ("true", "false"):
                raise DatasetError(f"'{path}'", f"panoptic: got '{text}', expected true or false")
            values[key] = text == "true"
            continue
        least = {"size": 16, "train": 0, "val": 0, "seed": 0}[key]
        if not text.isdecimal() or int(text) < least:
            raise DatasetError(f"'{path}'", f"{key}: got '{text}', expected an integer of at least {least}")
        values[key] = int(text)
    return ShapesOptions(**values)


def _parse_classes(path: str, text: str) -> tuple[str, ...]:
    classes = tuple(text.split(","))
    for name in classes:
        if name not in KINDS:
            raise DatasetError(f"'{path}'", f"unknown shape '{name}'", did_you_mean(name, KINDS))
    if len(set(classes)) < len(classes):
        raise DatasetError(f"'{path}'", f"classes: got '{text}', expected each shape once")
    return classes


def _parse_side(path: str, text: str) -> tuple[float, float]:
    try:
        least, most = map(float, text.split(","))
    except ValueError:
        least, most = math.nan, math.nan
    if not SMALLEST_SIDE <= least <= most <= 1:
        problem = f"side: got '{text}', expected the smallest and the largest side as shares of the image's"
        raise DatasetError(f"'{path}'", problem, f"use two numbers from {SMALLEST_SIDE} to 1, such as side=0.12,0.38")
    return least, most


# Scenes


def draw_scene(
    size: int,
    seed: int,
    split: str,
    index: int,
    kinds: Sequence[int] = tuple(range(len(KINDS))),
    side: tuple[float, float] = SHARE_OF_SIDE,
) -> Scene:
    """Draw the content of an image, which is the same in every call.

    Args:
        size: Side of the image in pixels.
        seed: Seed of the dataset.
        split: `train` or `val`.
        index: Index of the image in its split.
        kinds: The kinds to draw, as indices into `KINDS`.
        side: Smallest and largest side of a shape, relative to the image's.
    """
    draw = _stream(seed, split, index)
    ground: Colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
    shapes: list[Shape] = []
    for _ in range(draw.randint(1, MOST_OBJECTS)):
        for _ in range(_TRIES):
            length = draw.uniform(*side) * size
            x, y = draw.uniform(0, size - length), draw.uniform(0, size - length)
            if all(_cover(x, y, length, other) <= MOST_COVER for other in shapes):
                shapes.append(Shape(kinds[draw.randrange(len(kinds))], x, y, length, _contrasting(draw, ground)))
                break
    return Scene(ground, tuple(shapes))


def _stream(seed: int, split: str, index: int) -> random.Random:
    return random.Random(seed << 48 | _SPLIT_STREAM[split] << 40 | index)


def _cover(x: float, y: float, side: float, other: Shape) -> float:
    """The overlap of two boxes, as a share of the area of the smaller one."""
    width = min(x + side, other.x + other.side) - max(x, other.x)
    height = min(y + side, other.y + other.side) - max(y, other.y)
    return max(width, 0.0) * max(height, 0.0) / min(side, other.side) ** 2


def _contrasting(draw: random.Random, ground: Colour) -> Colour:
    while True:
        colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
        if max(abs(one - other) for one, other in zip(colour, ground, strict=True)) >= LEAST_CONTRAST:
            return colour


@lru_cache
def _unit_outlines() -> tuple[NDArray[np.float64], ...]:
    """The polygon of each kind, scaled to touch all sides of the unit square."""
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
    """Compute how much of each pixel is inside an outline, 0…255, for the part of the image that it touches.

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
    # Pillow's polygon includes its border; shifting it by half a subpixel corrects this.
    corners = (outline - (left, top)) * _OVERSAMPLING - 0.5
    ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING)), top, left


def render(path: str) -> NDArray[np.uint8]:
    """Draw the image of a virtual path: pixels (H, W, 3) uint8 RGB.

    Raises:
        DatasetError: `path` is not a path of this dataset.
    """
    options, scene, stream = parse_image_path(path)
    return _paint(scene, options.size, np.random.default_rng(stream))


def parse_image_path(path: str) -> tuple[ShapesOptions, Scene, list[int]]:
    """Parse a virtual path: the options, the content of the image, and the seed of its texture; see `render`."""
    try:
        options_text, split, name = path.rsplit("/", 2)
        options, index = parse_options(options_text), int(name.removesuffix(".png"))
        scene = draw_scene(options.size, options.seed, split, index, options.kinds, options.side)
    except (KeyError, ValueError) as error:
        raise DatasetError(f"'{path}'", f"not an image of the built-in shapes ({error})") from error
    return options, scene, [options.seed, _SPLIT_STREAM[split], index]


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
