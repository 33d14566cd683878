"""Several pictures on one sheet or one HTML page."""

import base64
import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from modeling_detr.markup import html_head, html_text
from modeling_detr.visualization.text import drawable, font_for


def tile(pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] | None = None) -> Image.Image:
    """Arranges pictures in rows on a white sheet, in cells as large as the largest picture.

    Args:
        pictures: At least one.
        columns: Pictures per row.
        titles: A title above each picture.

    Raises:
        ValueError: There are no pictures, or the number of titles differs.
    """
    if not pictures or (titles is not None and len(titles) != len(pictures)):
        raise ValueError(
            f"pictures: got {len(pictures)} with {len(titles or ())} titles, expected at least one picture, and one "
            f"title for each."
        )
    gap = 8
    cell_width = max(picture.width for picture in pictures)
    cell_height = max(picture.height for picture in pictures)
    font_size = max(13, cell_height // 28)
    title_height = 0 if titles is None else 2 * font_size
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = columns * (cell_width + gap) - gap, rows * (cell_height + title_height + gap) - gap
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x = index % columns * (cell_width + gap)
        y = index // columns * (cell_height + title_height + gap)
        if titles is not None:
            title = _fitted(titles[index], font_size, cell_width - 8)
            draw.text((x + 4, y + font_size // 3), title, fill=(0, 0, 0), font=font_for(title, font_size))
        sheet.paste(picture, (x, y + title_height))
    return sheet


def _fitted(title: str, font_size: int, width: int) -> str:
    """A title as one line, with its middle left out if it is wider than `width` pixels."""
    shown = line = drawable(title, limit=400)
    font, kept = font_for(line, font_size), len(line) // 2
    while font.getlength(shown) > width and kept > 1:
        kept -= 1
        shown = f"{line[:kept]}…{line[-kept:]}"
    return shown


def gallery_html(heading: str, pictures: Sequence[Image.Image], titles: Sequence[str], columns: int) -> str:
    """Writes pictures in rows on a self-contained HTML page.

    Args:
        heading: Title of the page.
        pictures: The pictures; they are embedded as JPEG.
        titles: A caption below each picture.
        columns: Pictures per row.

    Returns:
        The HTML.
    """
    cells = []
    for picture, title in zip(pictures, titles, strict=True):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        text = html_text(title)
        cells.append(
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )
    style = (
        "body{font:14px sans-serif;margin:1em}"
        f"main{{display:grid;gap:8px;grid-template-columns:repeat({columns},1fr)}}"
        "figure{margin:0}img{width:100%}figcaption{overflow-wrap:anywhere}"
    )
    title = html_text(heading)
    return (
        f"{html_head(title, style)}\n<body><h1>{title}</h1>\n<main>\n" + "\n".join(cells) + "\n</main></body></html>\n"
    )
