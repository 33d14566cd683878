"""Problems that readers find in a dataset.

Readers report problems to a `Findings` object. By default, as in training, it raises the first error and keeps one
note for each kind of warning. In collecting mode, as in `detr data check`, it keeps every finding with its location,
and the reader skips the faulty entry.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from modeling_detr.errors_detr import DatasetError, DetrError, python_argument


@dataclass(frozen=True, slots=True)
class Finding:
    """A single problem.

    Attributes:
        severity: `error`: stops training or silently spoils it; `warning`: is handled.
        kind: Short name of the problem ("zero area"), by which findings are grouped.
        where: The file, and the line, id or number of the entry in it.
        message: What is wrong.
        action: How a warning was handled, or how to fix an error.
        settings: Arguments of `open_dataset` that fix it.
    """

    severity: Literal["error", "warning"]
    kind: str
    where: str
    message: str
    action: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def text(self, format_setting: Callable[[str, object], str] = python_argument) -> str:
        """The finding as one sentence; `format_setting` formats a setting the way the user can give it."""
        return self._error().to_text(format_setting)

    def as_dict(self, format_setting: Callable[[str, object], str] = python_argument) -> dict[str, str]:
        """The finding as plain values for JSON; see `text`."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "where": self.where,
            "message": self.message,
            "action": self._error().remedy_with_settings(format_setting),
        }

    def _error(self) -> DatasetError:
        return DatasetError(self.where, self.message, self.action, self.settings)

    def __str__(self) -> str:
        return self.text()


class Findings:
    """Collects or raises the problems that readers find.

    Attributes:
        collects: Whether errors are collected instead of raised.
        items: All findings, if they are collected.
        notes: One sentence for each kind of warning, for `DetectionIndex.notes`.
        broken_images: Paths of the unusable images.
        format: Name of the dataset's format, once it is known.
        facts: What else the reader has decided about the dataset as a whole, for the head of `detr data check`.
        names: What files are ("image") → how many were found as written, and how many by a name that differs, and how.
    """

    def __init__(self, collects: bool = False) -> None:
        self.collects = collects
        self.items: list[Finding] = []
        self.notes: list[str] = []
        self.broken_images: set[str] = set()
        self.format: str | None = None
        self.facts: list[str] = []
        self.names: dict[str, Counter[str]] = {}

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
        """Raise an error, or collect it; the caller then skips the faulty entry.

        Args:
            kind: See `Finding`.
            where: See `Finding`.
            message: See `Finding`.
            remedy: How to fix it.
            settings: See `Finding`.
            raises: Class of the error.
            cause: The exception that caused it.
            image: Path of the image that it makes unusable.
        """
        self.add(kind, raises(where, message, remedy, settings), cause=cause, image=image)

    def add(self, kind: str, error: DetrError, *, cause: Exception | None = None, image: str | None = None) -> None:
        """Raise `error`, or collect it as a finding; see the method `error`."""
        if not self.collects:
            raise error from cause
        self.items.append(Finding("error", kind, error.where, error.problem, error.remedy, error.settings))
        if image is not None:
            self.broken_images.add(image)

    def warn(
        self,
        kind: str,
        note: str,
        action: str,
        each: Iterable[tuple[object, str]],
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Record a warning.

        Args:
            kind: See `Finding`.
            note: A one-sentence summary.
            action: How it is handled.
            each: Location and message of each case; only iterated if findings are collected.
            settings: See `Finding`.
        """
        self.notes.append(note)
        if self.collects:
            self.items += [
                Finding("warning", kind, str(where), message, action, settings or {}) for where, message in each
            ]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun: `1 box`, `2 boxes`. The default plural adds an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def first_items(items: Collection[object], limit: int = 20, separator: str = ", ") -> str:
    """Join at most `limit` items, with commas by default, followed by the number of further ones."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(str(item) for item in itertools.islice(items, limit)) + more
