"""The result of an evaluation as JSON, Markdown and a self-contained web page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.atomic_output import replace_text
from modeling_detr.evaluation.loss_names import EARLIER_LAYERS, loss_tables
from modeling_detr.evaluation.metrics import Metric, Metrics, MetricTable
from modeling_detr.markup import markdown_cell, markdown_text
from modeling_detr.pages import Fact, Page, Section, Table


REPORT_PAGE = "evaluation.html"
REPORT_FILES = ("evaluation.json", "evaluation.md", REPORT_PAGE)
NO_OBJECTS = "The images have no object to find (crowd regions do not count), so these metrics have no value."
_LONGEST_CELL = 100  # characters


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The result of one evaluation.

    Attributes:
        dataset: Name of the dataset.
        num_images: Number of images that went through the model.
        results: `Metrics.key` → the result of that evaluator, in the order of the evaluators.
        losses: Name → loss of all images as one batch; empty if the batches had no labels.
        seconds: Duration of the whole evaluation, including loading images and computing metrics.
        images_per_second: Throughput of loading and model together, over all processes.
    """

    dataset: str
    num_images: int
    results: Mapping[str, Metrics]
    losses: Mapping[str, float]
    seconds: float
    images_per_second: float

    @property
    def primary_metric(self) -> Metric:
        """The metric that decides which model is best: the first of the result with the highest priority.

        Raises:
            ValueError: No result has a headline metric.
        """
        ranked = [result for result in self._by_priority() if result.headline()]
        if not ranked:
            raise ValueError(
                f"Evaluation of {self.dataset}: no evaluator has a headline metric, so models cannot be compared."
            )
        return ranked[0].headline()[0]

    @property
    def has_no_objects(self) -> bool:
        """Whether there was nothing to find, so that no headline metric has a value."""
        headline = self.headline()
        return bool(headline) and all(math.isnan(metric.value) for metric in headline)

    def headline(self) -> list[Metric]:
        """The headline metrics of every result, such as AP, AP50, mask AP and PQ."""
        return [metric for result in self.results.values() for metric in result.headline()]

    def log_values(self) -> dict[str, object]:
        """What the training log records: `ap` …, `mask_ap` …, `pq` …, `object_queries` …; NaN as None."""
        return {name: value for result in self.results.values() for name, value in result.log_values().items()}

    def as_dict(self) -> dict[str, object]:
        """Everything as plain values for JSON, NaN as None."""
        return {
            "dataset": self.dataset,
            "num_images": self.num_images,
            **{key: result.as_dict() for key, result in self.results.items()},
            "losses": {name: loss if math.isfinite(loss) else None for name, loss in self.losses.items()},
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown; its tables are readable in a terminal too."""
        parts = [f"# Evaluation of {markdown_text(self.dataset)}", self.summary()]
        for table in [*self._metric_tables(), *loss_tables(self.losses)]:
            parts += [f"## {table.title}", _markdown_table(table)]
        return "\n\n".join(parts) + "\n"

    def to_html(self, facts: Sequence[Fact] = (), sections: Sequence[Section] = ()) -> str:
        """The report as one HTML file that loads nothing else.

        Args:
            facts: Lines for the head of the page, such as the model and the command; see `provenance`.
            sections: What to show after the metrics, such as pictures.
        """
        losses = [
            Section(table.title, [Table(table.header, table.rows)], folded=table.title == EARLIER_LAYERS)
            for table in loss_tables(self.losses)
        ]
        results = sorted(self._results_in_order(), key=lambda result: not result.leads_page)
        metrics = [section for result in results for section in result.sections()]
        return Page(
            title=f"Evaluation of {self.dataset}",
            sections=[*metrics, *sections, *losses],
            highlights=[(_cell(metric.value), metric.name) for metric in self.headline()],
            facts=facts,
            summary=self.scope() + (f" {NO_OBJECTS}" if self.has_no_objects else ""),
        ).to_html()

    def metrics_table(self) -> str:
        """The tables of all results as text for a terminal; with titles if there are several results."""
        tables = self._metric_tables()
        titled = sum(bool(result.tables()) for result in self.results.values()) > 1
        texts = [(f"{table.title}:\n\n" if titled else "") + _markdown_table(table) for table in tables]
        return "\n\n".join(texts)

    def save(self, folder: Path, facts: Sequence[Fact] = (), sections: Sequence[Section] = ()) -> list[Path]:
        """Writes `evaluation.json`, `.md` and `.html` into `folder` and returns their paths.

        Args:
            folder: The folder.
            facts: See `to_html`.
            sections: See `to_html`.

        Raises:
            OutputError: A file cannot be written.
        """
        files = [folder / name for name in REPORT_FILES]
        for file, text in zip(files, (self.to_json(), self.to_markdown(), self.to_html(facts, sections)), strict=True):
            replace_text(file, text)
        return files

    def summary(self) -> str:
        """Number of images, speed and headline metrics in one line."""
        metrics = ", ".join(f"{metric.name} {_cell(metric.value)}" for metric in self.headline())
        return self.scope() + (f" {metrics}." if metrics else "") + (f" {NO_OBJECTS}" if self.has_no_objects else "")

    def scope(self) -> str:
        """Number of images and speed in one sentence."""
        speed = f"{self.images_per_second:.1f} images/s through the model"
        return f"{self.num_images} images in {self.seconds:.1f} s ({speed})."

    def _by_priority(self) -> list[Metrics]:
        return sorted(self.results.values(), key=lambda result: result.priority, reverse=True)

    def _metric_tables(self) -> list[MetricTable]:
        return [table for result in self._results_in_order() for table in result.tables()]

    def _results_in_order(self) -> list[Metrics]:
        """The result with the highest priority, then the others in their order."""
        return sorted(self.results.values(), key=lambda result: result is not self._by_priority()[0])


def _cell(value: str | int | float) -> str:
    """The text of a table's cell: floats with three decimals, NaN as a dash, very long names shortened."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    text = str(value)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def _markdown_table(table: MetricTable) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    cells = [[markdown_cell(_cell(cell)) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])
