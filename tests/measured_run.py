"""Train, measure memory, open files and threads every 20 steps, and print them as JSON.

python tests/measured_run.py RECIPE
"""

import ctypes
import json
import sys
from collections.abc import Mapping

import psutil

from modeling_detr.training.metric_logger import MetricLogger
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.training.trainer import Trainer


def measure() -> dict[str, int]:
    """What this process and its data loaders use together."""
    ctypes.CDLL(None).malloc_trim(0)  # returns what is free to the system, which varies by 20 MiB
    process = psutil.Process()
    loaders = process.children(recursive=True)
    processes = [process, *loaders]
    return {
        "MiB": sum(process.memory_info().rss for process in processes) // 2**20,
        "files": sum(process.num_fds() for process in processes),
        "loaders": len(loaders),
        "threads": sum(process.num_threads() for process in processes),
    }


if __name__ == "__main__":
    measured: list[dict[str, int]] = []
    log_step = MetricLogger.step

    def log_and_measure(logger: MetricLogger, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Measure between two steps, when no batch is being transferred."""
        log_step(logger, epoch, step, values)
        if step % 20 == 0:
            measured.append(measure())

    MetricLogger.step = log_and_measure
    Trainer.from_recipe(parse_recipe(sys.argv[1:])).train()
    print(json.dumps(measured))
