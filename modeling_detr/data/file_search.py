r"""Find the files that annotations name, by the same rules in all formats.

Names are often those of another machine, or went through tools that changed them. A file is looked for, in this order:

1. as written, in the usual folders of the format;
2. there, but with other case, another Unicode normal form, percent-encoding, or the encoding of an old archive;
3. anywhere in the dataset, by the longest matching end of its path (`C:\data\cam1\0.png` is `images/cam1/0.png`);
4. in the usual folders, with another extension of images.

A name without an extension is that of an image with any. The nearest spelling wins, then the folder nearest to the
annotations. Between equally good files nothing is guessed: the match then names all of them.
"""

import contextlib
import difflib
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modeling_detr.data.file_names import (
    by_folded_name,
    by_folded_stem,
    decoded,
    describe_difference,
    distance,
    folded,
    letters,
    nearest,
    readings,
    stem,
)
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.image_paths import IMAGE_SUFFIXES, is_image_name, is_split_name, walk_folders
from modeling_detr.errors_detr import DatasetNotFoundError
from modeling_detr.input_files import is_file


MAX_PARTS = 32  # of a path that is looked up by its last parts
_MAX_COMPARED = 2000  # names among which one that is similar to a missing one is looked for
_MAX_FOLDERS = 20_000  # searched for files that are not in the usual ones
_SHOWN = 3  # missing images with the file that is most similar
_FEW_FOLDERS = 64  # that are asked one by one for a name
_DRIVE = re.compile(r"[A-Za-z]:(?=/)")


class Match(NamedTuple):  # a hundred thousand are made, and a dataclass would take three times as long
    """The result of a search: one path, none, or several that fit equally well.

    Attributes:
        paths: The paths.
        as_written: Whether the file has exactly the name that was looked for, in a usual folder.
    """

    paths: tuple[str, ...] = ()
    as_written: bool = False

    @property
    def path(self) -> str | None:
        """The only path; None if there is none or several."""
        return self.paths[0] if len(self.paths) == 1 else None

    def narrowed(self, hint: str) -> "Match":
        """Of several paths, those that share most of their last parts with another name of the file."""
        if len(self.paths) < 2:
            return self
        parts = tuple(map(folded, hint.split("/")))
        common = [_common_end(tuple(map(folded, path.split("/"))), parts) for path in self.paths]
        found = [path for path, count in zip(self.paths, common, strict=True) if count == max(common) > 0]
        return self._replace(paths=tuple(found)) if found else self


_NOTHING = Match()


class FolderListings:
    """Lists each folder only once, so that a hundred thousand names are looked up with few system calls.

    Folders are strings, because `Path` objects would take most of the time.
    """

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._stems: dict[tuple[str, Callable[[str], bool]], dict[str, list[str]]] = {}
        self._image_stems: dict[str, set[str]] = {}

    def names(self, folder: str) -> set[str]:
        """The names in `folder`; empty if it is not a folder."""
        if folder not in self._names:
            self._names[folder] = set()
            with contextlib.suppress(OSError, ValueError):  # ValueError: a name that no folder can have
                self._names[folder] = {entry.name for entry in os.scandir(folder)}
        return self._names[folder]

    def images(self, folder: str) -> list[str]:
        """The paths of the image files directly in `folder`, sorted by name."""
        return [f"{folder}/{name}" for name in sorted(self.names(folder)) if is_image_name(name)]

    def image_stems(self, folder: str) -> set[str]:
        """The stems of the image files directly in `folder`."""
        if folder not in self._image_stems:
            self._image_stems[folder] = {stem(name) for name in self.names(folder) if is_image_name(name)}
        return self._image_stems[folder]

    def find(self, folder: str, name: str) -> Match:
        """Find a file in `folder` by its name."""
        if name in self.names(folder):
            return Match((f"{folder}/{name}",), as_written=True)
        if folder not in self._alike:
            self._alike[folder] = by_folded_name(sorted(self.names(folder)))
        return _nearest_in(folder, self._alike[folder].get(folded(name)), lambda entry: distance(name, entry))

    def find_stem(self, folder: str, name: str, is_wanted: Callable[[str], bool] = is_image_name) -> Match:
        """Find a file in `folder`, an image by default, by its name without suffix."""
        key = folder, is_wanted
        if key not in self._stems:
            self._stems[key] = by_folded_stem(filter(is_wanted, sorted(self.names(folder))))
        return _nearest_in(folder, self._stems[key].get(folded(name)), lambda entry: distance(name, stem(entry)))


