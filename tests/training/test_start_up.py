"""Processes of torchrun that start when it ends or is interrupted."""

import datetime
import multiprocessing
import os
import signal
import socket

import pytest
from torch.distributed import TCPStore

from modeling_detr.training.distributed import end_with_launcher


SERVER = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost"}


def start(port: int, ready: multiprocessing.Queue) -> None:
    """Start as one of two processes, of which the other one never comes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a new process, whatever this copy of pytest's has inherited
    os.environ |= {**SERVER, "MASTER_PORT": str(port)}
    try:
        end_with_launcher()
    except ValueError as error:
        ready.put(str(error))
        return
    store = TCPStore("localhost", port, is_master=False, timeout=datetime.timedelta(minutes=5))
    ready.put("waits")
    store.wait(["the other process"])


@pytest.fixture
def launched():
    """Returns a function that starts a process at a port; returns it and what it says."""
    processes = []

    def launch(port: int) -> tuple[multiprocessing.Process, str]:
        context = multiprocessing.get_context("fork")
        ready = context.Queue()
        processes.append(context.Process(target=start, args=[port, ready]))
        processes[-1].start()
        return processes[-1], ready.get(timeout=30)

    yield launch
    for process in processes:
        process.kill()
        process.join()


def test_a_process_whose_launcher_has_ended_does_not_wait_for_it(launched):
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        process, message = launched(unused.getsockname()[1])
    assert message == "torchrun has ended while this process was starting."
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_another_one_to_start_ends_at_a_signal(launched, number):
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    process, message = launched(server.port)
    assert message == "waits"
    os.kill(process.pid, number)
    process.join(10)
    assert process.exitcode == -number
