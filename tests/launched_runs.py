"""Runs in separate processes, started as a user starts them or forked from one that has imported everything."""

import atexit
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from modeling_detr.benchmarks.detr_process import Place
from modeling_detr.training.metric_logger import read_log


ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# Logged values that depend on the clock and the machine, not on the computation.
INCIDENTAL = {"images_per_second", "seconds", "memory_gib", "loader_wait"}
# What forked processes find imported: this package's modules, and what these import when they first need it.
PRELOADED = [
    *(f"modeling_detr.commands.{name}" for name in ("train", "evaluate", "predict")),
    *(
        f"modeling_detr.training.{name}"
        for name in ("export", "plan", "preflight", "trainer", "expectations", "replay")
    ),
    *("modeling_detr.analysis.suspected_report", "modeling_detr.training.report_page"),
    *("hotcoco", "matplotlib.backends.backend_agg", "matplotlib.figure", "torch.utils.tensorboard"),
    *("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.WebPImagePlugin", "pytest"),
]
# The picture of the curves at the end of a run takes two seconds; other tests look at it.
WITHOUT_CURVES = "from modeling_detr import visualization; visualization.plot_curves = lambda *_: None"
DETR = "import sys; from modeling_detr.commands import main; sys.exit(main())"
RECIPE = """\
data: shapes?size=64&train=16&val=4
model_config:
  backbone: resnet10t
  backbone_kwargs: {channels: [8, 8, 16, 16], stem_width: 8}
  out_indices: [3]
  num_queries: 6
  d_model: 16
  encoder_layers: 1
  decoder_layers: 2
  encoder_attention_heads: 2
  decoder_attention_heads: 2
  encoder_ffn_dim: 16
  decoder_ffn_dim: 16
  dropout: 0.0
  attention_dropout: 0.0
  activation_dropout: 0.0
processor_config:
  size: {shortest_edge: 64, longest_edge: 64}
transform: light
num_workers: 0
epochs: 1
encoder_supervision: true
log_every_steps: 1
"""


