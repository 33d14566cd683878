import json

import pytest

from modeling_detr.errors_detr import ModelError
from modeling_detr.saved_thresholds import THRESHOLDS, Calibration, SavedThresholds, load_thresholds


SAVED = SavedThresholds({"cat": 0.4}, Calibration(1.5, -0.2), "best F1", "val")


def test_what_is_saved_is_loaded(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    SAVED.save(tmp_path / "model")
    assert load_thresholds(str(tmp_path / "model")) == SAVED
    assert load_thresholds(str(tmp_path)) == SAVED  # the folder of a run


def test_a_model_without_thresholds_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"has no {THRESHOLDS}; detr evaluate MODEL DATA --save_thresholds"):
        load_thresholds(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"thresholds": {"cat": 2}, "calibration": {"temperature": 1, "shift": 0}},
        {"thresholds": {"cat": "high"}, "calibration": {"temperature": 1, "shift": 0}},
        {"thresholds": {}, "calibration": {"temperature": 0, "shift": 0}},
        {"thresholds": {}, "calibration": {"temperature": 1}},
        {"thresholds": {}, "calibration": {"temperature": 1, "shift": "NaN"}},
        {"thresholds": {}, "calibration": {"temperature": 1, "shift": float("nan")}},
        {"thresholds": {}, "calibration": {"temperature": 10**400, "shift": 0}},
    ],
)
def test_a_malformed_file_is_an_error(tmp_path, content):
    (tmp_path / THRESHOLDS).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="is malformed"):
        load_thresholds(str(tmp_path))
