"""Images of different sizes in one batch, for the image processor and for models that get a list of images.

Shapes: B images · H, W pixels. Sizes are `(height, width)`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers.image_processing_base import BatchFeature


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
            f"pad_size: {height}x{width} (height x width) is too small for images of up to {largest[0]}x{largest[1]}; "
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
