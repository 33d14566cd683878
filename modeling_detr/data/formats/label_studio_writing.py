"""Write a dataset as tasks of Label Studio: JSON files to import, and images to serve as local files.

Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to
the folder; its labelling interface needs the controls `label` (RectangleLabels) and `polygon` (PolygonLabels).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.dataset_format import WrittenDataset
from modeling_detr.data.format_limits import note_moved_boxes, note_several_splits, refuse_shared_names, warn_of_stuff
from modeling_detr.data.formats.json_lists import write_list
from modeling_detr.data.image_copies import ImageCopies
from modeling_detr.data.mask_outlines import Outline, object_outlines
from modeling_detr.structures_detr import DetectionIndex


CARRIES = frozenset(["masks"])
HOLDS = "a class and a box or a polygon"


def write_label_studio(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    """Write a dataset into `folder`; see `DatasetFormat`."""
    refuse_shared_names(index, "label_studio")
    copies = ImageCopies(index, folder, lambda split: f"images/{split}", link)
    boxes = index.annotations.boxes_xyxy.copy()
    for split in dict.fromkeys(copies.home):
        members = [image for image, home in enumerate(copies.home) if home == split]
        with (folder / f"{split}.json").open("w", encoding="utf-8") as file:
            write_list(file, (_task(index, image, copies, boxes) for image in members))
    notes = warn_of_stuff(index) + note_several_splits(index, "label_studio")
    notes += note_moved_boxes(index, boxes, "label_studio")
    used = set(np.unique(index.annotations.label).tolist())
    unused = [category.name for label, category in enumerate(index.categories) if label not in used]
    if unused:
        notes.append(f"label_studio has no list of classes: classes without an object are lost ({', '.join(unused)}).")
    written = replace(index, annotations=replace(index.annotations, boxes_xyxy=boxes))
    return WrittenDataset(written, copies.files, notes + copies.notes, keeps_splits=False)


def _task(index: DetectionIndex, image: int, copies: ImageCopies, boxes: NDArray[np.float64]) -> dict[str, object]:
    """The task of an image; `boxes` gets those around polygons, which have no other."""
    record, rows, table = index.images[image], index.annotation_rows(image), index.annotations
    outlines, _ = object_outlines(index, image)
    results = []
    for row, outline in zip(range(rows.start, rows.stop), outlines, strict=True):
        if outline is not None:
            boxes[row] = *outline.min(0), *outline.max(0)
        name = index.categories[int(table.label[row])].name
        shape = _shape(boxes[row], outline, np.array([record.width, record.height]), name)
        size = {"original_width": record.width, "original_height": record.height, "image_rotation": 0}
        results.append({"id": f"object{row}", "to_name": "image", **shape, **size})
    address = f"/data/local-files/?d={quote(copies.files[image])}"
    return {"id": image + 1, "data": {"image": address}, "annotations": [{"id": image + 1, "result": results}]}


def _shape(box: NDArray[np.float64], outline: Outline | None, size: NDArray[np.int64], name: str) -> dict[str, Any]:
    if outline is not None:
        value = {"points": (100 * outline / size).tolist(), "polygonlabels": [name], "closed": True}
        return {"type": "polygonlabels", "from_name": "polygon", "value": value}
    (x, y), (width, height) = (100 * box[:2] / size).tolist(), (100 * (box[2:] - box[:2]) / size).tolist()
    sides = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    return {"type": "rectanglelabels", "from_name": "label", "value": {**sides, "rectanglelabels": [name]}}
