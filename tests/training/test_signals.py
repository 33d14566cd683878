import multiprocessing
import subprocess
import sys
import time

import torch
from torch.utils.data import DataLoader

from modeling_detr.training.setup import prepare_worker
from modeling_detr.training.signals import leave_stopping_to_parent


def _load(ready) -> None:
    leave_stopping_to_parent()
    ready.set()
    time.sleep(60)


def test_a_loader_ends_only_when_its_parent_stops_it():
    ready = multiprocessing.Event()
    loader = multiprocessing.Process(target=_load, args=[ready], daemon=True)
    loader.start()
    assert ready.wait(30)
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        send = f"import os, signal; os.kill({loader.pid}, signal.{name})"
        subprocess.run([sys.executable, "-c", send], check=True)
    loader.join(0.5)
    assert loader.is_alive()
    loader.terminate()
    loader.join(30)
    assert loader.exitcode == 0  # with another one PyTorch would take it for a failure


def test_loaders_end_at_once_when_their_iterator_is_deleted():
    loader = DataLoader(
        torch.arange(8), num_workers=2, persistent_workers=True, worker_init_fn=prepare_worker, timeout=30
    )
    batches = iter(loader)
    assert next(batches).tolist() == [0]
    workers = batches._workers
    started = time.monotonic()
    del batches, loader
    assert not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - started < 4  # PyTorch waits five seconds for one that does not answer
