"""Several pictures on one sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from modeling_detr.visualization.text import drawable, fitted, font_for


_GAP = 8
_MIN_TITLE_SIZE = 13


def tile(
    pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] | None = None, width: int | None = None
) -> Image.Image:
    """Arranges pictures in rows on a white sheet; those in a row are scaled to one height, so that they fill it.

    Args:
        pictures: At least one.
        columns: Pictures per row.
        titles: A title above each picture.
        width: Width of the sheet in pixels. None: that of the widest row, with each picture at least at its own size.

    Raises:
        ValueError: There are no pictures, or the number of titles differs.
    """
    if not pictures or (titles is not None and len(titles) != len(pictures)):
        raise ValueError(
            f"pictures: got {len(pictures)} with {len(titles or ())} titles, expected at least one picture, and one "
            f"title for each."
        )
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    shapes = [sum(picture.width / picture.height for picture in row) for row in rows]  # width at height 1
    if width is None:
        width = max(
            round(shape * max(picture.height for picture in row)) + _GAP * (len(row) - 1)
            for shape, row in zip(shapes, rows, strict=True)
        )
    heights = [(width - _GAP * (len(row) - 1)) / shape for shape, row in zip(shapes, rows, strict=True)]
    # Rows that need not be filled: the last one, and those of very narrow pictures.
    heights = [min(height, max(width, row[0].height)) for height, row in zip(heights, rows, strict=True)]
    if len(rows) > 1 and len(rows[-1]) < columns:
        heights[-1] = min(heights[-1], max(heights[:-1]))
    font_size = max(_MIN_TITLE_SIZE, round(min(heights) / 28))
    title_height = 0 if titles is None else round(1.7 * font_size)
    sheet_height = sum(round(height) + title_height + _GAP for height in heights) - _GAP
    sheet = Image.new("RGB", (width, sheet_height), "white")
    draw, index, y = ImageDraw.Draw(sheet), 0, 0
    for row, height in zip(rows, heights, strict=True):
        x = 0.0
        for picture in row:
            size = max(1, round(picture.width * height / picture.height)), max(1, round(height))
            if titles is not None:
                title = drawable(titles[index], limit=400)
                font = font_for(title, font_size)
                draw.text((x + 2, y + font_size * 1.2), fitted(title, font, size[0] - 4), "black", font, anchor="ls")
            scaled = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(scaled, (round(x), y + title_height))
            x, index = x + size[0] + _GAP, index + 1
        y += round(height) + title_height + _GAP
    return sheet
