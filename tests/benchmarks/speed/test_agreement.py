import math

import pytest
import torch

from modeling_detr.benchmarks.speed.agreement import check_agreement, relative_difference, without_tf32
from modeling_detr.errors_detr import BenchmarkError


def test_equal_results_have_a_difference_of_zero():
    outputs = {"modeling_detr": {"loss": 2.0}, "transformers": {"loss": 2.0}}
    assert check_agreement("work", outputs, 0.0) == {"transformers": 0.0}


def test_the_difference_is_relative_to_the_largest_value():
    outputs = {
        "modeling_detr": {"boxes": torch.tensor([0.0, 4.0])},
        "transformers": {"boxes": torch.tensor([0.1, 4.0])},
    }
    assert check_agreement("work", outputs, 0.1)["transformers"] == pytest.approx(0.025)


def test_different_results_are_refused_with_the_difference():
    outputs = {"modeling_detr": {"loss": 2.0}, "transformers": {"loss": 2.2}}
    message = (
        r"step: loss of transformers differs from that of modeling_detr by 0\.1 of its largest value, expected at"
    )
    with pytest.raises(BenchmarkError, match=message):
        check_agreement("step", outputs, 0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.zeros(2)])
def test_values_that_cannot_be_compared_differ(value):
    assert relative_difference(1.0, value) == math.inf
    with pytest.raises(BenchmarkError):
        check_agreement("step", {"modeling_detr": {"loss": 1.0}, "transformers": {"loss": value}}, 1e6)


def test_results_are_compared_without_tf32():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    with without_tf32():
        assert [backend.allow_tf32 for backend in backends] == [False, False]
    assert [backend.allow_tf32 for backend in backends] == before
