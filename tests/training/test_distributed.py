"""How a run is distributed: fewer processes than requested are an error."""

import sys

import psutil
import pytest
from accelerate.commands.config import config_args

from modeling_detr.training import distributed
from modeling_detr.training.distributed import build_accelerator, requested_processes


RUN = ["--data", "shapes", "--num_processes", "7"]  # what follows the script is none of the launcher's business


@pytest.fixture
def default_config(tmp_path, monkeypatch):
    """The file that `accelerate config` writes; it does not exist yet."""
    path = tmp_path / "default_config.yaml"
    monkeypatch.setattr(config_args, "default_config_file", str(path))
    return path


@pytest.mark.parametrize(
    "program",
    [
        ["accelerate", "launch"],
        ["/venv/bin/python3", "/venv/bin/accelerate", "launch"],
        ["/venv/bin/python3", "/venv/bin/accelerate-launch"],
        ["python", "-m", "accelerate.commands.launch"],
        ["python", "-m", "accelerate.commands.accelerate_cli", "launch"],
    ],
)
def test_requested_processes_are_read_from_the_launchers_command_line(program, default_config):
    script = ["scripts/train.py", *RUN]
    assert requested_processes([*program, "--num_processes", "2", *script], RUN) == 2
    assert requested_processes([*program, "--num_processes=3", "--multi_gpu", "-m", "my.module", *RUN], RUN) == 3
    assert requested_processes([*program, *script], RUN) is None  # the launcher then takes what is there


def test_requested_processes_are_read_from_the_launchers_configuration(tmp_path, default_config):
    config = tmp_path / "mine.yaml"
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    launch, script = ["accelerate", "launch"], ["scripts/train.py", *RUN]
    assert requested_processes([*launch, "--config_file", str(config), *script], RUN) == 4
    assert requested_processes([*launch, "--config_file", str(config), "--num_processes", "2", *script], RUN) == 2
    default_config.write_text("distributed_type: 'NO'\nnum_processes: 5\n")
    assert requested_processes([*launch, *script], RUN) == 5
    assert requested_processes([*launch, "--cpu", *script], RUN) is None  # it then passes the default file over


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["bash", "launch"],
        ["python", "scripts/train.py", "accelerate", "launch", "--num_processes", "2", "scripts/train.py", *RUN],
        ["accelerate", "test", "--num_processes", "2"],
        ["accelerate", "launch", "--num_processes", "2", "scripts/evaluate.py", "model", "data"],  # of something else
    ],
)
def test_other_commands_request_no_processes(command):
    assert requested_processes(command, RUN) is None


class Launcher:
    def __init__(self, *command: str) -> None:
        self.command = command

    def cmdline(self):
        return [*self.command]


def test_a_run_with_fewer_processes_than_requested_is_refused(tiny_recipe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", *RUN])
    above = [Launcher("bash"), Launcher("accelerate", "launch", "--num_processes", "2", "scripts/train.py", *RUN)]
    monkeypatch.setattr(psutil.Process, "parents", lambda _: above)
    with pytest.raises(ValueError, match=r"asked for 2 processes.* started 1: .*torchrun --nproc_per_node 2"):
        build_accelerator(tiny_recipe())


@pytest.mark.parametrize("trouble", [psutil.AccessDenied(1), psutil.ZombieProcess(1), OSError(), SystemExit(2)])
def test_an_unreadable_launcher_does_not_stop_a_run(tiny_recipe, monkeypatch, trouble):
    def refuse(*_):
        raise trouble

    monkeypatch.setattr(distributed, "requested_processes", refuse)
    assert build_accelerator(tiny_recipe()).num_processes == 1
