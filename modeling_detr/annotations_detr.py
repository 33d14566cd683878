"""COCO annotations to labels, for `DetrTorchvisionImageProcessor.preprocess`.

Shapes: N objects of one image · H, W pixels.
Boxes: `boxes_xyxy` are corners in pixels, `boxes_cxcywh` centre and size relative to the **unpadded** image. Sizes are
`(height, width)`.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from .coco_masks_detr import decode_coco_mask
from .image_reading_detr import open_image


class CocoObject(TypedDict):
    """One object: `bbox` is [x, y, width, height] in pixels of the original image; `segmentation` is a list of
    polygons or a run-length encoding."""

    bbox: Sequence[float]
    category_id: int
    area: NotRequired[float]
    iscrowd: NotRequired[int]
    segmentation: NotRequired[object]
    id: NotRequired[int]


class CocoAnnotation(TypedDict):
    """The objects of one image."""

    annotations: Sequence[CocoObject]
    image_id: NotRequired[int]


class CocoSegment(TypedDict):
    """One segment of a panoptic annotation: `id` is the value of its pixels in the PNG file."""

    id: int
    category_id: int
    area: NotRequired[float]
    iscrowd: NotRequired[int]


class CocoPanopticAnnotation(TypedDict):
    """The segments of one image; `file_name` is a PNG file in the folder `masks_path`."""

    file_name: str
    segments_info: Sequence[CocoSegment]
    image_id: NotRequired[int]


def coco_to_labels(
    annotations: CocoAnnotation | CocoPanopticAnnotation | Sequence[CocoAnnotation | CocoPanopticAnnotation],
    originals: Sequence[Tensor],
    resized: Sequence[Tensor],
    with_masks: bool,
    masks_path: str | Path | None = None,
) -> list[dict[str, Tensor]]:
    """Converts the COCO annotations of several images to the labels that the loss expects.

    Args:
        annotations: One dict per image; the dict itself for a single image.
        originals: The images (3, H, W) that they refer to.
        resized: The same images after resizing, unpadded.
        with_masks: Convert each object's `segmentation` to `masks`.
        masks_path: The folder with the PNG files of panoptic annotations.

    Returns:
        One dict per image; see `DetrTorchvisionImageProcessor.preprocess`.

    Raises:
        ValueError: An annotation is malformed, or there is not one per image.
    """
    if not isinstance(annotations, Iterable) or isinstance(annotations, str):
        raise ValueError(f"annotations: got {type(annotations).__name__}, expected one dict per image.")
    each: list[Any] = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(each) != len(originals):
        raise ValueError(f"annotations: got {len(each)} for {len(originals)} images, expected one dict per image.")
    if any(isinstance(annotation, Mapping) and "segments_info" in annotation for annotation in each):
        each = [
            _panoptic_objects(annotation, (before.shape[-2], before.shape[-1]), f"image {index}", masks_path)
            for index, (annotation, before) in enumerate(zip(each, originals, strict=True))
        ]
    return [
        _image_labels(
            annotation,
            (before.shape[-2], before.shape[-1]),
            (after.shape[-2], after.shape[-1]),
            f"image {index}",
            with_masks,
        )
        for index, (annotation, before, after) in enumerate(zip(each, originals, resized, strict=True))
    ]


def _panoptic_objects(
    annotation: Any, size: tuple[int, int], where: str, masks_path: str | Path | None
) -> CocoAnnotation:
    """Converts a panoptic annotation to objects, whose boxes enclose their pixels.

    Raises:
        ValueError: The annotation is malformed, or its file is missing, outside `masks_path`, or not of the image's
            size.
    """
    is_dict = isinstance(annotation, Mapping)
    segments = annotation.get("segments_info") if is_dict else None
    if (
        not isinstance(segments, Iterable)
        or not all(isinstance(segment, Mapping) and {"id", "category_id"} <= segment.keys() for segment in segments)
        or not isinstance(annotation.get("file_name"), str)
        or masks_path is None
    ):
        keys = f"has the keys {sorted(map(str, annotation))}" if is_dict else "is not a dict"
        raise ValueError(
            f"{where}: the annotation {keys}, expected {{'file_name': …, 'segments_info': [{{'id': …, 'category_id': "
            f"…}}, …]}}, and masks_path the folder with the PNG files; got {masks_path}."
        )
    segment_ids = _segment_ids(annotation["file_name"], Path(masks_path), where)
    if segment_ids.shape != size:
        raise ValueError(
            f"{where}: {annotation['file_name']} has {segment_ids.shape[1]}x{segment_ids.shape[0]} pixels, expected "
            f"{size[1]}x{size[0]} (width x height), as the image."
        )
    objects: list[CocoObject] = []
    for segment in segments:
        if not _is_integer(segment["id"]):
            raise ValueError(f"{where}: got the segment id {segment['id']!r}, expected an integer.")
        mask = segment_ids == segment["id"]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        bbox = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        objects.append(
            {
                "bbox": [float(side) for side in bbox],
                "category_id": segment["category_id"],
                "area": segment.get("area", float(mask.sum())),
                "iscrowd": segment.get("iscrowd", 0),
                "segmentation": mask,
            }
        )
    image_id: dict[str, Any] = {key: annotation[key] for key in ("image_id",) if key in annotation}
    return {"annotations": objects, **image_id}  # type: ignore[typeddict-item]


def _segment_ids(file_name: str, folder: Path, where: str) -> NDArray[np.int64]:
    """The segment id of every pixel (H, W) of a panoptic PNG: red + 256 green + 256² blue, or the grey value.

    Raises:
        ValueError: There is no such file in `folder`, or it is not a readable image.
    """
    try:
        path = folder / file_name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise ValueError("no such file")
        with open_image(path) as opened:
            if opened.mode in ("L", "I", "I;16"):
                return np.asarray(opened).astype(np.int64)
            colours = np.asarray(opened.convert("RGB")).astype(np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{where}: file_name {file_name[:200]!r}: {error} in {folder}.") from error
    ids: NDArray[np.int64] = colours @ np.array([1, 256, 256**2])
    return ids


def _image_labels(
    annotation: CocoAnnotation, size: tuple[int, int], new_size: tuple[int, int], where: str, with_masks: bool
) -> dict[str, Tensor]:
    """Converts the annotation of one image to the labels that the loss expects.

    Crowd regions are dropped; boxes are clipped to the image and dropped if no area remains, as in the original
    (datasets/coco.py, `ConvertCocoPolysToMask`).

    Args:
        annotation: The image's objects.
        size: Size of the image that they refer to.
        new_size: Its size after resizing, unpadded; `area` is scaled with it.
        where: The name of the image in error messages.
        with_masks: Convert each object's `segmentation` to `masks`.

    Raises:
        ValueError: The annotation is malformed.
    """
    objects = _checked_objects(annotation, where)
    height, width = size
    boxes_xywh = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float64).reshape(-1, 4)
    boxes_xyxy = box_convert(boxes_xywh, "xywh", "xyxy")
    boxes_xyxy[:, 0::2] = boxes_xyxy[:, 0::2].clamp(0, width)
    boxes_xyxy[:, 1::2] = boxes_xyxy[:, 1::2].clamp(0, height)
    keep = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(-1)
    boxes_cxcywh = box_convert(boxes_xyxy[keep], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
    areas = [entry["area"] for entry in objects]
    scale = (new_size[0] / height) * (new_size[1] / width)
    labels = {
        "class_labels": torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)[keep],
        "boxes": boxes_cxcywh.to(torch.float32),
        "area": (torch.tensor(areas, dtype=torch.float64)[keep] * scale).to(torch.float32),
        "orig_size": torch.tensor(size),
        "size": torch.tensor(new_size),
    }
    if with_masks:
        kept = [entry for entry, is_kept in zip(objects, keep.tolist(), strict=True) if is_kept]
        masks = np.array([_coco_mask(entry, size, where) for entry in kept], dtype=np.uint8).reshape(-1, 1, *size)
        labels["masks"] = F.interpolate(torch.from_numpy(masks), size=new_size, mode="nearest")[:, 0].bool()
    if "image_id" in annotation:
        labels["image_id"] = torch.tensor([operator.index(annotation["image_id"])])
    return labels


def _checked_objects(annotation: CocoAnnotation, where: str) -> list[CocoObject]:
    """The objects of an image without crowd regions.

    Raises:
        ValueError: The annotation is malformed.
    """
    if not isinstance(annotation, Mapping) or "annotations" not in annotation:
        problem = f"has the keys {sorted(annotation)}" if isinstance(annotation, Mapping) else "is not a dict"
        raise ValueError(
            f"{where}: the annotation {problem}, expected {{'image_id': …, 'annotations': [{{'bbox': [x, y, width, "
            f"height], 'category_id': …}}, …]}}."
        )
    if "image_id" in annotation and not (
        _is_integer(annotation["image_id"]) and -(2**63) <= operator.index(annotation["image_id"]) < 2**63
    ):
        raise ValueError(f"{where}: got image_id {annotation['image_id']!r}, expected an integer, or no image_id.")
    entries = annotation["annotations"]
    if isinstance(entries, Mapping | str) or hasattr(entries, "columns") or not isinstance(entries, Iterable):
        raise ValueError(
            f"{where}: 'annotations' is {type(entries).__name__}, expected a list with one dict per object."
        )
    return [
        _checked_object(entry, f"{where}: annotation {index}")
        for index, entry in enumerate(entries)
        if not (isinstance(entry, Mapping) and entry.get("iscrowd", 0))
    ]


def _checked_object(entry: CocoObject, where: str) -> CocoObject:
    """An object with a box of four floats and an integer `category_id`.

    Raises:
        ValueError: The annotation is malformed.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {type(entry).__name__}, expected {{'bbox': …, 'category_id': …}}.")
    missing = [key for key in ("bbox", "category_id") if key not in entry]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}; got {sorted(entry)}.")
    try:
        bbox = [float(number) for number in entry["bbox"]]
    except (TypeError, ValueError):
        bbox = []
    if len(bbox) != 4 or not all(math.isfinite(number) for number in bbox):
        raise ValueError(
            f"{where} has bbox {entry['bbox']}, expected four finite numbers [x, y, width, height] in pixels."
        )
    label: Any = entry["category_id"]
    if isinstance(label, float) and label.is_integer():  # pandas' columns with missing values
        label = int(label)
    if not _is_integer(label):
        raise ValueError(f"{where} has category_id {label!r}, expected an integer, the label of its class.")
    if not -(2**63) <= operator.index(label) < 2**63:
        raise ValueError(f"{where} has category_id {label}, expected the label of a class.")
    return {**entry, "bbox": bbox, "category_id": operator.index(label), "area": _area(entry, bbox, where)}


def _area(entry: CocoObject, bbox: Sequence[float], where: str) -> float:
    """The object's area, or that of its box if it has none.

    Raises:
        ValueError: It is no finite number.
    """
    area: Any = entry.get("area")
    try:
        number = bbox[2] * bbox[3] if area is None else float(area)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} has area {area!r}, expected a finite number, or no area.")
    return number


def _is_integer(value: object) -> bool:
    """Whether a value is an integer of Python, NumPy or PyTorch."""
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _coco_mask(entry: CocoObject, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """Decodes the `segmentation` of an object to a mask (H, W): polygons or RLE, compressed or not."""
    segmentation: Any = entry.get("segmentation")
    if isinstance(segmentation, np.ndarray) and segmentation.shape == size:
        return segmentation.astype(np.uint8)
    try:
        return decode_coco_mask(segmentation, *size)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(
            f"{where}: the segmentation of annotation {entry.get('id', entry['bbox'])} cannot be read ({error}); "
            f"expected polygons [[x, y, x, y, …], …] or run-length encoding {{size: [height, width], counts: …}}."
        ) from error
