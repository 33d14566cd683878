"""Notes for the plan on what images of very many objects, or very many classes, mean for a run.

Shapes: I images · B images of a batch.
"""

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.data.findings import counted
from modeling_detr.loss_detr import MAX_MASK_PIXELS
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.aids import TrainingModel


_WORTH_A_NOTE = 1e9  # bytes
_PLANNED = 500  # samples in which mosaics are looked for: well below a second


def capacity_notes(
    index: DetectionIndex, model: TrainingModel, batch_size: int, image_size: tuple[int, int]
) -> list[str]:
    """Return notes on objects that are not trained on, limits of training aids, and memory that is large.

    Args:
        index: The training images.
        model: The training model.
        batch_size: B.
        image_size: Height and width of a training image.
    """
    config = model.detector.config
    counts = np.bincount(index.annotations.image_index[~index.annotations.is_crowd], minlength=len(index))  # (I,)
    pixels = image_size[0] * image_size[1]
    notes = [
        _surplus(counts, config.num_queries),
        *(aid.note(counts) for aid in model.aids.values()),
        _class_scores(config.decoder_layers, batch_size, config.num_queries, config.num_classes),
    ]
    if index.annotations.masks is not None:
        matched = np.sort(np.minimum(counts, config.num_queries))[-batch_size:].sum()
        notes += [_loaded_masks(index, counts, pixels), _trained_masks(int(matched), pixels, image_size)]
    return [note for note in notes if note is not None]


def _surplus(counts: NDArray[np.int64], num_queries: int) -> str | None:
    surplus = np.maximum(counts - num_queries, 0)
    if not surplus.any():
        return None
    return (
        f"{counted(int((surplus > 0).sum()), 'image has', 'images have')} more objects than the model has queries "
        f"({num_queries}), up to {int(counts.max()):,}; {int(surplus.sum()):,} objects are not trained on. Raise "
        f"model_config.num_queries."
    )


def mosaic_note(dataset: DetectionDataset, num_queries: int) -> str | None:
    """Return a note if mosaics have more objects than queries, as some of the first epoch show."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, _PLANNED).astype(np.int64)).tolist()
    keys = [key for key in map(SampleKey, indices) if dataset.is_mosaic(key)]
    counts = np.array([dataset.count_objects(key) for key in keys], dtype=np.int64)
    exceeding = int((counts > num_queries).sum())
    if not exceeding:
        return None
    return (
        f"{exceeding} of {counted(len(keys), 'mosaic')} that were tried have more objects than the model has queries "
        f"({num_queries}), up to {int(counts.max()):,}; the surplus is not trained on. Raise "
        f"model_config.num_queries, or lower mosaic_probability."
    )


def _class_scores(layers: int, batch_size: int, num_queries: int, num_classes: int) -> str | None:
    size = 4 * 4 * layers * batch_size * num_queries * num_classes  # float32: scores, probabilities, two gradients
    if size < _WORTH_A_NOTE:
        return None
    return (
        f"the class scores of a batch take about {_gigabytes(size)}: {layers} decoder layers x {batch_size} images x "
        f"{num_queries} queries x {num_classes:,} classes, four times. A lower batch_size takes less."
    )


def _loaded_masks(index: DetectionIndex, counts: NDArray[np.int64], pixels: int) -> str | None:
    own_pixels = index.image_sizes.prod(axis=1)
    sizes = counts * (own_pixels + pixels)  # a byte a pixel, as read and as resized
    worst = int(sizes.argmax())
    if sizes[worst] < _WORTH_A_NOTE:
        return None
    return (
        f"loading image {index.images[worst].id} with its {counts[worst]:,} masks takes about "
        f"{_gigabytes(sizes[worst])} in a loader process. Fewer num_workers take less."
    )


def _trained_masks(num_masks: int, pixels: int, image_size: tuple[int, int]) -> str | None:
    if num_masks * pixels <= MAX_MASK_PIXELS:
        return None
    height, width = image_size
    return (
        f"a batch may have {num_masks:,} masks of {width}x{height} (width x height). Steps with more than "
        f"{MAX_MASK_PIXELS // pixels:,} compute them in parts to save memory, and take longer."
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
