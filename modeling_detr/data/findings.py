"""What readers find wrong with a dataset.

Readers report to a `Findings`. A strict one, as training uses, raises the first error and keeps one sentence for each
kind of warning. A collecting one, as `detr data check` uses, keeps every finding with its place, and the reader skips
the faulty entry.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from modeling_detr.errors_detr import DatasetError, DetrError, python_argument


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: `error`: it stops training or silently spoils it; `warning`: it is handled.
        kind: Short name of the problem ("zero area"), by which findings are grouped.
        where: The file, and the line, id or number of the entry in it.
        message: What is wrong.
        action: For a warning, what is done about it; for an error, what to do.
        settings: Arguments of `open_dataset` that fix it.
    """

    severity: Literal["error", "warning"]
    kind: str
    where: str
    message: str
    action: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def text(self, spell: Callable[[str, object], str] = python_argument) -> str:
        """The finding as one sentence; `spell` writes a setting the way the user can give it."""
        return self._error().to_text(spell)

    def as_dict(self, spell: Callable[[str, object], str] = python_argument) -> dict[str, str]:
        """The finding as plain values for JSON; see `text`."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "where": self.where,
            "message": self.message,
            "action": self._error().remedy_with_settings(spell),
        }

    def _error(self) -> DatasetError:
        return DatasetError(self.where, self.message, self.action, self.settings)

    def __str__(self) -> str:
        return self.text()


class Findings:
    """Collects or raises what readers find.

    Attributes:
        collects: Whether errors are kept instead of raised.
        items: Every finding, if they are collected.
        notes: One sentence for each kind of warning, for `DetectionIndex.notes`.
        broken_images: Paths of the images that have an error.
        format: Name of the dataset's format, once it is known.
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
        settings: Mapping[str, object] | None = None,
        *,
        raises: type[DetrError] = DatasetError,
        cause: Exception | None = None,
        image: str | None = None,
    ) -> None:
        """Raise an error, or keep it; the caller then skips what is wrong.

        Args:
            kind: See `Finding`.
            where: See `Finding`.
            message: See `Finding`.
            remedy: What to do about it.
            settings: See `Finding`.
            raises: Class of the error.
            cause: What it is raised from.
            image: Path of the image that cannot be used because of it.
        """
        self.add(kind, raises(where, message, remedy, settings), cause=cause, image=image)

    def add(self, kind: str, error: DetrError, *, cause: Exception | None = None, image: str | None = None) -> None:
        """Raise `error`, or keep it as a finding; see `error`."""
        if not self.collects:
            raise error from cause
        self.items.append(Finding("error", kind, error.where, error.problem, error.remedy, error.settings))
        if image is not None:
            self.broken_images.add(image)

    def warn(self, kind: str, note: str, action: str, each: Iterable[tuple[object, str]]) -> None:
        """Keep a warning.

        Args:
            kind: See `Finding`.
            note: One sentence that sums it up.
            action: What is done about it.
            each: Place and message of each case; only iterated if findings are collected.
        """
        self.notes.append(note)
        if self.collects:
            self.items += [Finding("warning", kind, str(where), message, action) for where, message in each]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 box`, `2 boxes`: a number with the form of the noun that fits it (by default with an s)."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def first_items(items: Iterable[object], limit: int = 20) -> str:
    """At most `limit` items, joined by commas, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
