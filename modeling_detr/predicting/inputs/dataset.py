"""The images of a dataset in any format that `open_dataset` reads."""

import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath

from modeling_detr.predicting.inputs.input_image import FoundImage
from modeling_detr.structures_detr import DetectionIndex


def find_in_dataset(index: DetectionIndex) -> Iterator[FoundImage]:
    """The images of a dataset, read as its annotations see them; named as their files are in their common folder."""
    paths = [record.path.replace("\\", "/") for record in index.images]
    folders = {posixpath.dirname(path) for path in paths}
    root = posixpath.commonpath(folders) if len({path.startswith("/") for path in folders}) == 1 else ""
    for record, path in zip(index.images, paths, strict=True):
        name = PurePosixPath(posixpath.relpath(path, root) if root else path.lstrip("/"))
        yield FoundImage(name if name.suffix else name.with_suffix(".jpg"), record.path, record=record)
