"""Suspected labels as a list, as pictures, and as a COCO file to correct in an annotation tool."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.suspected_labels import SuspectedLabel
from modeling_detr.atomic_output import replace_text
from modeling_detr.data import read_image
from modeling_detr.data.image_numbers import number_images
from modeling_detr.pages import Block, Figure, Figures, Section, Table, Text
from modeling_detr.structures_detr import ImageRecord
from modeling_detr.visualization import draw_prediction, tile


SUSPECTED_LABELS = "suspected_labels.json"
_MOST_ROWS = 200
_LONGEST_SIDE = 480


def suspected_section(evidence: Evidence, suspected: Sequence[SuspectedLabel], num_pictures: int) -> list[Section]:
    """The list and the pictures of the most certain ones."""
    if not suspected:
        return []
    names = evidence.class_names
    rows = [
        (
            evidence.image_names[one.image_index],
            one.suspicion,
            names[evidence.scoring.truth.labels[one.annotation]] if one.annotation >= 0 else "-",
            names[one.label] if one.detection >= 0 else "-",
            round(one.certainty, 3),
        )
        for one in suspected[:_MOST_ROWS]
    ]
    left_out = f" The table shows the first {_MOST_ROWS}." if len(suspected) > _MOST_ROWS else ""
    note = (
        f"Labels that the model doubts, the most certain first: {len(suspected):,} in all, listed in "
        f"{SUSPECTED_LABELS}.{left_out} Look at each before you change it. A model that was trained on these images "
        "has learned some of their faults, and finds fewer."
    )
    blocks: list[Block] = [Text(note)]
    figures = [_figure(evidence, one) for one in suspected[:num_pictures]]
    if figures:
        blocks.append(Figures(figures, "wide"))
    table = Table(("image", "suspicion", "annotated", "detected", "certainty"), rows)
    return [Section("Suspected labels", [*blocks, Section("List", [table], folded=bool(figures))])]


def _figure(evidence: Evidence, one: SuspectedLabel) -> Figure:
    """The image with what the model sees there, and with all annotations, the doubtful one dashed."""
    record, names = evidence.index.images[one.image_index], evidence.class_names
    image = read_image(record)
    halves = [
        draw_prediction(image, part, dict(enumerate(names)), longest_side=_LONGEST_SIDE)
        for part in (_detected(evidence, one), _annotated(evidence, one))
    ]
    annotated = names[evidence.scoring.truth.labels[one.annotation]] if one.annotation >= 0 else None
    classes = [name for name in (annotated, names[one.label]) if name is not None]
    picture = tile(halves, columns=2, titles=["detected", f"annotated ({one.suspicion})"])
    return Figure.of(
        picture,
        f"{evidence.image_names[one.image_index]}: {one.suspicion}",
        longest_side=2 * _LONGEST_SIDE,
        tags={"suspicion": [one.suspicion], "class": [*dict.fromkeys(classes)]},
    )


def _detected(evidence: Evidence, one: SuspectedLabel) -> dict[str, object]:
    if one.detection < 0:
        return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    score = evidence.scoring.detections.scores[one.detection]
    return {
        "boxes": torch.tensor([one.box_xyxy]),
        "labels": torch.tensor([one.label]),
        "scores": torch.tensor([score]),
    }


def _annotated(evidence: Evidence, one: SuspectedLabel) -> dict[str, object]:
    table = evidence.index.annotations
    rows = np.arange(len(table))[evidence.index.annotation_rows(one.image_index)]
    return {
        "boxes": torch.from_numpy(table.boxes_xyxy[rows]),
        "labels": torch.from_numpy(table.label[rows]),
        "is_match": torch.from_numpy(rows != one.annotation),
    }


def save_suspected(
    evidence: Evidence, suspected: Sequence[SuspectedLabel], folder: Path, category_ids: Collection[int]
) -> Path:
    """Writes the images with suspected labels as a COCO file, with their annotations and what the model suggests.

    An annotation has the fields `suspicion` and `certainty` if it is doubted, and `suggested_bbox` and
    `suggested_category_id` if the model sees something else there. Objects that are not annotated are added, with
    `suspicion` and without other marks: open the file in an annotation tool and keep what is right. Images have the
    dataset's ids, or numbers from 1 if those are not unique.

    Args:
        evidence: What was detected.
        suspected: The suspected labels.
        folder: Where to write `suspected_labels.json`.
        category_ids: Categories of the dataset; suggestions of other classes are left out.

    Raises:
        OutputError: It cannot be written.
    """
    index, table = evidence.index, evidence.index.annotations
    # The splits of a dataset may use the same ids; in one file they would be those of other images.
    records = number_images(index.images, [np.arange(len(index), dtype=np.int64)])
    doubts = {one.annotation: one for one in suspected if one.annotation >= 0}
    image_indices = sorted({one.image_index for one in suspected})
    annotations: list[dict[str, Any]] = []
    for image_index in image_indices:
        for row in range(len(table))[index.annotation_rows(image_index)]:
            category_id = index.categories[int(table.label[row])].id
            entry = _annotation(records[image_index], category_id, table.boxes_xyxy[row].tolist())
            entry["iscrowd"], entry["area"] = int(table.is_crowd[row]), float(table.area[row])
            if row in doubts:
                entry |= _doubt(evidence, doubts[row], category_ids)
            annotations.append(entry)
    for one in suspected:
        category_id, record = index.categories[one.label].id, records[one.image_index]
        if one.annotation < 0 and category_id in category_ids:
            entry = _annotation(record, category_id, _inside(one.box_xyxy, record))
            annotations.append({**entry, "suspicion": one.suspicion, "certainty": round(one.certainty, 4)})
    content = {
        "images": [
            {
                "id": records[number].coco_id,
                "file_name": evidence.image_names[number],
                "height": records[number].height,
                "width": records[number].width,
            }
            for number in image_indices
        ],
        "categories": [
            {"id": category.id, "name": category.name} for category in index.categories if category.id in category_ids
        ],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
    }
    replace_text(folder / SUSPECTED_LABELS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return folder / SUSPECTED_LABELS


def _annotation(record: ImageRecord, category_id: int, box_xyxy: Sequence[float]) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(value), 2) for value in box_xyxy)
    width, height = round(x1 - x0, 2), round(y1 - y0, 2)
    return {
        "image_id": record.coco_id,
        "category_id": category_id,
        "bbox": [x0, y0, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
    }


def _inside(box_xyxy: Sequence[float], record: ImageRecord) -> list[float]:
    """The part of a detected box that is inside the image: annotation tools refuse or move the rest."""
    limits = (record.width, record.height, record.width, record.height)
    return [min(max(value, 0.0), float(limit)) for value, limit in zip(box_xyxy, limits, strict=True)]


def _doubt(evidence: Evidence, one: SuspectedLabel, category_ids: Collection[int]) -> dict[str, Any]:
    marks: dict[str, Any] = {"suspicion": one.suspicion, "certainty": round(one.certainty, 4)}
    category_id, record = evidence.index.categories[one.label].id, evidence.index.images[one.image_index]
    if one.detection >= 0 and category_id in category_ids:
        suggested = _annotation(record, category_id, _inside(one.box_xyxy, record))
        marks |= {"suggested_category_id": category_id, "suggested_bbox": suggested["bbox"]}
    return marks
