"""What `detr predict` takes: each kind of input is a file and a line in `INPUTS`.

A kind turns the text that the user passed into images. The latest additions are tried first:

    INPUTS["zip"] = InputKind(is_zip, images_in_zip)
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from modeling_detr.atomic_output import output_stem
from modeling_detr.predicting.inputs.files import find_files, is_anything
from modeling_detr.predicting.inputs.input_image import FoundImage, InputImage
from modeling_detr.predicting.inputs.standard_input import find_in_standard_input, is_standard_input
from modeling_detr.predicting.inputs.web import find_on_the_web, is_url
from modeling_detr.predicting.journal import FOLDER as UNFINISHED


__all__ = ["INPUTS", "FoundImage", "InputImage", "InputKind", "find_inputs", "named"]


_OUTPUT_FOLDERS = ("segments", "crops", UNFINISHED)  # whose files could be taken for pictures, and the journal's
_MAX_SUFFIX = 12  # characters; URLs may have any


class InputKind(NamedTuple):
    """A kind of input.

    matches: whether a text that the user passed is of this kind. find: `find(text, ignored)`: the images, without
    those in the folders `ignored`.
    """

    matches: Callable[[str], bool]
    find: Callable[[str, Sequence[Path]], Iterable[FoundImage]]


INPUTS: dict[str, InputKind] = {
    "files": InputKind(is_anything, find_files),
    "url": InputKind(is_url, find_on_the_web),
    "standard_input": InputKind(is_standard_input, find_in_standard_input),
}


def find_inputs(inputs: Iterable[str], ignored: Sequence[Path] = ()) -> list[InputImage]:
    """The images that the user asked for, each once, with unique names.

    Args:
        inputs: Texts of the kinds in `INPUTS`.
        ignored: Folders that are not searched: those of results, with the pictures of earlier calls.

    Raises:
        ValueError: An input does not exist, is not an image, or contains no images.
    """
    found = itertools.chain.from_iterable(_kind_of(text).find(text, ignored) for text in inputs)
    return [*named(found)]


def named(found: Iterable[FoundImage]) -> Iterator[InputImage]:
    """Gives each image a name of its own, and leaves out those that occur again.

    Names that differ in case or suffix only would share a file somewhere, so they get numbers: `a.jpg`, `a_2.png`.
    Folders named like those of other outputs get another name.
    """
    taken: set[str] = set()
    next_number: dict[PurePath, int] = defaultdict(lambda: 2)
    sources: set[str] = set()
    for image in found:
        if image.source in sources:
            continue
        sources.add(image.source)
        name = _inside_the_results(image.name)
        stem, suffix = output_stem(str(name)), name.suffix[:_MAX_SUFFIX]
        unique = name.with_name(stem + suffix)
        while taken.intersection(_file_names(unique)):
            unique = name.with_name(f"{stem}_{next_number[name]}{suffix}")
            next_number[name] += 1
        taken.update(_file_names(unique))
        yield InputImage(unique.as_posix(), image.source, image.opener, image.record, image.version)


def _inside_the_results(name: PurePath) -> PurePath:
    """A name for files that lie in the folder of the results, apart from those of other outputs."""
    first, *others = (part for part in name.parts if part not in ("..", name.anchor))
    return PurePath(f"{first}_2" if others and first.casefold() in _OUTPUT_FOLDERS else first, *others)


def _file_names(name: PurePath) -> tuple[str, str]:
    """What the names of an image's files begin with: `a.txt`, or `a.bmp.png`, the picture of `a.bmp`."""
    return name.with_suffix("").as_posix().casefold(), name.as_posix().casefold()


def _kind_of(text: str) -> InputKind:
    return next(kind for kind in reversed(INPUTS.values()) if kind.matches(text))
