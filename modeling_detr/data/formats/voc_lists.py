"""The lists of images in ImageSets of a Pascal VOC dataset, which are its splits.

A line is a stem (`a`), with the folders of the annotation where there are any (`cam/a`), with the suffix of the image
(`a.jpg`), as paths (`JPEGImages/a.jpg Annotations/a.xml`), or followed by the mark of a class (`a 1`, `a -1`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.data.findings import Findings
from modeling_detr.data.image_paths import is_image_name, is_split_name
from modeling_detr.errors_detr import DatasetNotFoundError, FileContentError, FileReadError
from modeling_detr.input_files import MAX_LIST_BYTES, read_text


_SEVERAL = -2  # in place of an index: several annotations end with this name


@dataclass(frozen=True)
class ImageList:
    """The images of a list; `of_class`: it marks which of them have objects of one class."""

    indices: list[int]
    of_class: bool


def names_of(base: Path, files: Mapping[Path, int]) -> dict[str, int]:
    """Return the index of each annotation by its stem, with none, some or all of its folders in `base`."""
    index_of: dict[str, int] = {}
    for file, index in files.items():
        parts = file.relative_to(base).with_suffix("").parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            index_of[name] = index if index_of.get(name, index) == index else _SEVERAL
    return index_of


def split_of_class_list(stem: str) -> str | None:
    """Return `train` for `cat_train`; None if the list of a class does not name a split."""
    split = stem.rpartition("_")[2]
    return split if is_split_name(split) else None


def read_list(file: Path, index_of: Mapping[str, int], findings: Findings) -> ImageList | None:
    """Read a list; None if it cannot be read.

    Args:
        file: The list.
        index_of: See `names_of`; -1 for annotations that have been left out.
        findings: Reports lines without an annotation.
    """
    try:
        lines = read_text(file, MAX_LIST_BYTES, "surrogateescape").split("\n")  # as in the names of files
    except (FileReadError, FileContentError) as error:
        findings.add("unreadable file", error, cause=error)
        return None
    indices, marks = [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = next((name for name in _spellings(line) if name in index_of), None)
        if name is None:
            stem, _, mark = line.strip().rpartition(" ")
            if mark in ("-1", "0", "1"):
                marks += 1
                name = next((name for name in _spellings(stem) if name in index_of), None)
        written = line.strip() if name is None else name
        if name is None or index_of[name] == _SEVERAL:
            problem = (
                f"but there is no annotation file {written}.xml"
                if name is None
                else "but several annotations end with it"
            )
            findings.error(
                "missing file",
                f"{file}, line {number}",
                f"names '{written}', {problem}",
                "add it, or remove the line" if name is None else "write its folder too",
                raises=DatasetNotFoundError,
            )
            continue
        indices.append(index_of[name])
    return ImageList([index for index in indices if index >= 0], of_class=marks > 0)


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
