"""Open a remote dataset as if it were on the disk, and put its own addresses in place of those of the mirror."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modeling_detr.data.findings import Findings
from modeling_detr.data.masks import PanopticMasks
from modeling_detr.data.remote.images import ReadAhead
from modeling_detr.data.remote.mirror import Mirror, open_mirror
from modeling_detr.data.remote.placeholders import stand_for
from modeling_detr.errors_detr import DetrError
from modeling_detr.remote_addresses import is_remote
from modeling_detr.structures_detr import DetectionIndex, ImageRecord, MaskSource


class RemoteData:
    """The mirrors that stand for the remote parts of a dataset: its folder, or a folder of images.

    Attributes:
        path: The place on this machine to read the dataset from.
        options: The reading options, with places on this machine.
    """

    def __init__(self, path: str | Path, options: Mapping[str, Any]) -> None:
        self._mirrors: list[Mirror] = []
        self.path = self._local(path)
        self.options = {name: self._local(value) for name, value in options.items()}

    def _local(self, place: Any) -> Any:
        if not is_remote(place):
            return place
        mirror, local = open_mirror(place)
        self._mirrors.append(mirror)
        return local

    @contextlib.contextmanager
    def reading(self, findings: Findings) -> Iterator[None]:
        """Let formats read the images of the mirrors; errors and findings of the block get the remote addresses."""
        with contextlib.ExitStack() as stack:
            for mirror in self._mirrors:
                ahead = ReadAhead(mirror.reader, mirror.images)
                stack.callback(ahead.close)
                stack.enter_context(stand_for(str(mirror.tree), ahead))
            try:
                yield
            except DetrError as error:
                where, problem, remedy = map(self._translated, (str(error.where), error.problem, error.remedy))
                if (where, problem, remedy) == (error.where, error.problem, error.remedy):
                    raise
                raise type(error)(where, problem, remedy, error.settings) from error
            finally:
                self._translate(findings)

    def index(self, index: DetectionIndex) -> DetectionIndex:
        """The index with remote images, each with its address as path."""
        table = index.annotations
        if table.masks is not None:
            sources = tuple(map(self._mask_source, table.masks.sources))
            table = dataclasses.replace(table, masks=dataclasses.replace(table.masks, sources=sources))
        return dataclasses.replace(
            index,
            images=[self._record(record) for record in index.images],
            annotations=table,
            notes=tuple(map(self._translated, index.notes)),
        )

    def _record(self, record: ImageRecord) -> ImageRecord:
        mirror = self._mirror_of(record.path) if record.reader is None else None
        if mirror is None:
            return record
        path = mirror.address + record.path.removeprefix(str(mirror.tree))
        return dataclasses.replace(record, path=path, reader=mirror.reader)

    def _mask_source(self, source: MaskSource) -> MaskSource:
        mirror = self._mirror_of(source.files[0]) if isinstance(source, PanopticMasks) and source.files else None
        return source if mirror is None else dataclasses.replace(source, reader=mirror.reader)  # type: ignore[type-var]

    def _mirror_of(self, path: str) -> Mirror | None:
        return next((mirror for mirror in self._mirrors if path.startswith(f"{mirror.tree}/")), None)

    def _translated(self, text: str) -> str:
        for mirror in self._mirrors:
            text = text.replace(str(mirror.tree), mirror.address)
        return text

    def _translate(self, findings: Findings) -> None:
        findings.items[:] = [
            dataclasses.replace(
                item,
                where=self._translated(item.where),
                message=self._translated(item.message),
                action=self._translated(item.action),
            )
            for item in findings.items
        ]
        findings.notes[:] = map(self._translated, findings.notes)
        findings.facts[:] = map(self._translated, findings.facts)
        findings.broken_images = {*map(self._translated, findings.broken_images)}
