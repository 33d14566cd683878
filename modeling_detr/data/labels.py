"""Assign labels to the classes of a dataset: dense 0…C-1, the dataset's own ids, or the labels of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from modeling_detr.errors_detr import DatasetError, nearest_name
from modeling_detr.structures_detr import Category, DetectionIndex


MAX_CLASSES = 100_000  # more is a mistake, or an attack on the memory
MAX_RAW_LABELS = 10_000  # a higher id is a mistake: the class head gets one output per id


def with_raw_labels(index: DetectionIndex) -> DetectionIndex:
    """Use the dataset's own category ids as labels, as the original does: 0 up to the highest id.

    Unused ids become classes without objects: a dataset whose highest id is 106 gets 107 classes.

    Raises:
        DatasetError: An id is negative, or too high to be a label.
    """
    category_of = {category.id: category for category in index.categories}
    wrong = next((category_id for category_id in category_of if not 0 <= category_id < MAX_RAW_LABELS), None)
    if wrong is not None:
        raise DatasetError(
            f"{index.name}, category '{category_of[wrong].name}'",
            f"id {wrong} cannot be a label, expected 0 to {MAX_RAW_LABELS - 1}",
            "number the classes densely",
            {"label_ids": "dense"},
        )
    labels = range(max(category_of, default=-1) + 1)
    categories = tuple(category_of.get(label, Category(label, f"unused {label}")) for label in labels)
    ids = np.array([category.id for category in index.categories], dtype=np.int64)
    return replace(
        index, categories=categories, annotations=replace(index.annotations, label=ids[index.annotations.label])
    )


def adopt_model_labels(
    index: DetectionIndex, id2label: Mapping[int, str], stuff_labels: Sequence[int] = ()
) -> DetectionIndex:
    """Give the dataset's classes the labels that classes with the same name have in the model.

    A dataset with exactly the model's classes is returned unchanged, even if several share a name. Classes that only
    the model has are added without objects, with category ids that the dataset does not use.

    Args:
        index: The dataset.
        id2label: The model's label → class name (`model.config.id2label`).
        stuff_labels: The model's labels of stuff (`model.config.stuff_labels`); only used for classes that the dataset
            does not have.

    Raises:
        DatasetError: The dataset has a class that the model does not have.
    """
    if [category.name for category in index.categories] == [id2label[label] for label in sorted(id2label)]:
        return index
    label_of = {name: label for label, name in sorted(id2label.items(), reverse=True)}
    unknown = [category.name for category in index.categories if category.name not in label_of]
    if unknown:
        nearest = nearest_name(unknown[0], label_of)
        if nearest is not None:
            unknown[0] += f" (did you mean '{nearest}'?)"
        raise DatasetError(
            index.name,
            f"has classes that the model does not have: {', '.join(unknown)}; the model has "
            f"{', '.join(id2label.values())}",
            "use a model trained on this dataset, or rename the classes",
        )
    new_label = np.array([label_of[category.name] for category in index.categories], dtype=np.int64)
    category_of = {int(label): category for label, category in zip(new_label, index.categories, strict=True)}
    free_id = max((category.id for category in index.categories), default=0) + 1
    categories = tuple(
        category_of.get(label, Category(free_id + label, id2label[label], is_thing=label not in stuff_labels))
        for label in sorted(id2label)
    )
    table = replace(index.annotations, label=new_label[index.annotations.label])
    return replace(index, categories=categories, annotations=table)


def only_things(index: DetectionIndex) -> DetectionIndex:
    """Drop the stuff classes, for instance segmentation. The labels of the things become dense again."""
    is_thing = np.array([category.is_thing for category in index.categories], dtype=np.bool_)
    new_label = np.cumsum(is_thing) - 1
    table = index.annotations.take(is_thing[index.annotations.label])
    return replace(
        index,
        categories=tuple(category for category in index.categories if category.is_thing),
        annotations=replace(table, label=new_label[table.label].astype(np.int64)),
    )
