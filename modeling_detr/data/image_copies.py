"""Copy the images of a dataset to a converted one, each once and under a unique name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_detr.data.image_decoding import read_image
from modeling_detr.data.image_headers import header_size
from modeling_detr.structures_detr import DetectionIndex


UNLISTED = "unlisted"  # name of the split for images that are in no split


class ImageCopies:
    """The images of a converted dataset, each in the folder of the smallest split that contains it.

    Attributes:
        home: The split in whose folder each image is stored.
        name: File name of each image.
        splits: Name of each written split → indices of its images; images in no split are in the split `UNLISTED`.
        notes: Which images were re-encoded.
    """

    def __init__(self, index: DetectionIndex, folder: Path, place_of: Callable[[str], str], link: bool) -> None:
        """Copy the images.

        Args:
            index: The dataset.
            folder: Folder of the converted dataset.
            place_of: Maps a split to the folder of its images, relative to `folder`. Names are unique in each folder.
            link: Use hard links where possible.

        Raises:
            DatasetError: An image does not have the size in its annotations.
            OSError: An image cannot be read or written.
        """
        self._folder, self._place_of = folder, place_of
        self.home = [UNLISTED] * len(index)
        self.name: list[str] = []
        for split in sorted(index.splits, key=lambda name: (-len(index.splits[name]), name)):
            for image in index.splits[split].tolist():
                self.home[image] = file_name_of(split)
        self.splits = {file_name_of(name): members for name, members in index.splits.items()}
        unlisted = np.flatnonzero([home == UNLISTED for home in self.home])
        if len(unlisted):
            self.splits[UNLISTED] = unlisted
        self.notes = self._copy_all(index, link)

    def path(self, image: int) -> Path:
        """The path of an image in the converted dataset."""
        return self._folder / self._place_of(self.home[image]) / self.name[image]

    def _copy_all(self, index: DetectionIndex, link: bool) -> list[str]:
        taken: set[tuple[str, str]] = set()
        rewritten = []
        for image, record in enumerate(index.images):
            place = self._place_of(self.home[image])
            source = Path(record.path)
            is_file = record.reader is None and source.is_file()
            as_is = is_file and header_size(record.path) == (record.height, record.width)
            stem, suffix = (source.stem, source.suffix) if as_is else (source.stem or f"image_{image}", ".png")
            for candidate in (stem, f"{source.parent.name}_{stem}".lstrip("_"), f"{stem}_{image}"):
                if (place, candidate.lower()) not in taken and not ("?" in candidate or "/" in candidate):
                    stem = candidate
                    break
            else:
                stem = f"image_{image}"
            taken.add((place, stem.lower()))
            self.name.append(f"{stem}{suffix}")
            self.path(image).parent.mkdir(parents=True, exist_ok=True)
            if as_is:
                _copy(source, self.path(image), link)
            else:
                Image.fromarray(read_image(record).permute(1, 2, 0).numpy()).save(self.path(image))
                if is_file:
                    rewritten.append(record.path)
        if not rewritten:
            return []
        were = "image was" if len(rewritten) == 1 else "images were"
        return [
            f"{len(rewritten)} {were} annotated without the EXIF orientation, re-encoded as PNG; the first: "
            f"{rewritten[0]}."
        ]


def _copy(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)


def file_name_of(split: str) -> str:
    """Convert the name of a split to a valid file name."""
    return split.replace("/", "_")
