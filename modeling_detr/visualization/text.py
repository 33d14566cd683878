"""Names from data as text in pictures: one short line, in a font that has its characters."""

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

from modeling_detr.errors_detr import printable


def drawable(text: str, limit: int = 60) -> str:
    """A text as one line of at most `limit` characters."""
    line = printable(text[: limit + 1])
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def legible(text: str, otherwise: str) -> str:
    """A text in characters that a font of this computer has: emoji become their names if need be.

    Args:
        text: The text to draw.
        otherwise: Returned if there is no font for the text.
    """
    if not missing_characters(text, font_file(text)):
        return text
    missing = missing_characters(text, font_file(""))
    spelled = "".join(_emoji_name(character) if character in missing else character for character in text)
    spelled = " ".join(spelled.split())
    return spelled if spelled and not missing_characters(spelled, font_file(spelled)) else otherwise


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A text shortened to at most `width` pixels: its end becomes an ellipsis."""
    if font.getlength(text) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and font.getlength(f"{text[:kept]}…") > width:
        kept -= 1
    return f"{text[:kept].rstrip()}…"


def font_for(text: str, size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib, or the font of the system that lacks the fewest characters of a text.

    Args:
        text: The text to draw.
        size: Size in pixels.
        bold: Whether DejaVu Sans is bold.
    """
    return _open(font_file(text, bold), size)


@lru_cache(maxsize=1024)
def font_file(text: str, bold: bool = False) -> str:
    """The file of the font that `font_for` opens."""
    import matplotlib as mpl

    own = str(Path(mpl.get_data_path(), "fonts/ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))
    if not missing_characters(text, own):
        return own
    return min([own, *system_fonts()], key=lambda file: len(missing_characters(text, file)))


@cache
def system_fonts() -> list[str]:
    """The fonts of the system: regular ones without serifs first, which resemble DejaVu Sans most."""
    from matplotlib.font_manager import findSystemFonts

    def rank(file: str) -> tuple[bool, bool, int, str]:
        name = Path(file).stem
        return "Regular" not in name, "Sans" not in name, len(name), file

    return sorted(findSystemFonts(), key=rank)


@lru_cache(maxsize=64)
def _open(file: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def missing_characters(text: str, file: str) -> set[str]:
    """The characters of a text that a font does not have, except those that show nothing by themselves."""
    characters = {character for character in text if not _is_invisible(character)}
    return characters - _characters(file)


@cache
def _characters(file: str) -> frozenset[str]:
    """All characters of a font; none if Pillow cannot draw with it."""
    from matplotlib.ft2font import FT2Font

    try:
        _open(file, 10)
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):  # a bitmap font, or a damaged one
        return frozenset()


def _is_invisible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cf", "Mn", "Sk")


def _emoji_name(character: str) -> str:
    """The name of an emoji, such as `cat face`; a character of a script stays as it is."""
    if unicodedata.category(character) != "So":
        return character
    return f" {unicodedata.name(character, character).lower()} "
