"""One pass of a model over images: read, prepared in batches and predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modeling_detr.predicting.batches import POOL, PreparedBatch, PreparedBatches
from modeling_detr.predicting.detector import Detector
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.result import Prediction
from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.predicting.tiles import Tiling


@dataclass(frozen=True)
class ImagePass:
    """A model, and how it goes through images.

    Attributes:
        detector: The model.
        rules: Which predictions count.
        batch_size: Images of equal size, or tiles, that are computed at once.
        tiling: How images are divided into tiles; None: not at all.
        num_workers: Processes that read and prepare the images; 0: this one.
    """

    detector: Detector
    rules: ScoreRules
    batch_size: int = 1
    tiling: Tiling | None = None
    num_workers: int = 0

    def predictions(
        self, images: Sequence[InputImage], indices: Sequence[int], *, keep_pixels: bool = False, pool: int = POOL
    ) -> Iterator[tuple[int, Prediction | str]]:
        """Predicts.

        Args:
            images: All images.
            indices: Those to predict for, in this order as far as batches allow.
            keep_pixels: Whether the predictions are to have the images.
            pool: See `PreparedBatches`.

        Yields:
            The index of an image with its prediction, or with the reason why it could not be read.

        Raises:
            LoaderError: A loader process was killed.
        """
        batches = PreparedBatches(
            images,
            indices,
            None if self.tiling else self.detector.processor,
            batch_size=1 if self.tiling else self.batch_size,
            num_workers=min(self.num_workers, len(indices)),
            keep_pixels=keep_pixels or self.tiling is not None,
            pool=pool,
        )
        for batch in batches:
            yield from batch.unreadable.items()
            if not batch.images:
                continue
            results = self._results(batch)
            pixels: Sequence[Tensor | None] = batch.pixels or [None] * len(batch.images)
            for index, result, size, image in zip(batch.images, results, batch.sizes, pixels, strict=True):
                yield index, Prediction(result, self.detector.class_names, size, image, images[index].source)

    def _results(self, batch: PreparedBatch) -> list[Any]:
        if self.tiling is None or batch.pixels is None:
            return self.detector.predict_batch(batch.inputs, batch.sizes, self.rules)
        predict = self.detector.predict_in_tiles
        return [predict(pixels, self.tiling, self.rules, self.batch_size) for pixels in batch.pixels]


def described_failure(source: str, reason: str) -> str:
    """A line about an image that could not be read; the reason may begin with the image."""
    return f"{source}: skipped, {reason.rstrip('.').removeprefix(f'{source}: ')}"
