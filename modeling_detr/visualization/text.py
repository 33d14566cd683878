"""Names from data as text in pictures: one short line, in a font that has its characters."""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from modeling_detr.errors_detr import printable


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Family → file of fonts with many scripts; tried in this order, after Pillow's own font and Matplotlib's DejaVu Sans
SYSTEM_FONTS = {
    "Noto Sans CJK SC": "NotoSansCJK-Regular.ttc",
    "Noto Sans CJK JP": "NotoSansCJK-Regular.ttc",
    "Noto Sans Devanagari": "NotoSansDevanagari-Regular.ttf",
    "WenQuanYi Zen Hei": "wqy-zenhei.ttc",
    "Droid Sans Fallback": "DroidSansFallbackFull.ttf",
    "Arial Unicode MS": "Arial Unicode.ttf",  # macOS
    "Microsoft YaHei": "msyh.ttc",  # Windows
    "Nirmala UI": "Nirmala.ttc",
}


def drawable(text: str, limit: int = 60) -> str:
    """A text as one line of at most `limit` characters."""
    line = printable(text[: limit + 1])
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def font_for(text: str, size: float) -> Font:
    """The font that lacks the fewest characters of a text: Pillow's own, DejaVu Sans, or one of the system.

    Args:
        text: The text to draw.
        size: Size in pixels.
    """
    own = ImageFont.load_default(size)
    if _num_missing(own, text) == 0:
        return own
    fonts = [own, *(font for file in _font_files() if (font := _open(file, size)) is not None)]
    return min(fonts, key=lambda font: _num_missing(font, text))


def _font_files() -> list[str]:
    import matplotlib as mpl

    return [str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), *dict.fromkeys(SYSTEM_FONTS.values())]


@lru_cache(maxsize=64)
def _open(file: str, size: float) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except OSError:  # not installed
        return None


def _num_missing(font: Font, text: str) -> int:
    """The number of characters that a font shows as its sign for a missing one."""
    missing = _picture(font, "\uffff")  # no character, so no font has it
    return sum(not character.isspace() and _picture(font, character) == missing for character in set(text))


def _picture(font: Font, character: str) -> tuple[object, bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
