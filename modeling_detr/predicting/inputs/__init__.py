"""What `detr predict` takes: each kind of input is a file and a line in `INPUTS`.

A kind turns the text that the user passed into images. The latest additions are tried first:

    INPUTS["zip"] = InputKind(is_zip, images_in_zip)
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from modeling_detr.atomic_output import output_stem
from modeling_detr.predicting.inputs.files import find_files, is_anything
from modeling_detr.predicting.inputs.input_image import FoundImage, InputImage
from modeling_detr.predicting.inputs.standard_input import find_in_standard_input, is_standard_input
from modeling_detr.predicting.inputs.web import find_on_the_web, is_url


__all__ = ["INPUTS", "FoundImage", "InputImage", "InputKind", "find_inputs", "named"]


_OUTPUT_FOLDERS = ("segments", "crops")  # whose files could be taken for pictures
_MAX_SUFFIX = 12  # characters; URLs may have any


class InputKind(NamedTuple):
    """A kind of input.

    matches: whether a text that the user passed is of this kind. find: `find(text, ignored)`: the images, without
    those in the folder `ignored`.
    """

    matches: Callable[[str], bool]
    find: Callable[[str, Path | None], Iterable[FoundImage]]


INPUTS: dict[str, InputKind] = {
    "files": InputKind(is_anything, find_files),
    "url": InputKind(is_url, find_on_the_web),
    "standard_input": InputKind(is_standard_input, find_in_standard_input),
}


def find_inputs(inputs: Iterable[str], ignored: Path | None = None) -> list[InputImage]:
    """The images that the user asked for, each once, with unique names.

    Args:
        inputs: Texts of the kinds in `INPUTS`.
        ignored: A folder that is not searched: that of the results, with the pictures of earlier calls.

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
    sources: set[str] = set()
    for image in found:
        if image.source in sources:
            continue
        sources.add(image.source)
        name, number = _apart_from_outputs(image.name), 2
        stem, suffix = output_stem(str(name)), name.suffix[:_MAX_SUFFIX]
        unique = name.with_name(stem + suffix)
        while unique.with_suffix("").as_posix().casefold() in taken:
            unique, number = name.with_name(f"{stem}_{number}{suffix}"), number + 1
        taken.add(unique.with_suffix("").as_posix().casefold())
        yield InputImage(unique.as_posix(), image.source, image.opener, image.record)


def _apart_from_outputs(name: PurePath) -> PurePath:
    first, *others = name.parts
    return PurePath(f"{first}_2", *others) if others and first.casefold() in _OUTPUT_FOLDERS else name


def _kind_of(text: str) -> InputKind:
    return next(kind for kind in reversed(INPUTS.values()) if kind.matches(text))
