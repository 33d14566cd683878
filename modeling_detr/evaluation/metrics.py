"""The results of evaluators, in a form that the report, the training log, the model card and model selection share."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modeling_detr.pages import Section, Table
from modeling_detr.structures_detr import DetectionIndex


@dataclass(frozen=True, slots=True)
class Metric:
    """A single number that describes a model on a whole dataset.

    Attributes:
        key: Its name in the training log, such as `mask_ap`.
        name: Its name in text, such as `mask AP`.
        value: NaN if there is no ground truth.
        hub_type: Its type in the metadata of a model card, such as `mAP`; if empty, `name` is used.
    """

    key: str
    name: str
    value: float
    hub_type: str = ""


@dataclass(frozen=True, slots=True)
class MetricTable:
    """A table for people to read.

    Attributes:
        title: Its heading.
        header: Names of the columns; the first column is aligned left, the others right.
        rows: The cells: text, integers, or floats (shown with three decimals, NaN as a dash).
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Base class for the results of an evaluator: a subclass is a frozen dataclass that sets `key` and `headline`.

    Attributes:
        key: Name of its section in `evaluation.json`.
        priority: Of all results in a report, the one with the highest priority decides which model is best.
        leads_page: Whether the web page begins with its sections.
    """

    key: ClassVar[str]
    priority: ClassVar[int] = 0
    leads_page: ClassVar[bool] = False

    def headline(self) -> Sequence[Metric]:
        """The metrics shown in summaries and in the log line of an epoch, the primary one first."""
        return ()

    def model_card_metrics(self) -> Sequence[Metric]:
        """The metrics in the metadata of a model card."""
        return self.headline()

    def tables(self) -> Sequence[MetricTable]:
        """The tables of the report; by default one with the headline metrics."""
        rows = [(metric.name, metric.value) for metric in self.headline()]
        return (MetricTable(self.key.capitalize(), ("metric", "value"), rows),) if rows else ()

    def sections(self) -> Sequence[Section]:
        """The sections of the web page; by default one for each table."""
        return [Section(table.title, [Table(table.header, table.rows)]) for table in self.tables()]

    def log_values(self) -> dict[str, object]:
        """What the training log records, with unique names; by default the headline metrics, NaN as None."""
        return {metric.key: nan_to_none(metric.value) for metric in self.headline()}

    def as_dict(self) -> dict[str, object]:
        """All fields as plain values for JSON, NaN as None."""
        return {field.name: nan_to_none(_plain(getattr(self, field.name))) for field in dataclasses.fields(self)}


def unique_class_names(index: DetectionIndex) -> list[str]:
    """The class name of each label; if several classes share a name, the label is appended."""
    return unique_names([category.name for category in index.categories])


def unique_names(names: Sequence[str]) -> list[str]:
    """The names of classes in the order of their labels; if several share a name, the label is appended."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} (label {label})" for label, name in enumerate(names)]


def nan_to_none(value: object) -> object:
    """Replaces NaN, which JSON does not have, with None, also inside dicts."""
    if isinstance(value, dict):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(value: object) -> object:
    """Converts dataclasses to dicts, also inside dicts."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
