import numpy as np
import pytest

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.suspected_labels import suspected_labels
from modeling_detr.benchmarks.spoilt_labels import found_shares, spoil
from modeling_detr.data import open_dataset
from modeling_detr.structures_detr import DetectionIndex


@pytest.fixture(scope="module")
def shapes() -> DetectionIndex:
    return open_dataset("shapes?train=2&val=40", split="val")


def test_each_kind_is_spoilt_as_often_as_asked(shapes):
    spoilt = spoil(shapes, 0.1, seed=1)
    count = int(np.ceil(0.1 * len(shapes.annotations)))
    kinds = [one.spoiling for one in spoilt.spoilt]
    assert {kind: kinds.count(kind) for kind in {*kinds}} == dict.fromkeys(("dropped", "moved", "renamed"), count)
    assert len(spoilt.index.annotations) == len(shapes.annotations) - count
    assert len(shapes.annotations) == len(open_dataset("shapes?train=2&val=40", split="val").annotations)  # unchanged


def test_a_perfect_model_finds_every_spoilt_label(shapes):
    spoilt, table = spoil(shapes, 0.1), shapes.annotations
    ids = np.array([category.id for category in shapes.categories])
    evidence = Evidence.of_rows(
        spoilt.index, table.image_index, ids[table.label], table.boxes_xyxy, np.full(len(table), 0.9)
    )
    shares = found_shares(spoilt.spoilt, suspected_labels(evidence))
    assert shares[2]["all"] >= 0.95


def test_a_model_that_agrees_with_the_spoilt_labels_finds_none(shapes):
    spoilt = spoil(shapes, 0.1)
    table, ids = spoilt.index.annotations, np.array([category.id for category in shapes.categories])
    evidence = Evidence.of_rows(
        spoilt.index, table.image_index, ids[table.label], table.boxes_xyxy, np.full(len(table), 0.9)
    )
    assert found_shares(spoilt.spoilt, suspected_labels(evidence))[5]["all"] <= 0.2
