"""Which categories of a COCO dataset are classes, and which only stand in its list.

Exports list more than is annotated: Roboflow's gives id 0 to a supercategory of all others, often under the name of
one of them. As a class it would have a label of its own that nothing is ever trained on.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings
from modeling_detr.structures_detr import AnnotationTable, Category


def keep_meant_categories(
    categories: Sequence[Category],
    supercategories: Sequence[str | None],
    annotations: AnnotationTable,
    findings: Findings,
) -> tuple[tuple[Category, ...], AnnotationTable]:
    """Leaves out categories without boxes that are no class of their own, and makes the labels dense again.

    Args:
        categories: All that the files list; labels are positions in it.
        supercategories: What each of them belongs to, None where its entry does not say.
        annotations: The objects of the whole dataset.
        findings: Takes each category left out, and the classes without a box.

    Returns:
        The categories that stay, and the annotations with their labels.

    Raises:
        ValueError: Two categories of one name both have boxes.
    """
    boxes = np.bincount(annotations.label, minlength=len(categories)).astype(np.int64)
    keep = np.ones(len(categories), np.bool_)
    _leave_out_namesakes(categories, boxes, keep, findings)
    _leave_out_common_supercategory(categories, supercategories, boxes, keep, findings)
    empty = [
        f"'{category.name}'"
        for category, kept, number in zip(categories, keep, boxes, strict=True)
        if kept and not number
    ]
    if empty and len(annotations):
        shown = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
        findings.warn(
            "class without a box",
            f"class {shown} has no box; remove it from 'categories' if it is not meant."
            if len(empty) == 1
            else f"{len(empty)} classes have no box: {shown}; remove them from 'categories' if they are not meant.",
            "it keeps its label; remove it from 'categories' if it is not meant",
            ((f"class {name}", "has no box") for name in empty),
        )
    if keep.all():
        return tuple(categories), annotations
    new_label = np.cumsum(keep) - 1
    table = replace(annotations, label=new_label[annotations.label].astype(np.int64))
    return tuple(category for category, kept in zip(categories, keep, strict=True) if kept), table


def _leave_out_namesakes(
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
                f"are both named '{name}' and both have boxes ({boxes[first]} and {boxes[second]})",
                "rename one of them in 'categories', or give all boxes one category_id",
            )
            continue
        stays = used[0] if used else labels[-1]  # Roboflow's supercategory comes first
        for label in labels:
            if label != stays:
                keep[label] = False
                place = f"category {categories[label].id} '{name}'"
                message = f"has no box and the name of category {categories[stays].id}"
                findings.warn("category", f"{place} {message}, so it is left out.", "left out", [(place, message)])


def _leave_out_common_supercategory(
    categories: Sequence[Category],
    supercategories: Sequence[str | None],
    boxes: NDArray[np.int64],
    keep: NDArray[np.bool_],
    findings: Findings,
) -> None:
    for label, category in enumerate(categories):
        others = [above for other, above in enumerate(supercategories) if other != label]
        if category.id == 0 and keep[label] and not boxes[label] and others and set(others) == {category.name}:
            keep[label] = False
            place, message = f"category 0 '{category.name}'", "has no box and is the supercategory of all others"
            findings.warn("category", f"{place} {message}, so it is left out.", "left out", [(place, message)])
