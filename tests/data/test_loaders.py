"""Loader processes that end, hang or find no shared memory."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from small_shared_memory import with_small_shared_memory

from modeling_detr.data import eval_transform, open_dataset
from modeling_detr.data.loaders import BatchLoader, build_eval_loader
from modeling_detr.errors_detr import LoaderError


ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("no_child_processes")


def loader_of(num_workers: int = 2, transform=None, minutes: float = 5.0, size: int = 64) -> BatchLoader:
    return build_eval_loader(
        open_dataset(f"shapes?size={size}&train=36&val=4"),
        transform or eval_transform(size, size),
        Accelerator(cpu=True),
        batch_size=2,
        num_workers=num_workers,
        loader_timeout_minutes=minutes,
    )


def send_to_loaders(number: signal.Signals, all_of_them: bool = True) -> list[int]:
    """Send a signal to the loader processes, and wait until it has arrived."""
    loaders = psutil.Process().children()
    chosen = loaders if all_of_them else loaders[:1]
    for process in chosen:
        process.send_signal(number)
    until = time.monotonic() + 10
    arrived = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    while any(process.is_running() and process.status() not in arrived for process in chosen):
        assert time.monotonic() < until
        time.sleep(0.01)
    return [process.pid for process in chosen]


def assert_equal(ours, expected) -> None:
    assert torch.equal(ours["pixel_values"], expected["pixel_values"])
    assert ours["pixel_values"].stride() == expected["pixel_values"].stride()  # channels last
    assert torch.equal(ours["pixel_mask"], expected["pixel_mask"])
    for label, expected_label in zip(ours["labels"], expected["labels"], strict=True):
        assert label.keys() == expected_label.keys()
        for name, values in label.items():
            assert values.dtype == expected_label[name].dtype
            assert torch.equal(values, expected_label[name])


def test_batches_of_loader_processes_are_those_of_the_main_process():
    loader = loader_of(size=200)
    for _epoch in range(2):
        for ours, expected in zip(loader, loader_of(0, size=200), strict=True):
            assert_equal(ours, expected)
            assert ours["pixel_values"].is_shared()
            ours["labels"][0]["boxes"] += 1  # can be changed


def test_a_loader_that_is_no_longer_used_ends_its_processes_without_the_garbage_collector():
    gc.disable()  # it closes pipes that threads of the queues still use: 'Bad file descriptor'
    try:
        loader = loader_of()
        list(loader)
        reference = weakref.ref(loader)
        del loader
        assert reference() is None
        assert not psutil.Process().children()
    finally:
        gc.enable()


def test_a_loader_that_has_been_waited_for_is_released_too():
    loader = loader_of(1, SlowTransform(1.5))  # longer than a tick of the clock that watches it
    next(iter(loader))
    del loader
    gc.collect()
    assert not psutil.Process().children()


def test_a_closed_loader_has_no_processes_and_can_be_used_again():
    loader = loader_of()
    before = [batch["pixel_values"].clone() for batch in loader]
    loader.close()
    assert not psutil.Process().children()
    assert all(torch.equal(batch["pixel_values"], pixels) for batch, pixels in zip(loader, before, strict=True))
    loader.close()


def test_a_full_shared_memory_slows_loading_down_but_does_not_stop_it():
    script = (
        "import sys; sys.path += ['tests', 'tests/data']\n"
        "from test_loaders import assert_equal, loader_of\n"
        "batches = list(zip(loader_of(size=400), loader_of(0, size=400), strict=True))\n"
        "for pair in batches: assert_equal(*pair)\n"
        "assert not all(ours['pixel_values'].is_shared() for ours, _ in batches)\n"
        "assert any(ours['pixel_values'].is_shared() for ours, _ in batches)\n"
    )
    run_python(script)


def test_loaders_that_find_no_shared_memory_at_all_say_so():
    script = (
        "import sys; sys.path += ['tests', 'tests/data']\n"
        "from test_loaders import loader_of\n"
        "full = open('/dev/shm/full', 'wb', 0)\n"
        "try:\n"
        "    while True: full.write(bytes(4096))\n"
        "except OSError: pass\n"
        "next(iter(loader_of()))\n"
    )
    printed = run_python(script, succeeds=False)
    assert (
        "LoaderError: shapes: 2 loader processes cannot start (No space left on device); /dev/shm is full: start the "
        "container with --shm-size=1g, or load in the main process (num_workers=0)."
    ) in printed


def run_python(script: str, succeeds: bool = True) -> str:
    done = subprocess.run(
        with_small_shared_memory([sys.executable, "-c", script]),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode == 0) == succeeds, done.stderr
    return done.stderr


def test_a_loader_that_was_killed_is_named_at_the_next_batch_and_not_earlier():
    batches = iter(loader_of())
    next(batches)
    (process,) = send_to_loaders(signal.SIGKILL, all_of_them=False)
    for _ in range(100):  # steps of a run, which must not be interrupted
        time.sleep(0.001)
    with pytest.raises(LoaderError) as caught:
        list(batches)
    assert str(caught.value).startswith(
        f"shapes: loader process {process} was killed by SIGKILL while loading shapes?"
    )
    assert str(caught.value).endswith("memory has probably run out: lower num_workers or the batch size.")
    _, alive = psutil.wait_procs(psutil.Process().children(), timeout=5)
    assert not alive


def test_a_loader_that_is_killed_while_the_run_waits_is_noticed_at_once():
    loader = loader_of(1, SlowTransform(30))
    batches = iter(loader)
    threading.Timer(0.5, lambda: psutil.Process().children()[0].kill()).start()
    started = time.monotonic()
    with pytest.raises(LoaderError, match=r"was killed by SIGKILL while loading .*train/000000\.png"):
        next(batches)
    assert time.monotonic() - started < 5


class SlowTransform:
    """A transform that sleeps."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.transform = eval_transform(64, 64)

    def __getattr__(self, name: str):
        return getattr(self.transform, name)

    def __call__(self, *arguments, **options):
        time.sleep(self.seconds)
        return self.transform(*arguments, **options)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_wait_for_a_stopped_loader_ends_at_the_limit_and_says_what_it_waited_for(all_of_them):
    loader = loader_of(minutes=0.02)
    for _ in loader:
        break
    stopped = send_to_loaders(signal.SIGSTOP, all_of_them)
    epochs = (batch for _ in range(3) for batch in loader)  # it may also be noticed while the next epoch starts
    with pytest.raises(LoaderError) as caught:
        list(epochs)
    message = str(caught.value)
    assert "shapes: no batch for 0.02 minutes; loader process" in message
    assert any(f"process {process}" in message for process in stopped)
    assert "is stopped; check that the disk or network share with the images responds, or allow more time" in message
    assert message.endswith("(loader_timeout_minutes=0.04).")


