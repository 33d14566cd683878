"""The lists of images in ImageSets of a Pascal VOC dataset, which are its splits.

A line is a stem (`a`), with the folders of the annotation where there are any (`cam/a`), with the suffix of the image
(`a.jpg`), as paths (`JPEGImages/a.jpg Annotations/a.xml`), or followed by the mark of a class (`a 1`, `a -1`).
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.data.file_names import by_folded_name, distance, folded, nearest, readings, stem
from modeling_detr.data.file_search import FileSearch, Match
from modeling_detr.data.findings import Findings, first_items
from modeling_detr.data.image_paths import is_image_name, is_split_name
from modeling_detr.errors_detr import DatasetNotFoundError, FileContentError, FileReadError
from modeling_detr.input_files import MAX_LIST_BYTES, read_text


_SEVERAL = -2  # in place of an index: several annotations end with this name


@dataclass(frozen=True)
class ImageList:
    """The images of a list; `of_class`: it marks which of them have objects of one class."""

    indices: list[int]
    of_class: bool


class ListedNames:
    """Finds the annotations that the lines of lists name.

    Args:
        base: The folder of the annotations and lists.
        files: The index of each annotation; -1 for those that have been left out.
        findings: Reports lines without an annotation, and names in another spelling.
    """

    def __init__(self, base: Path, files: Mapping[Path, int], findings: Findings) -> None:
        self._base = base
        self._findings = findings
        self._index_of: dict[str, int] = {}  # stem, with none, some or all of its folders in `base` → index
        for file, index in files.items():
            parts = file.relative_to(base).with_suffix("").parts
            for start in range(len(parts)):
                name = "/".join(parts[start:])
                self._index_of[name] = index if self._index_of.get(name, index) == index else _SEVERAL
        self._alike: dict[str, list[str]] | None = None
        self._search = FileSearch([], findings)

    def read(self, file: Path) -> ImageList | None:
        """Read a list; None if it cannot be read."""
        try:
            lines = read_text(file, MAX_LIST_BYTES, "surrogateescape").replace("\r", "\n").split("\n")
        except (FileReadError, FileContentError) as error:
            self._findings.add("unreadable file", error, cause=error)
            return None
        indices, marks = [], 0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            unmarked = _without_mark(line)
            marks += unmarked is not None and not any(name in self._index_of for name in _spellings(line))
            index = self._find(f"{file}, line {number}", line, unmarked)
            if index is not None and index >= 0:
                indices.append(index)
        return ImageList(indices, of_class=marks > 0)

    def tell(self) -> None:
        """Report names that were found in another spelling."""
        self._search.tell("listed name", self._base)

    def _find(self, where: str, line: str, unmarked: str | None) -> int | None:
        lines = [line] if unmarked is None else [line, unmarked]
        names = [name for text in lines for name in _spellings(text)]
        found = next(
            filter(None, ([name] if name in self._index_of else self._find_alike(name) for name in names)), []
        )
        written = next((name for name in found if name in names), lines[-1].strip())
        if not found:
            problem, remedy = f"but there is no annotation file {written}.xml", "add it, or remove the line"
        elif len(found) > 1:
            problem, remedy = f"but may be {first_items(found, 3, ' or ')}", "write the name as it is here"
        elif self._index_of[found[0]] == _SEVERAL:
            problem, remedy = "but several annotations end with it", "write its folder too"
        else:
            if found[0] not in names:
                is_file = is_image_name(written.replace("\\", "/").rpartition("/")[2])
                self._search.count(stem(written) if is_file else written, Match((found[0],)))
            return self._index_of[found[0]]
        message = f"names '{written}', {problem}"
        self._findings.error("missing file", where, message, remedy, raises=DatasetNotFoundError)
        return None

    def _find_alike(self, name: str) -> list[str]:
        """Find names in another spelling, the nearest of them."""
        if self._alike is None:
            self._alike = by_folded_name(self._index_of)
        found = [entry for reading in readings(name) for entry in self._alike.get(folded(reading), ())]
        return nearest(found, lambda entry: distance(name, entry))[0] if found else []


def listed_names(files: Iterable[Path]) -> set[str]:
    """All that lines of lists may mean, without those of lists that cannot be read, which is reported elsewhere."""
    names: set[str] = set()
    for file in files:
        with contextlib.suppress(FileReadError, FileContentError):
            for line in read_text(file, MAX_LIST_BYTES, "surrogateescape").splitlines():
                texts = filter(None, (line.strip(), _without_mark(line)))
                names.update(name for text in texts for name in _spellings(text))
    return names


def split_of_class_list(name: str) -> str | None:
    """Return `train` for `cat_train`; None if the list of a class does not name a split."""
    split = name.rpartition("_")[2]
    return split if is_split_name(split) else None


def _without_mark(line: str) -> str | None:
    """Return `a` for `a 1`, where the number says whether the image has objects of a class; None without a number."""
    fields = line.strip().rsplit(maxsplit=1)
    return fields[0] if len(fields) == 2 and fields[1] in ("-1", "0", "1") else None


def _spellings(line: str) -> Iterator[str]:
    """What a line may mean: itself, which may have spaces at its ends, or a path of an image or annotation."""
    yield line
    fields: Sequence[str] = line.split()
    for text in (line.strip(), fields[-1] if len(fields) == 2 else ""):
        name = text.replace("\\", "/").removeprefix("./")
        yield name
        if is_image_name(name.rpartition("/")[2]) or name.lower().endswith(".xml"):
            name = name.rpartition(".")[0]
            yield name
        while "/" in name:  # folders of the images, or of another machine
            name = name.partition("/")[2]
            yield name
