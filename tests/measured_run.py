"""A run in a process of its own, which prints as JSON what it needs after every hundred steps.

python tests/measured_run.py RECIPE
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import psutil

from modeling_detr.training.metric_logger import MetricLogger
from modeling_detr.training.recipe import parse_recipe
from modeling_detr.training.trainer import Trainer


def needs() -> dict[str, int]:
    """Of this process and its loaders together."""
    process = psutil.Process()
    loaders = process.children(recursive=True)
    everyone = [process, *loaders]
    return {
        "MiB": sum(one.memory_info().rss for one in everyone) // 2**20,
        "files": sum(one.num_fds() for one in everyone),
        "loaders": len(loaders),
        "threads": sum(one.num_threads() for one in everyone),
    }


class Measuring(MetricLogger):
    """Measures between two steps, where no batch is on its way."""

    measured: list[dict[str, int]] = []  # noqa: RUF012 (the trainer builds the logger)

    def step(self, epoch: int, step: int, values: Mapping[str, Any]) -> None:
        """Logs, and measures."""
        super().step(epoch, step, values)
        if step % 100 == 0:
            self.measured.append(needs())


if __name__ == "__main__":
    import modeling_detr.training.trainer

    modeling_detr.training.trainer.MetricLogger = Measuring  # type: ignore[misc]
    Trainer(parse_recipe(sys.argv[1:])).train()
    print(json.dumps(Measuring.measured))
