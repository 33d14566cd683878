"""A long run needs no more than a short one: memory, files, processes, threads."""

import psutil
import pytest

from modeling_detr.training.metric_logger import MetricLogger
from modeling_detr.training.trainer import Trainer


@pytest.mark.slow
def test_hundreds_of_steps_need_no_more_memory_files_processes_or_threads_than_the_first(tiny_recipe, monkeypatch):
    """With a loader, an average, evaluations, pictures and checkpoints between the steps."""
    process = psutil.Process()
    needs: dict[int, dict[str, int]] = {}
    advance = MetricLogger.advance

    def measure(self, epoch, *values):
        advance(self, epoch, *values)
        step = measure.step = measure.step + 1
        if step % 100 == 0:
            loaders = process.children(recursive=True)
            everyone = [process, *loaders]
            needs[step] = {
                "MiB": sum(one.memory_info().rss for one in everyone) // 2**20,
                "files": sum(one.num_fds() for one in everyone),
                "loaders": len(loaders),
                "threads": sum(one.num_threads() for one in everyone),
            }

    measure.step = 0
    monkeypatch.setattr(MetricLogger, "advance", measure)
    options = {"num_workers": 1, "ema_decay": 0.9, "eval_every_epochs": 10, "checkpoint_every_steps": 25}
    Trainer(tiny_recipe(**options, epochs=120)).train()  # of 5 steps
    early, late = needs[200], needs[600]
    assert early["loaders"] == 2  # those of training and of evaluation
    for what in ("files", "loaders", "threads"):
        assert late[what] <= early[what], needs
    assert late["MiB"] <= early["MiB"] + 8, needs
