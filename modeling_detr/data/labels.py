"""The labels that a dataset's classes have: the dataset's own ids, where they are wanted instead of 0…C-1."""

from dataclasses import replace

import numpy as np

from modeling_detr.structures_detr import Category, DetectionIndex


MAX_RAW_LABELS = 10_000  # a class head of more outputs than this is a mistake in an id


def with_raw_labels(index: DetectionIndex) -> DetectionIndex:
    """The dataset with its own category ids as labels, as in the original: as many as the highest id, and one more.

    Ids between that the dataset does not use become classes without objects, so one whose highest id is 106 has 107.

    Raises:
        ValueError: An id is negative, or so high that it cannot be meant as a label.
    """
    category_of = {category.id: category for category in index.categories}
    wrong = next((number for number in category_of if not 0 <= number < MAX_RAW_LABELS), None)
    if wrong is not None:
        raise ValueError(
            f"{index.name}: category '{category_of[wrong].name}' has the id {wrong}, which cannot be a label; wanted "
            f"ids from 0 to {MAX_RAW_LABELS - 1}, or dense labels: --label_ids dense."
        )
    numbers = range(max(category_of, default=-1) + 1)
    categories = tuple(category_of.get(number, Category(number, f"unused {number}")) for number in numbers)
    ids = np.array([category.id for category in index.categories], dtype=np.int64)
    return replace(
        index, categories=categories, annotations=replace(index.annotations, label=ids[index.annotations.label])
    )
