"""What an evaluation found, as JSON, Markdown and a web page that needs nothing else."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_detr.evaluation.coco import CocoMetrics


# Figure, what COCO calls it, at which IoU, of which objects, detections an image.
_FIGURES = (
    ("ap", "AP", ".50:.95", "all", 100),
    ("ap50", "AP50", ".50", "all", 100),
    ("ap75", "AP75", ".75", "all", 100),
    ("ap_small", "AP small", ".50:.95", "area < 32²", 100),
    ("ap_medium", "AP medium", ".50:.95", "32² to 96²", 100),
    ("ap_large", "AP large", ".50:.95", "area > 96²", 100),
    ("ar_1", "AR 1", ".50:.95", "all", 1),
    ("ar_10", "AR 10", ".50:.95", "all", 10),
    ("ar_100", "AR 100", ".50:.95", "all", 100),
    ("ar_small", "AR small", ".50:.95", "area < 32²", 100),
    ("ar_medium", "AR medium", ".50:.95", "32² to 96²", 100),
    ("ar_large", "AR large", ".50:.95", "area > 96²", 100),
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 2rem; }
th, td { padding: 0.2rem 0.9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
"""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The outcome of one evaluation.

    Attributes:
        dataset: What the dataset is called.
        num_images: Images that went through the model.
        metrics: COCO's figures.
        losses: Name → average over the images; empty if the batches had no labels.
        seconds: Time of the whole evaluation, loading of the images and COCO's figures included.
        images_per_second: Images over the time of loading and of the model, by all processes together.
    """

    dataset: str
    num_images: int
    metrics: CocoMetrics
    losses: Mapping[str, float]
    seconds: float
    images_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers for JSON, nan as None."""
        return {
            "dataset": self.dataset,
            "num_images": self.num_images,
            "metrics": self.metrics.as_dict(),
            "losses": {name: loss if math.isfinite(loss) else None for name, loss in self.losses.items()},
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown; its tables read well in a terminal too."""
        parts = [f"# Evaluation of {self.dataset}", self.summary()]
        for title, head, rows in self._tables():
            parts += [f"## {title}", _markdown_table(head, rows)]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """The report as one HTML file without anything from outside."""
        tables = "".join(
            f"<h2>{html.escape(title)}</h2>{_html_table(head, rows)}" for title, head, rows in self._tables()
        )
        title = html.escape(f"Evaluation of {self.dataset}")
        return (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
            f"</head><body><h1>{title}</h1><p>{html.escape(self.summary())}</p>{tables}</body></html>\n"
        )

    def metrics_table(self) -> str:
        """COCO's twelve figures and those of each class, as text for a terminal."""
        return "\n\n".join(_markdown_table(head, rows) for _, head, rows in self._tables()[:2])

    def save(self, folder: Path) -> list[Path]:
        """Writes `evaluation.json`, `.md` and `.html` into `folder`, and returns where they are."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for suffix, text in (("json", self.to_json()), ("md", self.to_markdown()), ("html", self.to_html())):
            written.append(folder / f"evaluation.{suffix}")
            written[-1].write_text(text, encoding="utf-8")
        return written

    def summary(self) -> str:
        """How many images, how fast, how well: one line."""
        speed = f"{self.images_per_second:.1f} images/s through the model"
        figures = f"AP {_number(self.metrics.ap)}, AP50 {_number(self.metrics.ap50)}"
        return f"{self.num_images} images in {self.seconds:.1f} s ({speed}). {figures}."

    def _tables(self) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
        """Title, head and rows of each table."""
        figures = [
            (name, iou, objects, str(detections), _number(getattr(self.metrics, key)))
            for key, name, iou, objects, detections in _FIGURES
        ]
        classes = [
            (name, str(one.num_boxes), _number(one.ap), _number(one.ap50), _number(one.ap75), _number(one.ar_100))
            for name, one in self.metrics.per_class.items()
            if one.num_boxes > 0
        ]
        tables: list[tuple[str, Sequence[str], list[Sequence[str]]]] = [
            ("COCO", ("figure", "IoU", "objects", "detections", "value"), [*figures]),
            ("Classes", ("class", "boxes", "AP", "AP50", "AP75", "AR 100"), [*classes]),
        ]
        if self.losses:
            losses = [(name, f"{loss:.4f}") for name, loss in self.losses.items()]
            tables.append(("Losses", ("loss", "average"), [*losses]))
        return tables


def _number(value: float) -> str:
    """A figure with three digits; a dash where there is no ground truth."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned, the first to the left, numbers to the right."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
