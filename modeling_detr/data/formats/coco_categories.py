"""Drop the categories of a COCO dataset that are not classes.

Exports may list more categories than are annotated: Roboflow adds one with id 0 as the supercategory of all others,
often with the name of one of them. As a class, it would take up a label that is never trained.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings, first_items
from modeling_detr.structures_detr import AnnotationTable, Category


def drop_placeholder_categories(
    categories: Sequence[Category],
    supercategories: Sequence[str | None],
    annotations: AnnotationTable,
    findings: Findings,
) -> tuple[tuple[Category, ...], AnnotationTable]:
    """Drop categories without boxes that are not classes, and make the labels dense again.

    Args:
        categories: All categories that the files list; labels are indices into it.
        supercategories: The supercategory of each, None where its entry has none.
        annotations: The objects of the whole dataset.
        findings: Reports dropped categories, and classes without a box.

    Returns:
        The remaining categories, and the annotations with the new labels.

    Raises:
        DatasetError: Two categories with the same name both have boxes.
    """
    boxes = np.bincount(annotations.label, minlength=len(categories)).astype(np.int64)
    keep = np.ones(len(categories), np.bool_)
    _drop_namesakes(categories, boxes, keep, findings)
    _drop_common_supercategory(categories, supercategories, boxes, keep, findings)
    empty = [
        f"'{category.name}'"
        for category, kept, count in zip(categories, keep, boxes, strict=True)
        if kept and not count
    ]
    if empty and len(annotations):
        findings.warn(
            "class without a box",
            f"class {empty[0]} has no box; remove it from 'categories' if it is not needed."
            if len(empty) == 1
            else f"{len(empty)} classes have no box: {first_items(empty, 10)}; remove them from 'categories' if they "
            f"are not needed.",
            "it keeps its label; remove it from 'categories' if it is not needed",
            ((f"class {name}", "has no box") for name in empty),
        )
    if keep.all():
        return tuple(categories), annotations
    new_label = np.cumsum(keep) - 1
    table = replace(annotations, label=new_label[annotations.label].astype(np.int64))
    return tuple(category for category, kept in zip(categories, keep, strict=True) if kept), table


def _drop_namesakes(
    categories: Sequence[Category], boxes: NDArray[np.int64], keep: NDArray[np.bool_], findings: Findings
) -> None:
    labels_of: dict[str, list[int]] = defaultdict(list)
    for label, category in enumerate(categories):
        labels_of[category.name].append(label)
    for name, labels in labels_of.items():
        used = [label for label in labels if boxes[label]]
        if len(used) > 1:
            first, second = used[:2]
            findings.error(
                "category",
                f"categories {categories[first].id} and {categories[second].id}",
                f"both are named '{name}' and both have boxes ({boxes[first]} and {boxes[second]})",
                "rename one of them in 'categories', or give all boxes the same category_id",
            )
            continue
        kept = used[0] if used else labels[-1]  # Roboflow's supercategory comes first
        for label in labels:
            if label != kept:
                keep[label] = False
                message = f"has no box and the same name as category {categories[kept].id}"
                _warn_of_dropped(categories[label], message, findings)


def _drop_common_supercategory(
    categories: Sequence[Category],
    supercategories: Sequence[str | None],
    boxes: NDArray[np.int64],
    keep: NDArray[np.bool_],
    findings: Findings,
) -> None:
    for label, category in enumerate(categories):
        if category.id != 0 or not keep[label] or boxes[label]:
            continue
        others = {name for other, name in enumerate(supercategories) if other != label}
        if others == {category.name}:
            keep[label] = False
            _warn_of_dropped(category, "has no box and is the supercategory of all others", findings)


def _warn_of_dropped(category: Category, message: str, findings: Findings) -> None:
    where = f"category {category.id} '{category.name}'"
    findings.warn("category", f"{where} {message}; it is left out.", "it is left out", [(where, message)])
