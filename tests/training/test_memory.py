"""The memory of a process: its peak, and a real limit."""

import sys

import pytest
import torch
from launched_runs import start_code

from modeling_detr.errors_detr import RecipeError
from modeling_detr.training.memory import limit_memory
from modeling_detr.training.setup import prepare_run


linux = pytest.mark.skipif(sys.platform != "linux", reason="a CPU has a limit under Linux only")
# A process of its own: malloc may hold freed memory of earlier tests, which a tensor then takes without any growth.
FREED = """
import torch
from modeling_detr.training.memory import peak_gib, reset_peak

device = torch.device("cpu")
reset_peak(device)
before = peak_gib(device)
torch.ones(64, 2**20)  # a quarter of a GiB
print(peak_gib(device) - before)
reset_peak(device)
print(peak_gib(device) - before)
"""
LIMITED = """
import multiprocessing, torch
from modeling_detr.training.memory import lift_limit, limit_memory, private_gib
from modeling_detr.training.out_of_memory import is_out_of_memory

def in_child():
    lift_limit()
    torch.ones(2**27)

torch.set_num_threads(1)  # a fork does not copy the threads of a parallel loop, and the child would wait for them
limit_memory(torch.device("cpu"), private_gib() + 0.25)
for number in range(8):
    torch.ones(2**25)  # 128 MiB: freed memory does not count
try:
    torch.ones(2**27)
except RuntimeError as error:
    assert is_out_of_memory(error)
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join()
    print(child.exitcode)
"""


@linux
def test_the_peak_counts_what_has_been_freed(tmp_path):
    run = start_code(tmp_path / "printed.txt", FREED)
    assert run.wait(100) == 0, run.output.read_text()
    with_tensor, after_reset = map(float, run.output.read_text().split())
    assert with_tensor == pytest.approx(0.25, abs=0.05)
    assert after_reset == pytest.approx(0.0, abs=0.05)


@linux
def test_an_allocation_above_the_limit_fails_except_in_processes_that_lift_it(tmp_path):
    run = start_code(tmp_path / "printed.txt", LIMITED)
    run.wait(100)
    assert run.output.read_text() == "0\n"


@linux
def test_a_limit_below_the_memory_in_use_is_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"max_memory_gb: got 0.1, but the process has \d\.\d\d GiB"):
        prepare_run(tiny_recipe(max_memory_gb=0.1))


def test_a_device_without_limits_is_named():
    with pytest.raises(RecipeError, match=r"max_memory_gb: got a device of type meta .*max_pixels_per_batch"):
        limit_memory(torch.device("meta"), 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_limit_of_a_gpu_holds_for_tensors():
    device = torch.device("cuda", 0)
    limit_memory(device, 1.0)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(2**28, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    with pytest.raises(RecipeError, match="max_memory_gb: got 1e"):
        limit_memory(device, 1e6)
