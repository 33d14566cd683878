"""Predicts parts in this process, one after the other."""

import itertools
from collections.abc import Iterator, Sequence

from modeling_detr.predicting.engines.part_work import DonePart, PartWork, entry_of, write_part
from modeling_detr.predicting.journal import Entry
from modeling_detr.predicting.parts import Part


def predict_here(work: PartWork, parts: Sequence[Part]) -> Iterator[DonePart]:
    """Predicts parts; loader processes, if there are any, read the images of the next one meanwhile.

    Args:
        work: What is needed.
        parts: The parts, in order; all but the last have the same number of images.

    Raises:
        OutputError: A part cannot be written.
        LoaderError: A loader process was killed.
    """
    if not parts:
        return
    indices = [*itertools.chain.from_iterable(part.indices for part in parts)]
    # Batches keep to a part, so that the predictions of a part do not depend on the parts around it
    predictions = work.image_pass.predictions(work.images, indices, pool=len(parts[0].indices))
    for part in parts:
        entries: dict[int, Entry] = {}
        for index, predicted in itertools.islice(predictions, len(part.indices)):
            entries[index] = entry_of(work.images[index], predicted)
        yield write_part(work.table, part, [entries[index] for index in part.indices])