def launch(*arguments, processes=1, launcher=None, environment=(), script="scripts/train.py", **options):
    """Start a script directly, with torchrun if there are several processes, or with another launcher."""
    start = [sys.executable]
    if launcher is not None:
        start = [sys.executable, "-m", *launcher]
    elif processes > 1:
        start += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        start += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return subprocess.Popen(
        [*start, script, *map(str, arguments)],
        cwd=ROOT,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **dict(environment),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def entries(run_dir: Path, kind: str):
    return [entry for entry in read_log(run_dir / "log.jsonl") if entry["kind"] == kind]


def logged(run_dir: Path) -> list[dict]:
    """Return all log entries, without incidental values."""
    return [
        {name: value for name, value in entry.items() if name not in INCIDENTAL}
        for entry in read_log(run_dir / "log.jsonl")
    ]


def wait_for_log(run: subprocess.Popen, run_dir: Path, kind: str = "step", number: int = 1) -> None:
    """Wait until the run has logged `number` entries of a kind; fail with its output if it ends earlier."""
    until = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < until:
        if (run_dir / "log.jsonl").exists() and len(entries(run_dir, kind)) >= number:
            return
        time.sleep(0.05)
    run.kill()
    raise AssertionError(f"no {number} entries of kind {kind}: {run.communicate()[0]}")


def wait_for_line(run: "PreparedRun", number: int) -> str:
    """Wait until the run has printed a line, and return it with its line break; fail if it ends earlier."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        has_ended = run.poll() is not None
        lines = run.output.read_text().splitlines(keepends=True) if run.output.exists() else []
        if len(lines) > number and lines[number].endswith("\n"):
            return lines[number]
        assert not has_ended, "".join(lines)
        time.sleep(0.02)
    raise AssertionError(f"no line {number}: {run.output.read_text()}")


class PreparedRun:
    """Code in forked processes that have imported what `detr` needs, which saves the seconds that this takes.

    It is used like a `subprocess.Popen`. With several processes, `poll` and `returncode` are those of the first that
    failed; each leads a session of its own.

    Args:
        output: The file to which stdout and stderr are appended.
        code: As for `python -c`.
        arguments: Those of each process.
        environments: What each process has in its environment beyond that of this one.
    """

    def __init__(
        self, output: Path, code: str, arguments: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]
    ) -> None:
        self.output = output
        start_method = multiprocessing.get_start_method()  # for data loaders, which would inherit forkserver
        self.processes = [
            _context.Process(
                target=_run, args=[output, code, words, {**os.environ, **ENVIRONMENT, **environment}, start_method]
            )
            for words, environment in zip(arguments, environments, strict=True)
        ]
        for process in self.processes:
            process.start()
        _started.extend(self.processes)
        self.pid = self.processes[0].pid

    @property
    def returncode(self) -> int | None:
        codes = [process.exitcode for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    exitcode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def is_alive(self) -> bool:
        return self.returncode is None

    def join(self, timeout: float | None = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            process.join(None if until is None else max(0, until - time.monotonic()))

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        if any(process.is_alive() for process in self.processes):
            raise subprocess.TimeoutExpired("prepared run", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait until it has ended, and return what it printed."""
        self.wait(timeout)
        return self.output.read_text(), None

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def terminate(self) -> None:
        for process in self.processes:
            process.terminate()


def start_code(output: Path, code: str, *arguments, environment=()) -> PreparedRun:
    """Start `python -c CODE ARGUMENTS` in a prepared process, whose stdout and stderr go to a file."""
    output.unlink(missing_ok=True)
    return PreparedRun(output, code, [[*map(str, arguments)]], [dict(environment)])


def start_script(output: Path, script: str, *arguments, processes=1) -> PreparedRun:
    """Start `python tests/SCRIPT ARGUMENTS` in prepared processes, with the environment of `start_prepared`."""
    output.unlink(missing_ok=True)
    code = f"import runpy; runpy.run_path({str(ROOT / 'tests' / script)!r}, run_name='__main__')"
    return PreparedRun(output, code, [[*map(str, arguments)]] * processes, _connections(processes, processes))


def start_prepared(
    output: Path, *arguments, command="train", processes=1, machines=1, of_each=None, environment=(), before=""
) -> PreparedRun:
    """Start a command of `detr` in prepared processes, with the environment that torchrun would give them.

    A training draws no curves when it ends.

    Args:
        output: The file that stdout and stderr go to.
        arguments: The arguments of the command.
        command: Its name.
        processes: How many processes; more than one are connected.
        machines: On how many machines they seem to be.
        of_each: Further arguments of each process.
        environment: Further environment variables.
        before: Code that runs before the command.
    """
    output.unlink(missing_ok=True)
    words = [[command, *map(str, [*arguments, *more])] for more in of_each or [()] * processes]
    environments = [{**one, **dict(environment)} for one in _connections(processes, processes // machines)]
    return PreparedRun(output, f"{WITHOUT_CURVES}\n{before}\n{DETR}", words, environments)


def _connections(processes: int, local: int) -> list[dict[str, str]]:
    """The environment variables by which each process finds the others; none for a single one."""
    if processes == 1:
        return [{}]
    with socket.create_server(("localhost", 0)) as server:
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1])}
    meeting |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(local)}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank % local)} for rank in range(processes)]


def start_detr(arguments: Sequence[str], output: Path, place: Place) -> PreparedRun:
    """In place of `detr_process.start_detr`: the runs of a study, without their imports."""
    return PreparedRun(output, f"{WITHOUT_CURVES}\n{DETR}", [arguments], [{}])


# Processes

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)
_started: list[BaseProcess] = []


@atexit.register  # before multiprocessing waits for them
def _kill_what_still_runs() -> None:
    for process in _started:
        if process.is_alive():
            process.kill()


def _run(output: Path, code: str, arguments: list[str], environment: dict[str, str], start_method: str) -> None:
    global _context
    _context = multiprocessing.get_context("fork")  # a second server would import everything again
    multiprocessing.set_start_method(start_method, force=True)
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["-c", *arguments]
    torch.set_num_threads(1)
    exec(code, {"__name__": "__main__"})
