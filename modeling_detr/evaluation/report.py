"""What an evaluation found, as JSON, Markdown and a web page that needs nothing else."""

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_detr.evaluation.coco import CocoMetrics
from modeling_detr.evaluation.panoptic import PanopticMetrics
from modeling_detr.evaluation.queries import QueryFigures


_Table = tuple[str, Sequence[str], list[Sequence[str]]]  # title, head, rows


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
        metrics: COCO's figures of the boxes.
        losses: Name → average over the images; empty if the batches had no labels.
        seconds: Time of the whole evaluation, loading of the images and COCO's figures included.
        images_per_second: Images over the time of loading and of the model, by all processes together.
        mask_metrics: COCO's figures of the masks; None if they were not judged.
        panoptic: Panoptic quality; None if it was not judged.
        queries: What the queries did, whatever they scored; None if nobody looked.
    """

    dataset: str
    num_images: int
    metrics: CocoMetrics
    losses: Mapping[str, float]
    seconds: float
    images_per_second: float
    mask_metrics: CocoMetrics | None = None
    panoptic: PanopticMetrics | None = None
    queries: QueryFigures | None = None

    @property
    def decisive(self) -> tuple[str, float]:
        """Name and value of the figure that says which of two models is better: PQ, else the AP of masks, else AP."""
        if self.panoptic is not None:
            return "PQ", self.panoptic.pq
        if self.mask_metrics is not None:
            return "mask AP", self.mask_metrics.ap
        return "AP", self.metrics.ap

    def figures(self) -> dict[str, float | None]:
        """The figures of the whole dataset under one name each, for a log: `ap` …, `mask_ap` …, `pq` …; and
        `object_queries` and `query_spread`, see `QueryFigures`."""
        found: dict[str, Any] = {**self.metrics.as_dict()}
        if self.mask_metrics is not None:
            found |= {f"mask_{name}": value for name, value in self.mask_metrics.as_dict().items()}
        if self.panoptic is not None:
            found |= {name: value for name, value in self.panoptic.as_dict().items() if name[:2] in ("pq", "sq", "rq")}
        if self.queries is not None:
            found |= {"object_queries": self.queries.object_queries, "query_spread": self.queries.spread}
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers for JSON, nan as None."""
        return {
            "dataset": self.dataset,
            "num_images": self.num_images,
            "metrics": self.metrics.as_dict(),
            **({} if self.mask_metrics is None else {"mask_metrics": self.mask_metrics.as_dict()}),
            **({} if self.panoptic is None else {"panoptic": self.panoptic.as_dict()}),
            **({} if self.queries is None else {"queries": dataclasses.asdict(self.queries)}),
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
        """The figures and those of each class, as text for a terminal; with titles where there are several kinds."""
        tables = self._metric_tables()
        titled = len(tables) > 2
        texts = [(f"{title}:\n\n" if titled else "") + _markdown_table(head, rows) for title, head, rows in tables]
        return "\n\n".join(texts)

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
        if self.mask_metrics is not None:
            figures += f", mask AP {_number(self.mask_metrics.ap)}"
        if self.panoptic is not None:
            figures += f", PQ {_number(self.panoptic.pq)}"
        return f"{self.num_images} images in {self.seconds:.1f} s ({speed}). {figures}."

    def _tables(self) -> list[_Table]:
        tables = self._metric_tables()
        if self.losses:
            losses = [(name, f"{loss:.4f}") for name, loss in self.losses.items()]
            tables.append(("Losses", ("loss", "average"), [*losses]))
        return tables

    def _metric_tables(self) -> list[_Table]:
        tables = _panoptic_tables(self.panoptic) if self.panoptic is not None else []
        tables += _coco_tables(self.metrics, "COCO", "Classes", "boxes")
        if self.mask_metrics is not None:
            tables += _coco_tables(self.mask_metrics, "COCO, masks", "Classes, masks", "masks")
        return tables


def _coco_tables(metrics: CocoMetrics, title: str, title_of_classes: str, objects: str) -> list[_Table]:
    """COCO's figures, and those of the classes that were judged and have ground truth."""
    figures = [
        (name, iou, sizes, str(detections), _number(getattr(metrics, key)))
        for key, name, iou, sizes, detections in _FIGURES
    ]
    classes = [
        (name, str(one.num_boxes), _number(one.ap), _number(one.ap50), _number(one.ap75), _number(one.ar_100))
        for name, one in metrics.per_class.items()
        if one.num_boxes > 0 and not math.isnan(one.ap)
    ]
    return [
        (title, ("figure", "IoU", "objects", "detections", "value"), [*figures]),
        (title_of_classes, ("class", objects, "AP", "AP50", "AP75", "AR 100"), [*classes]),
    ]


def _panoptic_tables(metrics: PanopticMetrics) -> list[_Table]:
    """PQ, SQ and RQ of all, things and stuff, and of the classes that there is something to match of."""
    groups = [
        ("all", metrics.pq, metrics.sq, metrics.rq, metrics.num_classes),
        ("things", metrics.pq_things, metrics.sq_things, metrics.rq_things, metrics.num_things),
        ("stuff", metrics.pq_stuff, metrics.sq_stuff, metrics.rq_stuff, metrics.num_stuff),
    ]
    figures = [(name, _number(pq), _number(sq), _number(rq), str(number)) for name, pq, sq, rq, number in groups]
    classes = [
        (
            name,
            "thing" if one.is_thing else "stuff",
            *map(_number, (one.pq, one.sq, one.rq)),
            *map(str, (one.true_positives, one.false_positives, one.false_negatives)),
        )
        for name, one in metrics.per_class.items()
        if not math.isnan(one.pq)
    ]
    head = ("class", "kind", "PQ", "SQ", "RQ", "found", "wrong", "missed")
    return [
        ("Panoptic quality", ("of", "PQ", "SQ", "RQ", "classes"), [*figures]),
        ("Panoptic quality of the classes", head, [*classes]),
    ]


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
