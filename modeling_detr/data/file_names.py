"""Compare the names of files: which are equal but for case, accents or percent-encoding, and what differs."""

import contextlib
import difflib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote


_OLD_ENCODINGS = ("cp437", "latin-1", "gb18030", "cp932", "big5")  # of ZIP files and lists from old systems
_MAX_CHANGES = 3  # that are listed between two names
_ALIKE = 0.6  # ratio of difflib from which two names are compared character by character
_SAME_SUFFIX = {".jpeg": "jpg", ".jfif": "jpg", ".tiff": "tif"}
_Entry = TypeVar("_Entry")


def stem(name: str) -> str:
    """A file name without its suffix."""
    return name.rpartition(".")[0] or name


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path; if files in several folders share one, the paths from the folder they all are in."""
    parts = [Path(path).as_posix().split("/") for path in paths]
    last = [names[-1] for names in parts]
    if len(set(last)) == len(last):
        return last
    folders = [names[:-1] for names in parts]
    first, final = min(folders), max(folders)  # all others agree where these do
    pairs = enumerate(zip(first, final, strict=False))
    shared = next((depth for depth, (one, other) in pairs if one != other), min(len(first), len(final)))
    return ["/".join(names[shared:]) for names in parts]


def folded(name: str) -> str:
    """A form of a name that does not depend on case, Unicode normal form, encoding for URLs, spaces at its ends, and
    how its suffix is abbreviated (jpg, jpeg)."""
    plain = name if name.isascii() and "%" not in name else composed(decoded(name))
    plain = plain.replace("+", " ").strip().lower()
    while " ." in plain:
        plain = plain.replace(" .", ".")
    return f"{stem(plain)}.{_SAME_SUFFIX[plain[-5:]]}" if plain[-5:] in _SAME_SUFFIX else plain


def decoded(name: str) -> str:
    """A name without percent-encoding: `a%20b.png` is `a b.png`."""
    return unquote(name, errors="surrogateescape") if "%" in name else name


def composed(name: str) -> str:
    """A name with its accents composed; macOS and some archives store them apart."""
    return unicodedata.normalize("NFC", name)


def letters(name: str) -> str:
    """The letters and digits of a name, in lower case: equal for names whose separators differ."""
    return name.lower() if name.isalnum() else "".join(filter(str.isalnum, name)).lower()


_FOLDINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    str.lower,
    composed,
    lambda name: composed(name).lower(),
    decoded,
    lambda name: composed(decoded(name)),
    lambda name: composed(decoded(name)).lower(),
)


def distance(one: str, other: str) -> int:
    """How much two names differ: 0 if they are equal, more if only case, accents, … are ignored."""
    distances = (number for number, folding in enumerate(_FOLDINGS) if folding(one) == folding(other))
    return next(distances, len(_FOLDINGS))


def nearest(entries: Sequence[_Entry], distance_to: Callable[[_Entry], int]) -> tuple[list[_Entry], int]:
    """Return the entries with the smallest distance, and that distance."""
    distances = [distance_to(entry) for entry in entries]
    least = min(distances)
    return [entry for entry, value in zip(entries, distances, strict=True) if value == least], least


def by_folded_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names that `folded` makes equal."""
    return _grouped((name, name) for name in names)


def by_folded_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names that `folded` makes equal without their suffixes."""
    return _grouped((stem(name), name) for name in names)


def _grouped(keys_and_names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in keys_and_names:
        for reading in (key,) if key.isascii() else readings(key):
            groups.setdefault(folded(reading), []).append(name)
    return groups


def readings(name: str) -> Iterator[str]:
    """A name from a disk or a list; if it is not UTF-8, also as text in the encodings of old systems."""
    if not _is_text(name):
        for encoding in _OLD_ENCODINGS:
            with contextlib.suppress(UnicodeError):
                yield os.fsencode(name).decode(encoding)
    yield name


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def describe_difference(name: str, path: str) -> str:
    """Say what differs between a name as written, which may contain folders, and the path of a file.

    Only as many of the last parts of `path` as `name` has are compared; a suffix only if both have one.
    """
    written = name.split("/") if path.endswith(name) else name.replace("\\", "/").split("/")
    written = [part for part in written if part not in ("", ".")]
    parts = path.split("/")[-len(written) :]
    one, other = written[-1], parts[-1]
    kinds: list[str] = []
    if folded(one) != folded(other) and folded(one) in (folded(stem(other)), *map(folded, readings(stem(other)))):
        other = stem(other)  # `name` has no suffix
    suffixes = [name.rpartition(".")[2].strip().lower() for name in (one, other) if "." in name]
    if folded(stem(one)) == folded(stem(other)) and len(set(suffixes)) == 2:
        kinds += ["extension", *_spelling_differences(stem(one), stem(other))]
    elif folded(one) == folded(other) or not _is_text(other):
        kinds += _spelling_differences(one, other)
    else:
        kinds.append(_changes(stem(one), stem(other)))
    folders, others = "/".join(written[:-1]), "/".join(parts[:-1])
    kinds += _spelling_differences(folders, others) if folded(folders) == folded(others) else ["folder"]
    return " and ".join(dict.fromkeys(kinds)) or ("separators" if "\\" in name else "folder")


def _spelling_differences(one: str, other: str) -> Iterator[str]:
    if not (_is_text(one) and _is_text(other)):
        yield "encoding"
        return
    if (decoded(one) == decoded(other)) != (one == other) or (decoded(one), decoded(other)) != (one, other):
        yield "percent signs"
    one, other = decoded(one), decoded(other)
    if one.replace("+", " ").count(" ") != other.replace("+", " ").count(" "):
        yield "spaces"
    elif one.count("+") != other.count("+"):
        yield "plus signs"
    one, other = (text.replace("+", "").replace(" ", "") for text in (one, other))
    if one.lower() != other.lower():
        yield "accents"
    if composed(one) != composed(other):
        yield "case"


def _changes(one: str, other: str) -> str:
    """List the characters that differ, if there are few."""
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    changes = [(one[a:b], other[c:d]) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal"]
    if len(changes) > _MAX_CHANGES or matcher.ratio() < _ALIKE:
        return "the whole name"
    return ", ".join(f"'{old}' instead of '{new}'" for old, new in changes)
