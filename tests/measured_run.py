"""A run in a process of its own, which prints as JSON what it needs after every hundred steps.

python tests/measured_run.py RECIPE
"""

import json
import sys
from collections.abc import Mapping

import psutil

from modeling_detr.training.metric_logger import MetricLogger
from modeling_detr.training.recipe_parsing import parse_recipe
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


if __name__ == "__main__":
    measured: list[dict[str, int]] = []
    log_step = MetricLogger.step

    def log_and_measure(logger: MetricLogger, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Between two steps, where no batch is on its way."""
        log_step(logger, epoch, step, values)
        if step % 100 == 0:
            measured.append(needs())

    MetricLogger.step = log_and_measure
    Trainer(parse_recipe(sys.argv[1:])).train()
    print(json.dumps(measured))
