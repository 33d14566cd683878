"""What a run adds to the page of an evaluation: the head, pictures of predictions, and training curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.analysis import Evidence, thresholds_of, with_analyses
from modeling_detr.analysis.error_pictures import error_pictures
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.pages import Fact, Figure, Figures, Section, Text
from modeling_detr.prediction import OBJECT_THRESHOLD
from modeling_detr.provenance import provenance
from modeling_detr.training.checkpointing import TrainingState
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import LOG, MODEL
from modeling_detr.visualization import draw_curves


_ERROR_PICTURES = 8
_COMPARISON_SIDE = 1280  # longest side of an image beside its ground truth, in pixels


def comparison_section(title: str, pictures: Mapping[str, NDArray[np.uint8]]) -> list[Section]:
    """Pictures of predictions beside the ground truth, see `draw_predictions`; empty if there are none."""
    if not pictures:
        return []
    figures = [
        Figure.of(Image.fromarray(picture), name.partition("_")[2], _COMPARISON_SIDE)  # without its number
        for name, picture in pictures.items()
    ]
    legend = "Left: predicted, right: ground truth. Solid: found; dashed or striped: false or missed."
    return [Section(title, [Text(legend), Figures(figures, "wide")])]


def curve_section(run_dir: Path) -> list[Section]:
    """The training curves of a run so far; empty before its second epoch has ended."""
    log = run_dir / LOG
    entries = read_log(log) if log.is_file() else []
    epochs = [entry["epoch"] for entry in entries if entry.get("kind") == "epoch"]
    if len(epochs) < 2:
        return []
    caption = f"{run_dir.name}, epochs {epochs[0]} to {epochs[-1]}"
    plot = Figure.of(draw_curves({run_dir.name: entries}), caption, longest_side=2000, lossless=True)
    return [Section("Training curves", [Figures([plot], "plot")])]


@dataclass(frozen=True)
class BestPage:
    """The page of the best evaluation of a run.

    Attributes:
        report: The evaluation.
        recipe: The recipe of the run.
        state: The progress of the run.
        command: The command that started it; may be empty.
        pictures: See `comparison_section`.
        evidence: The predictions of the evaluation, which are analysed at the end of the run; None: they are not.
    """

    report: EvaluationReport
    recipe: Recipe
    state: TrainingState
    command: str
    pictures: Mapping[str, NDArray[np.uint8]]
    evidence: Evidence | None = None

    @cached_property
    def content(self) -> tuple[Sequence[Fact], Sequence[Section]]:
        """The head of the page and its sections, without curves."""
        facts = [
            ("model", f"{self.recipe.run_dir / MODEL}, the best so far: epoch {self.state.best_epoch}"),
            ("data", self.recipe.data_source),
            *provenance(self.command),
        ]
        return facts, comparison_section("Predictions", self.pictures)

    def finish(self) -> None:
        """Write the report again, with an analysis of the errors and the curves of all epochs, and the thresholds.

        Raises:
            OutputError: It cannot be written.
        """
        facts, sections = self.content
        report = self.report
        if self.evidence is not None:
            report = with_analyses(report, self.evidence)
            sections = [*error_pictures(self.evidence, _ERROR_PICTURES, OBJECT_THRESHOLD), *sections]
            thresholds = thresholds_of(report)
            if thresholds is not None:
                thresholds.save(self.recipe.run_dir / MODEL)
        report.save(self.recipe.run_dir, facts, [*sections, *curve_section(self.recipe.run_dir)])
