"""Pictures: detections and segments drawn on images, predictions beside the truth, and the curves of training runs.

Shapes: K boxes of one image · H, W pixels. Boxes are corners (xyxy) in pixels of the image they are drawn on.
"""

import base64
import colorsys
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from modeling_detr.image_processing_detr import RawImage, to_rgb
from modeling_detr.structures_detr import DetectionResult, PanopticResult


Colour = tuple[int, int, int]

_LEAST_NAMED = 0.002  # of the image: smaller segments are tinted but not named
_GOLDEN_RATIO = 0.618034  # steps of it around the colour wheel keep any number of classes apart


def class_colour(label: int) -> Colour:
    """The colour of a class, the same in every picture; neighbouring labels are far apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * _GOLDEN_RATIO) % 1, (0.9, 0.65)[label // 12 % 2], 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: RawImage,
    boxes_xyxy: Tensor,
    labels: Tensor,
    scores: Tensor | None = None,
    id2label: Mapping[int, str] | None = None,
    *,
    masks: Tensor | None = None,
    shortest_side: int = 480,
) -> Image.Image:
    """The image with a labelled box, and where there are masks a tinted region, for each object.

    Args:
        image: Any image, see `to_rgb`.
        boxes_xyxy: (K, 4) corners in pixels of `image`.
        labels: (K,) integers.
        scores: (K,) in [0, 1], written behind the name; the surest is drawn last, on top. None: not written.
        id2label: Names of the classes; without, the numbers are written.
        masks: (K, H, W) bool, of the image's size. None: boxes only.
        shortest_side: A smaller image is first enlarged to this, so that text can be read.

    Returns:
        An RGB picture, the image's size or larger.

    Raises:
        ValueError: There are not as many labels, scores or masks as boxes, or masks are not of the image's size.
    """
    if len(labels) != len(boxes_xyxy) or (scores is not None and len(scores) != len(boxes_xyxy)):
        got = f"{len(boxes_xyxy)} boxes, {len(labels)} labels" + (
            f", {len(scores)} scores" if scores is not None else ""
        )
        raise ValueError(f"{got}: wanted one of each for every object.")
    pixels = to_rgb(image).permute(1, 2, 0).cpu().numpy()
    order = range(len(labels)) if scores is None else torch.as_tensor(scores).argsort().tolist()
    picture, scale = _enlarged(pixels, shortest_side)
    if masks is not None:
        if masks.shape != (len(labels), *pixels.shape[:2]):
            raise ValueError(
                f"masks of shape {tuple(masks.shape)}; wanted {(len(labels), *pixels.shape[:2])}, one for each object "
                f"at the image's size."
            )
        segments = np.full(pixels.shape[:2], -1, np.int64)
        for row in order:
            segments[masks[row].cpu().numpy().astype(bool)] = row
        colours = {row: class_colour(int(labels[row])) for row in range(len(labels))}
        picture = _tinted(picture, segments, colours)
    draw = ImageDraw.Draw(picture)
    line_width = max(2, round(min(picture.size) / 200))
    font = _font(picture)
    for row in order:
        label = int(labels[row])
        x0, y0, x1, y1 = (float(corner) * scale for corner in boxes_xyxy[row])
        colour = class_colour(label)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=line_width)
        text = id2label.get(label, str(label)) if id2label is not None else str(label)
        if scores is not None:
            text = f"{text} {float(scores[row]):.2f}"
        _draw_tag(draw, picture.size, (x0, y0), text, colour, font)
    return picture


def _font(picture: Image.Image) -> Any:
    return ImageFont.load_default(max(13, round(min(picture.size) / 32)))


def _enlarged(pixels: NDArray[np.uint8], shortest_side: int) -> tuple[Image.Image, float]:
    """The picture of `pixels` (H, W, 3), at least of that size, and by how much it was enlarged."""
    picture = Image.fromarray(pixels)
    scale = max(1.0, shortest_side / min(picture.size))
    if scale > 1:
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return picture, scale


def _tinted(picture: Image.Image, segments: NDArray[np.int64], colours: Mapping[int, Colour]) -> Image.Image:
    """The picture with each segment in its colour, half transparent, and a line around it.

    Args:
        picture: The picture.
        segments: (H, W) the segment of each pixel; those without a colour are left as they are.
        colours: Segment → colour.
    """
    rows = (np.arange(picture.height) * segments.shape[0] / picture.height).astype(np.int64)
    columns = (np.arange(picture.width) * segments.shape[1] / picture.width).astype(np.int64)
    segments = segments[rows][:, columns]
    pixels = np.asarray(picture).astype(np.float32)
    inside = np.isin(segments, list(colours))
    edge = np.zeros_like(inside)
    width = max(1, min(picture.size) // 300)
    for axis in (0, 1):
        for shift in range(1, width + 1):
            edge |= segments != np.roll(segments, shift, axis)
    edge[:width], edge[:, :width] = False, False  # where the picture's own border would meet the opposite one
    for number, colour in colours.items():
        here = segments == number
        pixels[here] = 0.5 * pixels[here] + 0.5 * np.array(colour, np.float32)
        pixels[here & edge] = np.array(colour, np.float32) * 0.5
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_panoptic(
    image: RawImage,
    panoptic: PanopticResult,
    id2label: Mapping[int, str] | None = None,
    *,
    shortest_side: int = 480,
) -> Image.Image:
    """The image with every segment tinted and named: stuff in the colour of its class, things each in a shade of it.

    Args:
        image: Any image, see `to_rgb`.
        panoptic: The segments, at the image's size; pixels of no segment are left as they are.
        id2label: Names of the classes; without, the numbers are written.
        shortest_side: See `draw_detections`.

    Returns:
        An RGB picture, the image's size or larger.

    Raises:
        ValueError: The segments are not of the image's size.
    """
    pixels = to_rgb(image).permute(1, 2, 0).cpu().numpy()
    segments = panoptic["segmentation"].cpu().numpy().astype(np.int64)
    if segments.shape != pixels.shape[:2]:
        raise ValueError(f"segmentation of shape {segments.shape}; wanted the image's size {pixels.shape[:2]}.")
    picture, scale = _enlarged(pixels, shortest_side)
    colours: dict[int, Colour] = {}
    seen: Counter[int] = Counter()
    for info in panoptic["segments_info"]:
        shade = (1.0, 0.7, 0.85, 0.55)[seen[info["label_id"]] % 4]
        red, green, blue = class_colour(info["label_id"])
        colours[info["id"]] = round(red * shade), round(green * shade), round(blue * shade)
        seen[info["label_id"]] += 1
    picture = _tinted(picture, segments, colours)
    draw = ImageDraw.Draw(picture)
    font = _font(picture)
    for info in panoptic["segments_info"]:
        here = segments == info["id"]
        if here.mean() < _LEAST_NAMED:
            continue
        x, y = _middle(here)
        label = info["label_id"]
        text = id2label.get(label, str(label)) if id2label is not None else str(label)
        if info.get("score") is not None:
            text = f"{text} {info['score']:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        corner = x * scale - (right - left) / 2, y * scale + (bottom - top) / 2
        _draw_tag(draw, picture.size, corner, text, colours[info["id"]], font)
    return picture


def _middle(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """x and y of the pixel that lies deepest in a mask (H, W), to a few pixels: it is looked for in a smaller one."""
    from scipy.ndimage import distance_transform_edt

    step = max(1, min(mask.shape) // 120)
    small = np.pad(mask[step // 2 :: step, step // 2 :: step], 1)
    if not small.any():
        row, column = np.argwhere(mask)[0]
        return float(column), float(row)
    row, column = np.unravel_index(int(distance_transform_edt(small).argmax()), small.shape)
    return float((column - 1) * step + step // 2), float((row - 1) * step + step // 2)


def draw_panoptic_comparison(
    image: RawImage,
    predicted: PanopticResult,
    truth: PanopticResult,
    id2label: Mapping[int, str] | None = None,
    *,
    shortest_side: int = 480,
) -> Image.Image:
    """The image twice, side by side: the predicted segments and the true ones; see `draw_panoptic`."""
    pictures = [draw_panoptic(image, side, id2label, shortest_side=shortest_side) for side in (predicted, truth)]
    return tile(pictures, columns=2, titles=["predicted", "truth"])


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    picture_size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    font: Any,
) -> None:
    """Writes `text` on its own ground above the corner of a box, or inside the box where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = 3
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = min(max(corner[0], 0), max(0, picture_size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(max(corner[1], 0), max(0, picture_size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + margin - left, y + margin - top), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


def draw_comparison(
    image: RawImage,
    predicted: DetectionResult,
    true_boxes_xyxy: Tensor,
    true_labels: Tensor,
    id2label: Mapping[int, str] | None = None,
    *,
    true_masks: Tensor | None = None,
    threshold: float = 0.5,
    shortest_side: int = 480,
) -> Image.Image:
    """The image twice, side by side: what was predicted with a score of `threshold` or more, and the truth.

    Args:
        image: Any image, see `to_rgb`.
        predicted: The detections, boxes in pixels of `image`; their masks are drawn if they have some.
        true_boxes_xyxy: (N, 4) corners in pixels of `image`.
        true_labels: (N,) integers.
        id2label: Names of the classes.
        true_masks: (N, H, W) bool; None: the truth has boxes only.
        threshold: Detections of a lower score are not drawn.
        shortest_side: See `draw_detections`.
    """
    sure = predicted["scores"] >= threshold
    boxes, labels, scores = predicted["boxes"][sure], predicted["labels"][sure], predicted["scores"][sure]
    masks = predicted["masks"][sure] if "masks" in predicted else None
    left = draw_detections(image, boxes, labels, scores, id2label, masks=masks, shortest_side=shortest_side)
    right = draw_detections(
        image, true_boxes_xyxy, true_labels, None, id2label, masks=true_masks, shortest_side=shortest_side
    )
    return tile([left, right], columns=2, titles=["predicted", "truth"])


def tile(pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] | None = None) -> Image.Image:
    """Pictures in rows of `columns`, each in a cell of the largest one's size, on white.

    Args:
        pictures: At least one.
        columns: Pictures in a row.
        titles: What to write above each.

    Raises:
        ValueError: There are no pictures, or not as many titles.
    """
    if not pictures or (titles is not None and len(titles) != len(pictures)):
        raise ValueError(
            f"{len(pictures)} pictures, {len(titles or ())} titles; wanted at least one, and a title each."
        )
    gap = 8
    cell_width = max(picture.width for picture in pictures)
    cell_height = max(picture.height for picture in pictures)
    font_size = max(13, cell_height // 28)
    head = 0 if titles is None else 2 * font_size
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = columns * (cell_width + gap) - gap, rows * (cell_height + head + gap) - gap
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        x = number % columns * (cell_width + gap)
        y = number // columns * (cell_height + head + gap)
        if titles is not None:
            draw.text(
                (x + 4, y + font_size // 3), titles[number], fill=(0, 0, 0), font=ImageFont.load_default(font_size)
            )
        sheet.paste(picture, (x, y + head))
    return sheet


def gallery_html(heading: str, pictures: Sequence[Image.Image], titles: Sequence[str], columns: int) -> str:
    """Pictures in rows of `columns` as one page that needs no other file.

    Args:
        heading: Title of the page.
        pictures: What is shown.
        titles: What stands under each.
        columns: Pictures in a row.
    """
    cells = []
    for picture, title in zip(pictures, titles, strict=True):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        text = html.escape(title)
        cells.append(
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )
    style = (
        "body{font:14px sans-serif;margin:1em}"
        f"main{{display:grid;gap:8px;grid-template-columns:repeat({columns},1fr)}}"
        "figure{margin:0}img{width:100%}figcaption{overflow-wrap:anywhere}"
    )
    title = html.escape(heading)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"</head>\n<body><h1>{title}</h1>\n<main>\n" + "\n".join(cells) + "\n</main></body></html>\n"
    )


# Panel title → the figures in it, solid and dashed.
_PANELS = {
    "loss (dashed: evaluation)": ("loss", "eval_loss"),
    "class loss": ("loss_ce",),
    "box loss (L1)": ("loss_bbox",),
    "box loss (generalised IoU)": ("loss_giou",),
    "mask loss (focal)": ("loss_mask",),
    "mask loss (dice)": ("loss_dice",),
    "class error, %": ("class_error",),
    "AP (solid), AP50 (dashed)": ("ap", "ap50"),
    "mask AP (solid), AP50 (dashed)": ("mask_ap", "mask_ap50"),
    "PQ (solid), of things (dashed)": ("pq", "pq_things"),
}


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Draws loss terms, class error and AP over the epochs, one colour a run.

    Args:
        runs: Name of each run → the entries of its `log.jsonl`; those of kind `"epoch"` are drawn.
        path: Where the picture goes; its suffix is the format (png, svg, pdf …).

    Returns:
        `path`.

    Raises:
        ValueError: There are no runs, or one has no epoch to draw yet.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, nothing kept open

    epochs = {name: [entry for entry in entries if entry.get("kind") == "epoch"] for name, entries in runs.items()}
    empty = [name for name, entries in epochs.items() if not entries]
    if empty or not epochs:
        raise ValueError(
            f"Nothing to draw: {', '.join(empty) or 'no runs were given'}; wanted at least one whole epoch."
        )
    logged = {key for entries in epochs.values() for entry in entries for key in entry}
    panels = {title: keys for title, keys in _PANELS.items() if logged & set(keys)}
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows + 0.5), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        for number, entries in enumerate(epochs.values()):
            for key, style in zip(keys, ("-", "--"), strict=False):
                points = [(entry["epoch"], entry[key]) for entry in entries if entry.get(key) is not None]
                marker = "." if len(points) < 40 else ""
                axes.plot(
                    *zip(*points, strict=True), style, marker=marker, color=f"C{number % 10}"
                ) if points else None
    for unused in figure.axes[len(panels) :]:
        unused.remove()
    for number, name in enumerate(epochs):
        figure.axes[0].plot([], [], color=f"C{number % 10}", label=name)
    figure.legend(loc="outside lower center", ncols=min(4, len(epochs)), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
