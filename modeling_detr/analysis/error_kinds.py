"""Which kinds of errors a model makes, and what each costs: TIDE (Bolya et al., arXiv 2008.08115).

What a kind costs is computed by hotcoco: by how much AP50 would rise without its errors. The kind of each single
detection, which pictures and advice need, follows the same rules in `judgement`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from modeling_detr.analysis.advice import advice
from modeling_detr.analysis.evidence import MATCH_IOU, Evidence
from modeling_detr.analysis.judgement import BACKGROUND_IOU, KINDS, ErrorKind, Judgement, judge
from modeling_detr.evaluation.metrics import Metrics, MetricTable
from modeling_detr.pages import Bar, Bars, Block, Section, Text


_WORTH_ADVICE = 0.5  # points


@dataclass(frozen=True, slots=True)
class ErrorKinds(Metrics):
    """What each kind of error costs.

    Attributes:
        ap50: AP50 of all detections, in [0, 1]; NaN without ground truth.
        points: Kind → by how many points (hundredths) AP50 would rise without errors of this kind.
        counts: Kind → number of errors, among all detections.
        advice: Kind → what to do about it, for the kinds that cost at least half a point, or all if nothing is found.
        never_found: Names of the classes of which no object is found. TIDE does not count what they cost: without
            their missed objects, they have no AP that could rise.
    """

    key: ClassVar[str] = "errors"
    leads_page: ClassVar[bool] = True

    ap50: float
    points: Mapping[ErrorKind, float]
    counts: Mapping[ErrorKind, int]
    advice: Mapping[ErrorKind, str]
    never_found: Sequence[str] = ()

    def tables(self) -> tuple[MetricTable, ...]:
        """What each kind of error costs, and how many there are."""
        if math.isnan(self.ap50):
            return ()
        rows = [(kind, f"{self.points[kind]:.1f}", self.counts[kind], KINDS[kind].meaning) for kind in self._by_cost()]
        return (MetricTable("Kinds of errors", ("kind", "points of AP50", "number", "meaning"), rows),)

    def sections(self) -> list[Section]:
        """The costs as bars, each with advice."""
        if math.isnan(self.ap50):
            return []
        bars = [
            Bar(kind, self.points[kind], f"{self.points[kind]:.1f}", self.advice.get(kind, KINDS[kind].meaning))
            for kind in self._by_cost()
        ]
        note = (
            "By how many points AP50 would rise without the errors of each kind (TIDE). The gains do not add up: "
            "an object that is badly placed can also be found twice."
        )
        blocks: list[Block] = [Text(note), Bars("kind", bars)]
        if self.never_found:
            names = ", ".join(f"'{name}'" for name in self.never_found)
            blocks.append(Text(f"No object of these classes is found, which the points above leave out: {names}."))
        return [Section("Kinds of errors", blocks)]

    def _by_cost(self) -> list[ErrorKind]:
        return sorted(KINDS, key=lambda kind: -self.points[kind])


def error_kinds(evidence: Evidence) -> ErrorKinds:
    """The kinds of errors of all detections."""
    if not any(len(overlaps.objects) for overlaps in evidence.overlaps):
        nothing = dict.fromkeys(KINDS, math.nan)
        return ErrorKinds(math.nan, nothing, dict.fromkeys(KINDS, 0), {})
    found = evidence.evaluation.tide_errors(pos_thr=MATCH_IOU, bg_thr=BACKGROUND_IOU)
    points = {kind: 100 * float(found["delta_ap"][entry.hotcoco]) for kind, entry in KINDS.items()}
    counts = {kind: int(found["counts"][entry.hotcoco]) for kind, entry in KINDS.items()}
    judgement = judge(evidence)

    def worth_advice(kind: ErrorKind) -> bool:
        """If nothing is found, no single kind costs anything."""
        return points[kind] >= _WORTH_ADVICE or (found["ap_base"] == 0 and counts[kind] > 0)

    return ErrorKinds(
        ap50=float(found["ap_base"]),
        points=points,
        counts=counts,
        advice={kind: advice(kind, evidence, judgement) for kind in KINDS if worth_advice(kind)},
        never_found=_never_found(evidence, judgement),
    )


def _never_found(evidence: Evidence, judgement: Judgement) -> list[str]:
    labels = evidence.scoring.truth.labels
    missing = {*labels[judgement.objects != ""].tolist()} - {*labels[judgement.objects == "found"].tolist()}
    return [evidence.class_names[label] for label in sorted(missing)]
