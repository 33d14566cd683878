"""AP by the number of objects in an image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.evaluation.metrics import Metrics, MetricTable


_GROUPS = {"1": (1, 1), "2 to 4": (2, 4), "5 to 9": (5, 9), "10 to 19": (10, 19), "20 and more": (20, math.inf)}


@dataclass(frozen=True, slots=True)
class GroupAp:
    """AP and AP50 of some images; NaN if hotcoco has none."""

    images: int
    ap: float
    ap50: float


@dataclass(frozen=True, slots=True)
class Crowding(Metrics):
    """AP of images with few and many objects.

    Attributes:
        groups: Number of objects → AP of the images that have so many.
    """

    key: ClassVar[str] = "crowding"

    groups: Mapping[str, GroupAp]

    def tables(self) -> tuple[MetricTable, ...]:
        """The groups; nothing if all images are in one."""
        if len(self.groups) < 2:
            return ()
        rows = [(name, group.images, group.ap, group.ap50) for name, group in self.groups.items()]
        return (MetricTable("Objects per image", ("objects", "images", "AP", "AP50"), rows),)


def crowding(evidence: Evidence) -> Crowding:
    """AP by the number of objects in an image, crowd regions not counted."""
    counts = np.array([len(overlaps.objects) for overlaps in evidence.overlaps], np.int64)
    image_ids = np.array([image["id"] for image in evidence.scoring.images], np.int64)
    members = {
        name: image_ids[(counts >= fewest) & (counts <= most)].tolist() for name, (fewest, most) in _GROUPS.items()
    }
    members = {name: ids for name, ids in members.items() if ids}
    scores = evidence.evaluation.slice_by(members) if members else {}
    groups = {name: GroupAp(len(ids), scores[name]["AP"], scores[name]["AP50"]) for name, ids in members.items()}
    return Crowding(groups)
