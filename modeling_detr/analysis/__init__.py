"""What a model gets wrong, what that costs, and what to do about it.

    evidence = Evidence(evaluator)  # a `CocoEvaluator` with the predictions of a dataset
    print(with_analyses(report, evidence).to_markdown())

Each analysis is one file with a function that takes the `Evidence` and the `AnalysisOptions`, and returns `Metrics`:
fields for JSON, tables for the terminal, sections for the web page. A new one is a file and a line in `ANALYSES`; a
plug-in adds its own line.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from modeling_detr.analysis.confusions import confusions
from modeling_detr.analysis.crowding import crowding
from modeling_detr.analysis.error_kinds import error_kinds
from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.intervals import intervals
from modeling_detr.analysis.operating_points import OperatingPoints, operating_points
from modeling_detr.analysis.reliability import Reliability, reliability
from modeling_detr.evaluation.metrics import Metrics
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.saved_thresholds import SavedThresholds


__all__ = ["ANALYSES", "AnalysisOptions", "Evidence", "thresholds_of", "with_analyses"]


class AnalysisOptions(NamedTuple):
    """What a user may choose.

    samples: how often images are drawn for the intervals; None: `default_samples`; 0: no intervals. at_precision: the
    precision that thresholds should reach; None: the best F1.
    """

    samples: int | None = None
    at_precision: float | None = None


ANALYSES: dict[str, Callable[[Evidence, AnalysisOptions], Metrics | None]] = {
    "intervals": lambda evidence, options: None if options.samples == 0 else intervals(evidence, options.samples),
    "errors": lambda evidence, _: error_kinds(evidence),
    "crowding": lambda evidence, _: crowding(evidence),
    "confusions": lambda evidence, _: confusions(evidence),
    "operating_points": lambda evidence, options: operating_points(evidence, options.at_precision),
    "reliability": lambda evidence, _: reliability(evidence),
}


def with_analyses(
    report: EvaluationReport, evidence: Evidence, options: AnalysisOptions | None = None
) -> EvaluationReport:
    """The report with the results of all analyses, in the order of `ANALYSES`."""
    results = (analysis(evidence, options or AnalysisOptions()) for analysis in ANALYSES.values())
    found = {result.key: result for result in results if result is not None}
    return dataclasses.replace(report, results={**report.results, **found})


def thresholds_of(report: EvaluationReport) -> SavedThresholds | None:
    """The thresholds and the calibration of a report, to save with the model; None if it has none."""
    points, scores = report.results.get(OperatingPoints.key), report.results.get(Reliability.key)
    if not isinstance(points, OperatingPoints) or not isinstance(scores, Reliability) or not points.thresholds:
        return None
    thresholds = {name: one.threshold for name, one in points.thresholds.items()}
    return SavedThresholds(thresholds, scores.calibration, points.criterion, report.dataset)
