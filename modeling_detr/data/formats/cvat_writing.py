"""Write a dataset as CVAT's XML for images: upload the images to a task, then the XML as "CVAT for images 1.1"."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from modeling_detr.coco_masks_detr import decode_coco_mask
from modeling_detr.data.dataset_format import WrittenDataset
from modeling_detr.data.format_limits import (
    note_moved_boxes,
    note_several_splits,
    refuse_names_outside_xml,
    refuse_shared_names,
    warn_of_stuff,
)
from modeling_detr.data.image_copies import UNLISTED, ImageCopies
from modeling_detr.data.mask_outlines import is_one_polygon
from modeling_detr.data.masks import Segmentation, segmentations
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex


CARRIES = frozenset(["masks", "occluded"])
HOLDS = "a class, a box, a polygon or a mask, and the mark occluded"


def write_cvat(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    """Write a dataset into `folder`; see `DatasetFormat`."""
    refuse_shared_names(index, "cvat")
    refuse_names_outside_xml(index, "cvat")
    copies = ImageCopies(index, folder, lambda split: "images" if split == UNSPLIT else f"images/{split}", link)
    boxes = index.annotations.boxes_xyxy.copy()
    labels = "".join(f"<label><name>{escape(category.name)}</name></label>" for category in index.categories)
    with (folder / "annotations.xml").open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(f"<meta><task><labels>{labels}</labels></task></meta>\n")
        for image in range(len(index)):
            file.write(_to_xml(index, image, copies, boxes))
        file.write("</annotations>\n")
    notes = warn_of_stuff(index) + note_several_splits(index, "cvat") + note_moved_boxes(index, boxes, "cvat")
    written = replace(index, annotations=replace(index.annotations, boxes_xyxy=boxes))
    return WrittenDataset(written, copies.files, notes + copies.notes, keeps_splits=False, exact_masks=True)


def _to_xml(index: DetectionIndex, image: int, copies: ImageCopies, boxes: NDArray[np.float64]) -> str:
    """Write an image with its objects; `boxes` gets those around polygons and masks, which have no other."""
    record, rows, table = index.images[image], index.annotation_rows(image), index.annotations
    home, name = copies.home[image], Path(copies.files[image]).relative_to("images").as_posix()
    subset = "" if home in (UNSPLIT, UNLISTED) else f" subset={quoteattr(home)}"
    size = record.height, record.width
    masks = [None] * len(table.label[rows]) if table.masks is None else segmentations(table.masks[rows], *size)
    occluded = table.attributes.get("occluded")
    shapes = ""
    for row, mask in zip(range(rows.start, rows.stop), masks, strict=True):
        label = quoteattr(index.categories[int(table.label[row])].name)
        mark = int(occluded is not None and occluded[row] > 0)
        tag, written, boxes[row] = _shape(boxes[row].tolist(), mask, *size)
        shapes += f'<{tag} label={label} source="manual" occluded="{mark}" {written} z_order="0"/>\n'
    return (
        f'<image id="{image}" name={quoteattr(name)}{subset} width="{record.width}" height="{record.height}">\n'
        f"{shapes}</image>\n"
    )


def _shape(
    box: Sequence[float], mask: Segmentation | None, height: int, width: int
) -> tuple[str, str, Sequence[float]]:
    """The element of an object, its attributes, and the box that it is read back with."""
    if mask is None:
        keys = ("xtl", "ytl", "xbr", "ybr")
        return "box", " ".join(f'{key}="{side!r}"' for key, side in zip(keys, box, strict=True)), box
    if isinstance(mask, list) and is_one_polygon(mask, height, width):
        points = np.array(mask[0]).reshape(-1, 2)
        text = ";".join(f"{x!r},{y!r}" for x, y in points.tolist())
        return "polygon", f'points="{text}"', [*points.min(0).tolist(), *points.max(0).tolist()]
    inside = decode_coco_mask(mask, height, width).astype(np.bool_)
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(ys):
        return _shape(box, None, height, width)
    left, top, right, bottom = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    flat = inside[top:bottom, left:right].ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))  # runs along the rows, outside first
    runs = ", ".join(map(str, np.diff(changes, prepend=0).tolist()))
    sides = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
    return "mask", f'rle="{runs}" {sides}', [left, top, right, bottom]
