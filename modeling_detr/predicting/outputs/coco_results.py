"""Predictions in the format in which COCO's tools take results."""

import json
from collections.abc import Iterator
from typing import Any

from modeling_detr.atomic_output import replace_text, replaced_file
from modeling_detr.predicting.journal import Entry
from modeling_detr.predicting.outputs.output import Entries, Output, OutputRun


class CocoResults(Output):
    """`coco_results.json`, and what its ids mean: `coco_images.json`, a COCO file without annotations.

    Images of a dataset keep its ids, and classes whose name occurs in it as well; objects of other classes are left
    out if any class does. Other images are numbered from 1, and the id of a class is its label.
    """

    files = ("coco_results.json", "coco_images.json")

    def __init__(self, run: OutputRun) -> None:
        super().__init__(run)
        self._image_ids: dict[str, int | str] = {}
        self._categories = dict(run.class_names)
        self._category_ids = {label: label for label in run.class_names}
        if run.dataset is not None:
            self._image_ids = {record.path: record.coco_id for record in run.dataset.images}
            ids = {category.name: category.id for category in run.dataset.categories}
            shared = {label: ids[name] for label, name in run.class_names.items() if name in ids}
            if shared:
                self._category_ids = shared
                self._categories = {category.id: category.name for category in run.dataset.categories}

    def finish(self, entries: Entries) -> None:
        """Writes both files."""
        results, images = (self.run.folder / name for name in self.files)
        with replaced_file(results) as file, file.open("w", encoding="utf-8") as text:
            separator = "["
            for number, entry in enumerate(entries(), start=1):
                for row in self._rows(entry, number):
                    text.write(f"{separator}\n{json.dumps(row)}")
                    separator = ","
            text.write("[]\n" if separator == "[" else "\n]\n")
        listed = [
            {
                "id": self._image_ids.get(entry["image"], number),
                "file_name": entry["image"],
                "height": entry["height"],
                "width": entry["width"],
            }
            for number, entry in enumerate(entries(), start=1)
        ]
        categories = [{"id": category, "name": name} for category, name in self._categories.items()]
        replace_text(images, json.dumps({"images": listed, "categories": categories}, ensure_ascii=False) + "\n")

    def _rows(self, entry: Entry, number: int) -> Iterator[dict[str, Any]]:
        for found in entry["detections"]:
            if found["label"] in self._category_ids:
                x0, y0, x1, y1 = found["box_xyxy"]
                mask = {"segmentation": found["segmentation"]} if "segmentation" in found else {}
                yield {
                    "image_id": self._image_ids.get(entry["image"], number),
                    "category_id": self._category_ids[found["label"]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    **mask,
                    "score": found["score"],
                }
