"""The classes of a COCO dataset: the categories of all its files, without those that are not classes.

Each file lists its own categories. Tools that export one file at a time may number them differently in each; names
then say which are the same. Exports may also list more categories than are annotated: Roboflow adds one with id 0 as
the supercategory of all others, often with the name of one of them. As a class, it would take up a label that is never
trained.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings, first_items
from modeling_detr.data.formats.written_values import is_integer, to_integer, to_text
from modeling_detr.data.labels import MAX_CLASSES
from modeling_detr.errors_detr import DatasetError
from modeling_detr.structures_detr import AnnotationTable, Category


@dataclass(frozen=True)
class Labels:
    """The categories of a dataset.

    Attributes:
        categories: All of them.
        of_id: For each file, category id as the file writes it → dense label.
        supercategories: The supercategory of each, None where its entry has none.
    """

    categories: tuple[Category, ...]
    of_id: tuple[Mapping[Any, int], ...]
    supercategories: tuple[str | None, ...]


@dataclass(frozen=True)
class _Listed:
    written: Any  # id as the file writes it
    category: Category
    supercategory: str | None


def merge_categories(files: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]], findings: Findings) -> Labels:
    """Merge the categories of several files, by id, or by name if the files number them differently.

    Args:
        files: Each file with its entries of `categories`.
        findings: Reports invalid and contradicting entries.

    Raises:
        DatasetError: There are implausibly many.
    """
    listed = [_read_categories(file, entries, findings) for file, entries in files]
    differing = _name_with_several_ids(listed)
    if differing is not None:
        listed = _renumber(listed)
        where = first_items([file for file, _ in files], 3, " and ")
        message = f"the same classes have different ids, such as '{differing}'"
        action = "classes are matched by name"
        findings.warn("category", f"{where}: {message}; {action}.", action, [(where, message)])
    merged: dict[int, tuple[_Listed, Path]] = {}
    for (file, _), entries in zip(files, listed, strict=True):
        for entry in entries:
            category_id, name = entry.category.id, entry.category.name
            earlier, earlier_file = merged.get(category_id, (entry, file))
            if earlier.category.name != name:
                findings.error(
                    "category",
                    f"{file}, category {category_id}",
                    f"is named '{name}', but '{earlier.category.name}' in {earlier_file}",
                    "use the same name in all files, or another id",
                )
                entry = replace(entry, category=replace(entry.category, name=earlier.category.name))
            merged[category_id] = entry, earlier_file
    ids = sorted(merged)
    label = {category_id: index for index, category_id in enumerate(ids)}
    common = {} if differing is not None else label
    of_id = tuple({**common, **{entry.written: label[entry.category.id] for entry in entries}} for entries in listed)
    return Labels(
        tuple(merged[category_id][0].category for category_id in ids),
        of_id,
        tuple(merged[category_id][0].supercategory for category_id in ids),
    )


def _read_categories(file: Path, entries: Sequence[Mapping[str, Any]], findings: Findings) -> list[_Listed]:
    if len(entries) > MAX_CLASSES:
        raise DatasetError(file, f"{len(entries):,} categories, more than the limit of {MAX_CLASSES:,}")
    listed = []
    for entry in entries:
        written, written_name = entry.get("id"), entry.get("name")
        try:
            category_id = to_integer(written)
            name = str(category_id) if written_name is None else to_text(written_name)
        except ValueError as error:
            part, got = ("name", written_name) if is_integer(written) else ("id", written)
            message = f"got {part} {got!r}, expected {error}"
            findings.error("category", f"{file}, category {entry}", message, f"correct its {part}")
            continue
        supercategory = entry.get("supercategory")
        category = Category(category_id, name, bool(entry.get("isthing", True)))
        listed.append(_Listed(written, category, supercategory if isinstance(supercategory, str) else None))
    return listed


def _name_with_several_ids(listed: Sequence[Sequence[_Listed]]) -> str | None:
    """Return a class that two files list under different ids, each once; None if there is none."""
    id_of: dict[str, int] = {}
    for entries in listed:
        names = [entry.category.name for entry in entries]
        repeated = {name for name, times in Counter(names).items() if times > 1}
        for entry in entries:
            name = entry.category.name
            if name not in repeated and id_of.setdefault(name, entry.category.id) != entry.category.id:
                return name
    return None


def _renumber(listed: Sequence[Sequence[_Listed]]) -> list[list[_Listed]]:
    """Give each name one id: the one of its first file, if no other name has it, or else the next that is free."""
    names = dict.fromkeys(entry.category.name for entries in listed for entry in entries)
    wanted = {entry.category.name: entry.category.id for entries in reversed(listed) for entry in reversed(entries)}
    free = count(1 + max(wanted.values()))
    id_of: dict[str, int] = {}
    taken: set[int] = set()
    for name in names:
        id_of[name] = wanted[name] if wanted[name] not in taken else next(free)
        taken.add(id_of[name])
    return [
        [replace(entry, category=replace(entry.category, id=id_of[entry.category.name])) for entry in entries]
        for entries in listed
    ]


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
