import time

import pytest
import torch

from modeling_detr.training.engine import StepResult
from modeling_detr.training.pace import Pace, memory_gib


def step(num_images, loader_wait):
    return StepResult({}, 1.0, num_images, False, False, loader_wait)


def test_speed_and_wait_are_those_since_the_last_question(monkeypatch):
    now = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    pace = Pace(torch.device("cpu"))
    for _ in range(2):
        pace.add(step(8, 0.5))
    first = pace.take()
    assert (first["images_per_second"], first["loader_wait"]) == (4.0, 0.25)
    pace.add(step(8, 0.0))
    second = pace.take()
    assert (second["images_per_second"], second["loader_wait"]) == (4.0, 0.0)


def test_memory_without_a_gpu_is_what_the_process_holds():
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(64, 2**20)  # a quarter of a GiB
    assert memory_gib(torch.device("cpu")) - before == pytest.approx(0.25, abs=0.05)
    del held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_the_most_that_tensors_have_had():
    device = torch.device("cuda", 0)
    torch.cuda.reset_peak_memory_stats(device)
    before = memory_gib(device)
    torch.ones(64, 2**20, device=device)
    assert memory_gib(device) >= before
    assert memory_gib(device) >= 0.25
