"""What is wrong with a dataset, as readers find it.

A reader is given `Findings`. Strict ones raise the first error and keep a sentence for each kind of warning, which is
what training wants; collecting ones keep every finding with its place, and the reader goes on without the entry that
is wrong, which is what `detr data check` wants.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: `error`: it stops training or spoils it silently; `warning`: it is handled.
        kind: What findings of one sort share ("zero area").
        where: File, and line, id or number of the object.
        message: What is there.
        action: What is done about it; of an error, what to do.
    """

    severity: Literal["error", "warning"]
    kind: str
    where: str
    message: str
    action: str

    def __str__(self) -> str:
        return f"{self.where} {self.message}; {self.action}."


class Findings:
    """Takes what readers find.

    Attributes:
        collects: Whether errors are kept too, instead of raised.
        items: Every finding, if they are collected.
        notes: A sentence for each kind of warning, as `DetectionIndex.notes` has them.
        broken_images: Paths of images that an error has been kept about.
        format: Format of the dataset, once a reader has been chosen.
    """

    def __init__(self, collects: bool = False) -> None:
        self.collects = collects
        self.items: list[Finding] = []
        self.notes: list[str] = []
        self.broken_images: set[str] = set()
        self.format: str | None = None

    def error(
        self,
        kind: str,
        where: object,
        message: str,
        remedy: str,
        *,
        raises: type[Exception] = ValueError,
        cause: Exception | None = None,
        image: str | None = None,
    ) -> None:
        """Raises `raises("{where} {message}; {remedy}.")`, or keeps it; the caller then leaves out what is wrong.

        Args:
            kind: See `Finding`.
            where: See `Finding`.
            message: See `Finding`.
            remedy: What to do about it.
            raises: What is raised.
            cause: What it is raised from.
            image: Path of the image that cannot be used because of it.
        """
        finding = Finding("error", kind, str(where), message, remedy)
        if not self.collects:
            raise raises(str(finding)) from cause
        self.items.append(finding)
        if image is not None:
            self.broken_images.add(image)

    def unreadable_image(self, path: str, error: OSError) -> None:
        """Raises `error`, or keeps it: the image at `path` cannot be used."""
        if not self.collects:
            raise error
        message, _, remedy = str(error).removeprefix(f"{path}: ").rstrip(".").rpartition("; ")
        self.error("unreadable image", f"{path}:", message, remedy, image=path)

    def warn(self, kind: str, note: str, action: str, each: Iterable[tuple[object, str]]) -> None:
        """Keeps a warning.

        Args:
            kind: See `Finding`.
            note: The sentence that sums it up.
            action: What is done about it.
            each: Place and message of each case; gone through only if findings are collected.
        """
        self.notes.append(note)
        if self.collects:
            self.items += [Finding("warning", kind, str(where), message, action) for where, message in each]
