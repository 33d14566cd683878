"""How long imports and commands take before they do anything."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modeling_detr.benchmarks.speed.measurement import OURS, STOCK, TIME, Measurement
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work, time_in_turn
from modeling_detr.errors_detr import BenchmarkError


# Work → contender → Python code
CASES: dict[str, dict[str, str]] = {
    "import the package": {OURS: "import modeling_detr", STOCK: "import torch, transformers"},
    "import the model class": {
        OURS: "from modeling_detr import DetrForObjectDetection",
        STOCK: "from transformers import DetrForObjectDetection",
    },
    "import Auto classes that find it": {
        OURS: "import modeling_detr; from transformers import AutoImageProcessor, AutoModelForObjectDetection",
        STOCK: "from transformers import AutoImageProcessor, AutoModelForObjectDetection",
    },
    "detr --help": {OURS: "from modeling_detr.commands import main; main(['--help'])"},
    "detr predict --help": {OURS: "from modeling_detr.commands import main; main(['predict', '--help'])"},
}
NOTES = ("CPU time of a new Python process, from its start to its end.",)
_PACKAGE_PARENT = Path(__file__).parents[4]


def measure(settings: SpeedSettings, cases: Mapping[str, Mapping[str, str]] | None = None) -> Iterator[Measurement]:
    """Measures Python processes that import and end."""
    rounds, warm_up = (3, False) if settings.quick else (settings.rounds, True)
    for work, codes in (CASES if cases is None else cases).items():
        works: dict[str, Work] = {name: _process(code) for name, code in codes.items()}
        yield Measurement(work, TIME, time_in_turn(works, child_seconds, rounds, settings.seconds, warm_up))


def child_seconds(work: Callable[[], object]) -> float:
    """The CPU time of the processes that `work` starts and waits for."""
    import resource  # not on Windows; unlike os.times(), it does not count in hundredths of a second

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _process(code: str) -> Work:
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}

    def run() -> None:
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or ["no output"]
            raise BenchmarkError(f"python -c {code!r}", f"ended with exit code {result.returncode}: {lines[-1]}")

    return run
