"""The dataset formats, one file each. To add one, define a `DatasetFormat` and add a line to `FORMATS`.

A plug-in adds its own: `FORMATS["mine"] = DatasetFormat(name="mine", …)`.
"""

from modeling_detr.data.dataset_format import DatasetFormat, ReadingOption
from modeling_detr.data.formats import (
    coco,
    coco_panoptic,
    cvat,
    datumaro,
    hf,
    kitti,
    label_studio,
    labelme,
    open_images,
    parquet,
    shapes,
    supervisely,
    via,
    voc,
    yolo,
)


FORMATS: dict[str, DatasetFormat] = {
    "coco": coco.FORMAT,
    "coco_panoptic": coco_panoptic.FORMAT,
    "yolo": yolo.FORMAT,
    "voc": voc.FORMAT,
    "hf": hf.FORMAT,
    "parquet": parquet.FORMAT,
    "labelme": labelme.FORMAT,
    "cvat": cvat.FORMAT,
    "label_studio": label_studio.FORMAT,
    "kitti": kitti.FORMAT,
    "via": via.FORMAT,
    "open_images": open_images.FORMAT,
    "datumaro": datumaro.FORMAT,
    "supervisely": supervisely.FORMAT,
    "shapes": shapes.FORMAT,
}


def reading_options() -> dict[str, ReadingOption]:
    """Return the reading options of all formats, by name."""
    return {option.name: option for entry in FORMATS.values() for option in entry.options}


def writable_formats() -> list[str]:
    """Return the names of the formats that can be written."""
    return [name for name, entry in FORMATS.items() if entry.write is not None]
