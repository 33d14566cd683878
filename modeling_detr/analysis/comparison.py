"""Two models on the same images: what changed, and whether it could be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from modeling_detr.analysis.error_kinds import ErrorKinds, error_kinds
from modeling_detr.analysis.error_pictures import MarkedImage, draw_marked
from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.intervals import Interval, default_samples, difference
from modeling_detr.analysis.judgement import KINDS, ErrorKind, judge
from modeling_detr.errors_detr import printable
from modeling_detr.evaluation.metrics import nan_to_none
from modeling_detr.pages import Figure, Figures, Section, Table, Text


_NAMES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


class ImageChange(NamedTuple):
    """Errors in an image. image_index: its index. before, after: false detections and missed objects."""

    image_index: int
    before: int
    after: int

    @property
    def change(self) -> int:
        """Errors that were added, or, below 0, that are gone."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """A model compared with a baseline.

    Attributes:
        before: The detections of the baseline.
        after: Those of the other model, on the same images.
        differences: `ap`, `ap50` and `ap75` → the difference, with its interval.
        per_class: Class name → AP before, and after.
        errors: What kinds of errors cost, before and after.
        images: The images with another number of errors, the largest change first.
        min_score: Detections with a lower score do not count as errors of an image.
    """

    before: Evidence
    after: Evidence
    differences: Mapping[str, Interval]
    per_class: Mapping[str, tuple[float, float]]
    errors: tuple[ErrorKinds, ErrorKinds]
    images: Sequence[ImageChange]
    min_score: float

    @classmethod
    def of(cls, before: Evidence, after: Evidence, min_score: float, samples: int | None = None) -> "Comparison":
        """Compares two models.

        Args:
            before: The detections of the baseline.
            after: Those of the other model; of the same dataset, with the same order of classes.
            min_score: See the class.
            samples: How often images are drawn for the intervals; None: `default_samples`.
        """
        import hotcoco

        samples = default_samples(before) if samples is None else samples

        classes = hotcoco.compare(before.evaluation, after.evaluation)["per_category"]
        return cls(
            before=before,
            after=after,
            differences=difference(before.evaluation, after.evaluation, samples),
            per_class={before.class_names[row["cat_id"]]: (row["ap_a"], row["ap_b"]) for row in classes},
            errors=(error_kinds(before), error_kinds(after)),
            images=_image_changes(before, after, min_score),
            min_score=min_score,
        )

    def text(self, names: tuple[str, str]) -> str:
        """The differences for a terminal."""
        lines = []
        values = [asdict(evidence.evaluator.compute()) for evidence in (self.before, self.after)]
        for field, name in _NAMES.items():
            change = self.differences[field]
            lines.append(
                f"{name:<5} {values[0][field]:.3f} -> {values[1][field]:.3f}  {change.value:+.3f} "
                f"(95% interval {change.low:+.3f} to {change.high:+.3f}{self._chance(change)})"
            )
        better, worse = self._counts()
        return "\n".join([printable(f"{names[0]} -> {names[1]}"), *lines, f"{better} images better, {worse} worse"])

    def sections(self, names: tuple[str, str], num_pictures: int) -> list[Section]:
        """The comparison as sections of a page.

        Args:
            names: Names of the two models.
            num_pictures: Images to draw of those with fewer errors, and of those with more.
        """
        values = [asdict(evidence.evaluator.compute()) for evidence in (self.before, self.after)]
        overall = [
            (name, values[0][field], values[1][field], *(f"{value:+.3f}" for value in (one.value, one.low, one.high)))
            for (field, name), one in zip(_NAMES.items(), self.differences.values(), strict=True)
        ]
        classes = [
            (name, before, after, f"{after - before:+.3f}")
            for name, (before, after) in sorted(self.per_class.items(), key=lambda row: row[1][1] - row[1][0])
        ]
        note = (
            "Intervals: 95% of the differences when the images are drawn again, the same for both models, so that "
            "what is hard for both cancels out. A difference whose interval contains 0 may be chance."
        )
        kinds = [
            (kind, *(f"{one.points[kind]:.1f}" for one in self.errors), f"{self._rise(kind):+.1f}") for kind in KINDS
        ]
        better, worse = self._counts()
        return [
            Section(
                "Difference",
                [Text(note), Table(("metric", *names, "difference", "low", "high"), overall)],
            ),
            Section("Classes", [Table(("class", *names, "difference"), classes)]),
            Section(
                "Kinds of errors",
                [Text("Points of AP50 that each kind costs."), Table(("kind", *names, "difference"), kinds)],
            ),
            *self._pictures("Images with more errors", worse, num_pictures, names, 1),
            *self._pictures("Images with fewer errors", better, num_pictures, names, -1),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        images = self.before.index.images
        content = {
            "differences": {name: asdict(interval) for name, interval in self.differences.items()},
            "per_class": {
                name: {"before": before, "after": after} for name, (before, after) in self.per_class.items()
            },
            "errors": {name: errors.as_dict() for name, errors in zip(("before", "after"), self.errors, strict=True)},
            "images": [
                {"image_id": images[one.image_index].coco_id, "errors_before": one.before, "errors_after": one.after}
                for one in self.images
            ],
        }
        plain = nan_to_none(content)
        assert isinstance(plain, dict)
        return plain

    def _rise(self, kind: ErrorKind) -> float:
        """By how many points more a kind of error costs."""
        before, after = self.errors
        return after.points[kind] - before.points[kind]

    def _counts(self) -> tuple[int, int]:
        """How many images became better, and worse."""
        changes = [one.change for one in self.images]
        return sum(change < 0 for change in changes), sum(change > 0 for change in changes)

    @staticmethod
    def _chance(change: Interval) -> str:
        return ", may be chance" if change.value and change.low <= 0 <= change.high else ""

    def _pictures(
        self, title: str, count: int, num_pictures: int, names: tuple[str, str], sign: Literal[1, -1]
    ) -> list[Section]:
        chosen = [one for one in self.images if one.change * sign > 0][:num_pictures]
        if not chosen:
            return []
        judged = [judge(evidence, self.min_score) for evidence in (self.before, self.after)]
        figures = []
        for one in chosen:
            halves = [
                MarkedImage(evidence, judgement, evidence.overlaps[one.image_index])
                for evidence, judgement in zip((self.before, self.after), judged, strict=True)
            ]
            picture = draw_marked(halves, names)
            name = self.before.image_names[one.image_index]
            figures.append(Figure.of(picture, f"{name}: {one.before} errors, then {one.after}", longest_side=1600))
        note = f"{count} in all. Left: {names[0]}; middle: {names[1]}; right: annotated. Errors are dashed."
        return [Section(title, [Text(note), Figures(figures, "wide")])]


def _image_changes(before: Evidence, after: Evidence, min_score: float) -> list[ImageChange]:
    thresholds = dict.fromkeys(before.class_names, min_score)
    pairs = zip(before.matches.per_image(thresholds), after.matches.per_image(thresholds), strict=True)
    changes = [
        ImageChange(one.image_index, one.misses + one.false_positives, other.misses + other.false_positives)
        for one, other in pairs
    ]
    order = np.argsort([-abs(one.change) for one in changes], kind="stable")
    return [changes[number] for number in order if changes[number].change]