def test_without_a_limit_a_slow_loader_is_waited_for():
    assert next(iter(loader_of(1, SlowTransform(1.5), minutes=0)))["pixel_values"].shape[0] == 2


def test_loaders_of_a_killed_run_end():
    script = (
        "import sys; sys.path += ['tests', 'tests/data']\n"
        "import psutil, time; from test_loaders import loader_of\n"
        "batches = iter(loader_of(size=200)); next(batches)\n"
        "print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    loaders = [psutil.Process(int(process)) for process in run.stdout.readline().split()]
    assert len(loaders) == 2
    run.kill()
    run.communicate()
    _, alive = psutil.wait_procs(loaders, timeout=2)
    assert not alive


def test_python_ends_although_a_loader_is_stopped():
    script = (
        "import sys; sys.path += ['tests', 'tests/data']\n"
        "import signal; from test_loaders import loader_of, send_to_loaders\n"
        "loader = loader_of(); batches = iter(loader); next(batches)\n"
        "send_to_loaders(signal.SIGSTOP)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )


def failing_transform(*_arguments, **_options):
    raise KeyError("colour")


def test_an_error_of_a_transform_is_one_sentence_that_says_where_it_was_raised():
    loader = loader_of()
    loader.dataset.transform = failing_transform
    with pytest.raises(LoaderError) as caught:
        next(iter(loader))
    line = failing_transform.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        "shapes: a loader process raised KeyError: 'colour' while transforming shapes?size=64&seed=0/train/000000.png "
        f"({__file__}, line {line}); fix it there; "
        "DETR_TRACEBACK=1 in the environment shows the whole traceback."
    )


def test_too_many_open_files_are_an_error_that_says_what_to_do():
    script = (
        "import os, resource, sys; sys.path += ['tests', 'tests/data']\n"
        "from test_loaders import loader_of\n"
        "batches = iter(loader_of())\n"
        "next(batches)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 1, 10_000))\n"
        "list(batches)\n"
    )
    printed = run_python(script, succeeds=False)
    assert "LoaderError: shapes: too many open files; raise the limit on open files (ulimit -n), or load" in printed


@pytest.mark.filterwarnings("error")
def test_more_processes_than_cores_raise_no_warning_of_pytorch():
    assert loader_of(num_workers=(os.cpu_count() or 1) + 1).num_workers > 1
