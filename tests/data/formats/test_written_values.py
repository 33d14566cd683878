import pytest

from modeling_detr.data.formats.written_values import to_flag


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", "0", " 0 ", "False", "no"])
def test_flags_that_are_off(value):
    assert not to_flag(value)


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "True"])
def test_flags_that_are_on(value):
    assert to_flag(value)
