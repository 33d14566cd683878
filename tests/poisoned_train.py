"""`detr train` with a NaN in one pixel of the image whose index is the first argument: python poisoned_train.py 7 …"""

import sys
from collections.abc import Sequence

import torch

from modeling_detr.commands import run_command
from modeling_detr.data.batch import DetrCollator
from modeling_detr.structures_detr import DetectionBatch, DetectionSample


def poison(image_index: int) -> None:
    """Make each collator return float pixels, with one NaN in the given image."""
    collate = DetrCollator.__call__

    def poisoned(self: DetrCollator, samples: Sequence[DetectionSample]) -> DetectionBatch:
        batch = collate(self, samples)
        batch["pixel_values"] = batch["pixel_values"] / 255.0
        for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            if int(label["image_index"]) == image_index:
                pixels[1, 5, 7] = torch.nan
        return batch

    DetrCollator.__call__ = poisoned


if __name__ == "__main__":
    poison(int(sys.argv.pop(1)))
    sys.exit(run_command("train"))