def _nearest_in(folder: str, entries: Sequence[str] | None, distance_to: Callable[[str], int]) -> Match:
    if not entries:
        return _NOTHING
    found, least = nearest(entries, distance_to)
    return Match(tuple(f"{folder}/{entry}" for entry in found), as_written=least == 0)


class FileSearch:
    """Finds the files that annotations name; see the module.

    Attributes:
        roots: As below, without duplicates.

    Args:
        roots: Folders that are searched with all folders in them, for files that are not in the usual ones.
        findings: Gets a note on files that are found by another name.
        listings: Of folders, shared with other searches.
        split: Split that the names belong to; a file that is in another one's folder is not taken for its own.
        is_wanted: Whether a file with this name may be what is looked for; names without such a suffix are stems.
        by_stem: Whether a file may have another suffix than its name, or its name none.
    """

    def __init__(
        self,
        roots: Iterable[str | Path | None],
        findings: Findings,
        listings: FolderListings | None = None,
        split: str | None = None,
        is_wanted: Callable[[str], bool] = is_image_name,
        by_stem: bool = True,
    ) -> None:
        self.roots = list(dict.fromkeys(os.path.normpath(root) for root in roots if root is not None))
        self._findings = findings
        self._listings = listings or FolderListings()
        self._is_wanted = is_wanted
        self._by_stem = by_stem
        self._role = None if split is None else _role(split)
        self._parts: dict[str, tuple[str, ...]] = {}  # folder → its folded parts
        self._roles: dict[str, set[str]] = {}  # folder → the roles of those splits that it is in
        self._names_in: dict[str, set[str]] | None = None  # folder → the names of its files
        self._best: dict[tuple[str, ...], list[str]] = {}  # folders in a name → those that share most of their parts
        self._files: dict[bool, dict[str, list[tuple[str, str]]]] = {}  # by stem → folded name → folder and name
        self._has_own_folder = False  # whether a folder is named like the split
        self._as_written = 0
        self._otherwise: list[tuple[str, str]] = []  # name as written, path of the file

    def find(self, name: str, places: Sequence[str], near: str | None = None) -> Match:
        """Find a file and count it for `tell`.

        Args:
            name: Its name as written, which may contain folders.
            places: The usual folders, the first of which that has it wins.
            near: The folder of the annotations; decides between files that are equally good otherwise.
        """
        if "/" not in name:  # the usual case, in a fifth of the time
            for place in places:
                if name in self._listings.names(place):
                    self._as_written += 1
                    return Match((f"{place}/{name}",), True)
        return self.count(name, self.look_up(name, places, near))

    def count(self, name: str, match: Match) -> Match:
        """Count a match for `tell`, and return it."""
        if match.path is not None:
            if match.as_written:
                self._as_written += 1
            else:
                self._otherwise.append((name, match.path))
        return match

    def look_up(self, name: str, places: Sequence[str], near: str | None = None) -> Match:
        """Find a file without counting it; see `find`."""
        if name.startswith("/"):
            folder, _, last = name.rpartition("/")
            if last in self._listings.names(folder) and is_file(name):  # if outside, `refuse_outside` says what to do
                return Match((os.path.normpath(name),), as_written=True)
        outside = _NOTHING
        if ".." in name:
            straight = [os.path.normpath(f"{place}/{name}") for place in places]
            existing = [path for path in dict.fromkeys(straight) if is_file(path)]
            inside = [path for path in existing if path.startswith(tuple(f"{root}/" for root in self.roots))]
            if inside:
                return Match((inside[0],), as_written=True)
            outside = Match(tuple(existing[:1]), as_written=True)
        spellings = [(spelling, _relative(spelling)) for spelling in _spellings(name)]
        for spelling, relative in spellings:
            match = _NOTHING if name.startswith("/") else self.find_in(places, relative)
            if match.paths:
                return match if spelling == name else Match(match.paths)
        found = [match for _, relative in spellings if (match := self.find_by_end(relative, near)).paths]
        best = next((match for match in found if match.path is not None), found[0] if found else _NOTHING)
        other = self._with_other_suffix(places, spellings[-1][1], only_whole=bool(best.paths))
        return Match(tuple(dict.fromkeys(best.paths + other.paths))) if best.paths or other.paths else outside

    def find_in(self, places: Sequence[str], name: str) -> Match:
        """Find a file in the first of some folders that has it, or else has it in another spelling."""
        parent, _, last = name.rpartition("/")
        found = _NOTHING
        for place in places if last else ():
            folder = f"{place}/{parent}" if parent else place
            match = self._listings.find_stem(folder, last, self._is_wanted) if self._is_stem(last) else _NOTHING
            match = match if match.paths else self._listings.find(folder, last)
            if match.as_written:
                return match
            found = found if found.paths else match
        return found

    def _is_stem(self, name: str) -> bool:
        return self._by_stem and not self._is_wanted(name.rstrip())

    def _with_other_suffix(self, places: Sequence[str], name: str, only_whole: bool) -> Match:
        """Find a file in the first of some folders that has one with this stem, `a.png` for `a.jpg`.

        Other folders are not searched: a mask often has the name of its image, and another suffix. Shorter ends of the
        name are tried too unless `only_whole`.
        """
        *parents, last = name.split("/")[-MAX_PARTS:]
        if not self._by_stem or not self._is_wanted(last.rstrip()):
            return _NOTHING
        for start in range(1 if only_whole else len(parents) + 1):
            for place in places:
                folder = "/".join([place, *parents[start:]])
                match = self._listings.find_stem(folder, stem(last), self._is_wanted)
                if match.paths:
                    return match
        return _NOTHING

    def find_by_end(self, name: str, near: str | None = None) -> Match:
        """Find the file that shares most of its last parts with a path; see `find`."""
        parts = name.split("/")[-MAX_PARTS:]
        if self._is_stem(parts[-1]):
            match = self._find_alike_by_end(parts, near, by_stem=True)
            if match.paths:
                return match
        return self._find_exactly_by_end(tuple(parts[:-1]), parts[-1]) or self._find_alike_by_end(parts, near)

    def _find_exactly_by_end(self, parents: tuple[str, ...], name: str) -> Match | None:
        """Find a file in the only folder that fits best and has exactly this name, without folding all names."""
        folders = self._folders()
        if parents not in self._best:
            wanted = tuple(map(folded, parents))
            common = {folder: _common_end(parts, wanted) for folder, parts in self._parts.items()}
            self._best[parents] = [folder for folder in folders if common[folder] == max(common.values())]
        best = self._best[parents]
        found = [folder for folder in best if name in folders[folder]] if len(best) <= _FEW_FOLDERS else []
        if len(found) != 1 or (self._has_own_folder and self._role not in self._roles[found[0]]):
            return None
        return Match((f"{found[0]}/{name}",))

    def _find_alike_by_end(self, parts: Sequence[str], near: str | None, by_stem: bool = False) -> Match:
        found = self._index(by_stem).get(folded(parts[-1]), [])
        if not found:
            return _NOTHING
        parents = _folded_parts(tuple(parts[:-1]))
        common = [_common_end(self._parts[folder], parents) for folder, _ in found]
        longest = max(common)
        found = [entry for entry, count in zip(found, common, strict=True) if count == longest]
        if self._role is not None:
            found = self._of_own_split(found, longest == 0)
        end = "/".join(parts[len(parts) - 1 - longest :])

        def distance_to(entry: tuple[str, str]) -> int:
            folder, name = entry
            folders = folder.split("/")[len(folder.split("/")) - longest :]
            return distance(end, "/".join([*folders, stem(name) if by_stem else name]))

        if len(found) > 1:
            found, _ = nearest(found, distance_to)
        if len(found) > 1 and near is not None:
            found, _ = nearest(found, lambda entry: self._separation(entry[0], near))
        return Match(tuple(f"{folder}/{name}" for folder, name in found))

    def _separation(self, folder: str, near: str) -> int:
        """The less, the more two folders are alike: in the same place, or of the same name."""
        parts, others = self._parts[folder], _folded_parts(tuple(near.split("/")))
        return -_common_start(parts, others) - _common_end(parts, others)

    def _of_own_split(self, found: list[tuple[str, str]], only_by_name: bool) -> list[tuple[str, str]]:
        """Prefer files in folders of the own split; one in another split's folder is another file."""
        roles = [(entry, self._roles[entry[0]]) for entry in found]
        own = [entry for entry, of_folder in roles if self._role in of_folder]
        if not own and only_by_name and self._has_own_folder:
            return [entry for entry, of_folder in roles if not of_folder]
        return own or found

    def files(self) -> Iterator[str]:
        """The files in the roots that may be what is looked for, images by default."""
        for folder, names in self._folders().items():
            yield from (f"{folder}/{name}" for name in sorted(filter(self._is_wanted, names)))

    def _folders(self) -> dict[str, set[str]]:
        """The folders of the dataset with the names of their files."""
        if self._names_in is None:
            self._names_in = {}
            for root in self.roots:
                for folder, names in itertools.islice(walk_folders(root), _MAX_FOLDERS):
                    self._names_in.setdefault(folder, set(names))
                    self._parts[folder] = tuple(map(folded, folder.split("/")))
                    inner = folder[len(root) :].split("/")
                    self._roles[folder] = {role for part in inner if (role := _role(part)) is not None}
                    self._has_own_folder |= self._role in self._roles[folder]
        return self._names_in

    def _index(self, by_stem: bool = False) -> dict[str, list[tuple[str, str]]]:
        if by_stem not in self._files:
            index: dict[str, list[tuple[str, str]]] = {}
            for folder, names in self._folders().items():
                ordered = sorted(names)
                groups = by_folded_stem(filter(self._is_wanted, ordered)) if by_stem else by_folded_name(ordered)
                for key, entries in groups.items():
                    index.setdefault(key, []).extend((folder, name) for name in entries)
            self._files[by_stem] = index
        return self._files[by_stem]

    def report_ambiguous(self, match: Match, where: object, name: str) -> None:
        """Report a name that fits several files equally well."""
        self._findings.error(
            "ambiguous name",
            where,
            f"'{name}' may be {first_items(match.paths, 3, ' or ')}",
            "write the folder of the file into the annotations as it is here, or remove the other file",
            image=name,
        )

    def report_missing(
        self,
        missing: Sequence[tuple[object, str]],
        total: int,
        searched: str,
        remedy: str,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Report images that have not been found, three of them with the file whose name is most similar.

        Args:
            missing: Where each is named, and its name.
            total: Number of images, with those that have been found.
            searched: Folders that were searched.
            remedy: See `Findings.error`.
            settings: See `Findings.error`.
        """
        similar = [self.describe_similar(name) for _, name in missing[:_SHOWN]]  # each takes many comparisons
        if self._findings.collects:
            for number, (where, name) in enumerate(missing):
                hint = similar[number] if number < len(similar) else ""
                message = f"the image '{name}' is missing{hint}, searched {searched}"
                self._findings.error("missing image", where, message, remedy, settings, image=name)
        elif missing:
            count = f"{len(missing):,} of {counted(total, 'image')} missing"
            shown = [f"'{name}'{hint}" for (_, name), hint in zip(missing, similar, strict=False)]
            first = f"the first is {shown[0]}" if len(missing) == 1 else f"the first are {'; '.join(shown)}"
            message = f"{count}, {first}, searched {searched}"
            where = missing[0][0]
            self._findings.error("missing image", where, message, remedy, settings, raises=DatasetNotFoundError)

    def describe_similar(self, name: str) -> str:
        """Return ` (PATH differs in …)` for the image whose name is most like a missing one; else empty text."""
        files = self._index()
        last = folded(_relative(name.replace("\\", "/")).rpartition("/")[2])
        last = last if self._is_stem(last) else stem(last)
        of_stem = {stem(key): key for key in itertools.islice(filter(is_image_name, files), _MAX_COMPARED)}
        keys = [key for suffix in sorted(IMAGE_SUFFIXES) if (key := f"{last}.{suffix}") in files]
        keys = keys or [key for name, key in of_stem.items() if letters(name) == letters(last)]
        keys = keys or [of_stem[found] for found in difflib.get_close_matches(last, of_stem, n=1)]
        if not keys:
            return ""
        path = "/".join(files[keys[0]][0])
        return f" ({path} differs in {describe_difference(name, path)})"

    def tell(self, noun: str, where: object) -> None:
        """Report how names were resolved: counts for the head of `detr data check`, and a note if any differs.

        Args:
            noun: What the files are ("image").
            where: Where the names are written.
        """
        tally = self._findings.names.setdefault(noun, Counter())
        tally["as written"] += self._as_written
        if not self._otherwise:
            return
        differences = [_describe(name, path) for name, path in self._otherwise]
        kinds = Counter(differences)
        tally.update(kinds)
        found = f"{counted(len(differences), noun)} {'is' if len(differences) == 1 else 'are'} found by another name"
        listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(5))
        name, path = self._otherwise[0]
        self._findings.warn(
            "other name",
            f"{where}: {found}, which differs in {listed}; the first: '{name}' is {path}.",
            "the file is used",
            (
                (where, f"'{name}' is {path}, which differs in {difference}")
                for (name, path), difference in zip(self._otherwise, differences, strict=True)
            ),
        )
        self._as_written, self._otherwise = 0, []


def _spellings(name: str) -> Iterator[str]:
    """A name as written, with Windows' separators, in an old encoding, and as part of a URL."""
    yield name
    other = name.replace("\\", "/")
    if other != name:
        yield other
    if not other.isascii():
        yield from (reading for reading in readings(other) if reading != other)
    if "%" in other or "://" in other:
        yield decoded(other.partition("?")[0] if "://" in other else other).replace("\\", "/")


def _relative(name: str) -> str:
    """A name without drive, and without parts that lead elsewhere."""
    name = _DRIVE.sub("", name, count=1) if _DRIVE.match(name) else name
    if not name.startswith(("/", ".")) and "/." not in name and "//" not in name:
        return name
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


@functools.lru_cache(maxsize=4096)
def _folded_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(folded, parts))


def _describe(name: str, path: str) -> str:
    """`describe_difference`, which is called once for all files of a folder whose own names are equal."""
    (parent, _, last), (folder, _, file) = name.rpartition("/"), path.rpartition("/")
    return _describe_folders(parent, folder) if last == file else describe_difference(name, path)


@functools.lru_cache(maxsize=4096)
def _describe_folders(parent: str, folder: str) -> str:
    return describe_difference(f"{parent}/_", f"{folder}/_")


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _common_start(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _role(name: str) -> str | None:
    """What the split with a usual name is for; None for other names, and for `trainval`, which is both."""
    lower = name.lower()
    if not is_split_name(name) or lower.startswith("trainval"):
        return None
    return "train" if lower.startswith("train") else "test" if lower.startswith("test") else "val"
