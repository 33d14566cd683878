"""Signs that training goes wrong though its loss is finite: no query finds anything, or all of an image find one box.

Both are what a DETR does before it has learnt anything. So a sign is told once it has lasted for two evaluations, and
only of a model that had learnt something before, or has had its share of the run to do so.
"""

from dataclasses import dataclass

from modeling_detr.evaluation.report import EvaluationReport


_FEWEST_FOUND = 0.01  # queries that are sure of a class, for each true object
_LEAST_SPREAD = 0.1  # of predicted boxes, for that of true ones; a query in a hundred at the other of two objects: 0.2
_LASTING = 2  # evaluations in a row
_LEARNT = 0.1  # AP50
# Steps after the warm-up by which a model should have begun to learn: a share of the run, within these bounds.
_SHARE_OF_RUN, _FEWEST_STEPS, _MOST_STEPS = 0.2, 200, 10_000


@dataclass
class Symptom:
    """What the evaluations so far have shown of one sign.

    Attributes:
        in_a_row: How many of the last evaluations showed it.
        was_well: Whether an earlier one did not, of a model that had learnt something.
        told: Whether a person has been told since it came.
    """

    in_a_row: int = 0
    was_well: bool = False
    told: bool = False


def is_due(step: int, total_steps: int, warmup_steps: int) -> bool:
    """Whether a run has gone on for so long that its model should have begun to find objects."""
    share = _SHARE_OF_RUN * (total_steps - warmup_steps)
    return step >= warmup_steps + min(max(share, _FEWEST_STEPS), _MOST_STEPS)


def find_symptoms(report: EvaluationReport, seen: dict[str, Symptom], due: bool) -> list[str]:
    """What a person should be told after an evaluation; each sign once, until it has been absent again.

    Args:
        report: The evaluation.
        seen: Name of the sign → what earlier evaluations showed; brought up to date.
        due: See `is_due`.
    """
    figures = report.queries
    if figures is None:
        return []
    shown = {}
    if figures.object_queries < _FEWEST_FOUND * figures.objects:
        shown["nothing_found"] = (
            f'nothing but "no object" is predicted: of an evaluation image {figures.object_queries:.2g} queries are '
            f"surer of a class, and it holds {figures.objects:.1f} objects on average"
        )
    if figures.spread is not None and figures.spread < _LEAST_SPREAD:
        shown["collapsed"] = (
            f"the queries have collapsed: the boxes that they predict for an evaluation image differ by only "
            f"{figures.spread:.1%} of what its true boxes do"
        )
    warnings = []
    for name in ("nothing_found", "collapsed"):
        symptom = seen.setdefault(name, Symptom())
        if name not in shown:
            seen[name] = Symptom(was_well=symptom.was_well or report.metrics.ap50 >= _LEARNT)
            continue
        symptom.in_a_row += 1
        if symptom.in_a_row >= _LASTING and (symptom.was_well or due) and not symptom.told:
            symptom.told = True
            warnings.append(f"{shown[name]}. {_remedy(symptom)}")
    return warnings


def _remedy(symptom: Symptom) -> str:
    if symptom.was_well:
        return (
            f"It was not so {symptom.in_a_row} evaluations ago: go on from an earlier checkpoint (--resume FOLDER) "
            f"with lower learning_rate and backbone_learning_rate, or a longer warm-up."
        )
    return (
        "It has not learnt better so far: look at the data (detr data check), lower the rates or warm up longer; a "
        "DETR from random weights wants many steps, or encoder_supervision, denoising_groups and local_start."
    )
