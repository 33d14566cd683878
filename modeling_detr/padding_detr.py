"""Images of different sizes in one batch, for the image processor and for models that get a list of images.

Shapes: B images · H, W pixels. Sizes are `(height, width)`.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.utils.import_utils import is_tracing


_logger = logging.getLogger(__name__)

ImageList = Sequence["Tensor | ImageList"]


def pad_images(images: Sequence[Tensor], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Combines images of different sizes to a batch, padded with zeros on the right and at the bottom.

    Args:
        images: One tensor (channels, H, W) per image, all of the same dtype and on the same device.
        size: `(height, width)` of the batch; None: the largest height and the largest width of the images.

    Returns:
        pixel_values (B, channels, height, width) in the images' dtype, and pixel_mask (B, height, width) int64, 1 for
        image and 0 for padding.

    Raises:
        ValueError: There are no images, or one is larger than `size`.
    """
    if not images:
        raise ValueError("images: got none, expected at least one.")
    largest = max(image.shape[-2] for image in images), max(image.shape[-1] for image in images)
    height, width = size or largest
    if largest[0] > height or largest[1] > width:
        raise ValueError(
            f"pad_size: {width}x{height} (width x height) is too small for images of up to {largest[1]}x{largest[0]}; "
            f"enlarge pad_size, or resize the images to less."
        )
    pixel_values = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    pixel_mask = torch.zeros((len(images), height, width), dtype=torch.int64, device=images[0].device)
    for index, image in enumerate(images):
        pixel_values[index, :, : image.shape[-2], : image.shape[-1]] = image
        pixel_mask[index, : image.shape[-2], : image.shape[-1]] = 1
    return pixel_values, pixel_mask


def batch_of(pixel_values: Tensor | ImageList, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The batch (B, channels, H, W) and its mask; a list of images (channels, H, W), nested or not, is padded."""
    if isinstance(pixel_values, Tensor):
        return pixel_values, pixel_mask
    images = list(_flatten(pixel_values))
    same_size = len({image.shape for image in images}) == 1
    padded, mask = pad_images(images)
    return padded, None if same_size else mask


def _flatten(images: ImageList) -> Iterator[Tensor]:
    for entry in images:
        if isinstance(entry, Tensor):
            yield entry
        else:
            yield from _flatten(entry)


class MaskConfig(Protocol):
    """The part of `DetrConfig` that says whether a model was trained without masks."""

    trained_without_mask: bool


class PaddingWatch:
    """Notices batches that are padded but come without a mask, and keeps a model to the way it was trained.

    Training scripts that pad to a square often drop the mask. A model that is trained so takes padding for a part of
    the image, and its boxes are wrong as soon as it gets a mask, and vice versa. Each case is logged once.

    Only the first batches without a mask are examined, since reading them makes the host wait for the device.
    """

    def __init__(self) -> None:
        self.batches_to_examine = {True: 20, False: 20}  # in training, and in evaluation mode
        self.reported_ignored_mask = False

    def __call__(self, config: MaskConfig, pixel_values: Tensor, pixel_mask: Tensor | None, trains: bool) -> bool:
        """Whether the model is to use the mask.

        Args:
            config: The model's; training notes in it whether masks are used.
            pixel_values: (B, channels, H, W).
            pixel_mask: (B, H, W), or None.
            trains: Whether the model trains on the batch.
        """
        if is_tracing(pixel_values):
            return trains or not config.trained_without_mask
        if pixel_mask is None:
            if not config.trained_without_mask:
                self._examine(config, pixel_values, trains)
            return False
        if trains:
            config.trained_without_mask = False
        elif config.trained_without_mask and not self.reported_ignored_mask:
            self.reported_ignored_mask = True
            _logger.warning(
                "pixel_mask is ignored: this model was trained on padded images without one "
                "(config.trained_without_mask). Pad images as in its training; to use masks, train it with pixel_mask."
            )
        return not config.trained_without_mask

    def _examine(self, config: MaskConfig, pixel_values: Tensor, trains: bool) -> None:
        if self.batches_to_examine[trains] == 0:
            return
        self.batches_to_examine[trains] -= 1
        if not _seems_padded(pixel_values):
            return
        self.batches_to_examine[trains] = 0
        if trains:
            config.trained_without_mask = True
            _logger.warning(
                "The model trains on images that are padded with zeros, but it gets no pixel_mask, so it takes the "
                "padding for a part of the image. Pass the processor's pixel_mask to the model. Without it, the model "
                "will work only on images that are padded as in training (config.trained_without_mask is now true)."
            )
        else:
            _logger.warning(
                "The images are padded with zeros, but the model gets no pixel_mask, so it takes the padding for a "
                "part of the image and its boxes are less accurate. Pass the processor's pixel_mask to the model."
            )


def _seems_padded(pixel_values: Tensor) -> bool:
    """Whether an image (channels, H, W) of the batch has content, but only zeros in its last row or column."""
    has_content = pixel_values[:, :, 0, 0].any(1)
    ends_blank = ~pixel_values[:, :, -1].flatten(1).any(1) | ~pixel_values[:, :, :, -1].flatten(1).any(1)
    return bool((has_content & ends_blank).any())


class ImageBatch(BatchFeature):
    """What the processor returns. In a pipeline, which adds `target_size`, it holds a list of unpadded images.

    Pipelines join the tensors of several images to a batch only if they have one size, but pass lists on, and a model
    pads what is in a list.
    """

    def __setitem__(self, key: str, value: object) -> None:
        if key == "target_size" and isinstance(pixel_values := self.data.get("pixel_values"), Tensor):
            masks = self.data.pop("pixel_mask", None)
            self.data["pixel_values"] = [
                image if masks is None else _crop(image, masks[index]) for index, image in enumerate(pixel_values)
            ]
        super().__setitem__(key, value)


def _crop(image: Tensor, mask: Tensor) -> Tensor:
    """Removes the padding of an image (channels, H, W), where its mask (H, W) is 0."""
    return image[:, : int(mask[:, 0].sum()), : int(mask[0].sum())]
