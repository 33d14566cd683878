"""Commands that start themselves in several processes: what is refused, exit codes, signals, several machines."""

import runpy
import signal
import socket
import sys
import time

import pytest
import torch
from launched_runs import DETR, RECIPE, entries, start_code, wait_for_log

from modeling_detr.commands.launching import Launch, start_processes, take_launch
from modeling_detr.errors_detr import LaunchError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def test_options_about_processes_are_separated_from_those_of_the_command():
    arguments = [
        "detr_r50",
        "--data",
        "coco",
        "--gpus=auto",
        "--epochs",
        "3",
        "--nodes",
        "2",
        "--main_address",
        "node1",
    ]
    launch, rest = take_launch(arguments)
    assert launch == Launch(gpus="auto", nodes=2, main_address="node1")
    assert rest == ["detr_r50", "--data", "coco", "--epochs", "3"]
    assert take_launch(["detr_r50", "--epochs", "3"]) == (None, ["detr_r50", "--epochs", "3"])
    with pytest.raises(LaunchError, match=r"--gpus: expected one argument"):
        take_launch(["detr_r50", "--gpus"])


@pytest.mark.parametrize(
    ("launch", "there", "message"),
    [
        (Launch(gpus="2"), 0, r"--gpus: PyTorch sees no GPU: .*; drop --gpus to use the CPU\."),
        (Launch(gpus="auto"), 0, r"--gpus: PyTorch sees no GPU"),
        (Launch(gpus="4"), 2, r"--gpus: got 4, but PyTorch sees 2; use --gpus 2\."),
        (Launch(gpus="all"), 2, r"--gpus: got 'all'; expected a number, such as 2, or auto\."),
        (Launch(gpus="0"), 2, r"--gpus: got '0'"),
        (Launch(gpus="2", cpu_processes=2), 2, r"--gpus: cannot be combined with --cpu_processes"),
        (Launch(cpu_processes=0), 0, r"--cpu_processes: got 0"),
        (Launch(nodes=2, gpus="2"), 2, r"--nodes: the machines need a place to meet; .*--main_address 10\.0\.0\.1"),
        (Launch(nodes=2, main_address="node1"), 2, r"--nodes: says nothing about each machine; add --gpus auto"),
        (Launch(gpus="2", main_address="node1"), 2, r"--main_address: is for several machines; add --nodes 2"),
        (Launch(nodes=0, gpus="2"), 2, r"--nodes: got 0"),
        (Launch(nodes=2, gpus="2", main_address="no.such.host"), 2, r"--main_address: no machine 'no.such.host'"),
        (Launch(nodes=2, gpus="2", main_address="host:http"), 2, r"--main_address: got 'host:http'"),
    ],
)
def test_what_cannot_be_started_is_refused_before_any_process(launch, there, message, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: there)
    with pytest.raises(LaunchError, match=message):
        launch.run("train", [])


def test_hidden_gpus_are_named_as_the_reason(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(LaunchError, match=r"got 2, but PyTorch sees 1 \(CUDA_VISIBLE_DEVICES is '3'\); use --gpus 1"):
        Launch(gpus="2").run("train", [])


def test_a_launcher_in_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LaunchError, match="a launcher has started this command already; drop --cpu_processes"):
        Launch(cpu_processes=2).run("train", [])


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert Launch(gpus="auto").run("train", []) is None


@pytest.mark.parametrize(("end", "code"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), 9)", 137), ("sys.exit(0)", 0)])
def test_the_exit_code_is_that_of_the_process_that_failed_which_ends_the_others(end, code):
    start = time.monotonic()
    program = f"import os, sys, time\nif os.environ['RANK'] == '1': {end}\nif {code}: time.sleep(300)"
    handler = signal.getsignal(signal.SIGTERM)
    assert start_processes(2, 1, None, ["-c", program]) == code
    assert time.monotonic() - start < 60
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_module_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m modeling_detr", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("modeling_detr.__main__", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("detr ")


def _detr(output, *arguments):
    """Starts `detr`, which starts its processes as it does without a test."""
    return start_code(output, DETR, *arguments, environment={"ACCELERATE_USE_CPU": ""})


@pytest.fixture
def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a small model, from random weights."""
    file = tmp_path / "recipe.yaml"
    frozen = "  freeze_batch_norm: false\n  freeze_backbone_stem: false\n"
    file.write_text(RECIPE.replace("model_config:\n", f"model_config:\n{frozen}"))
    return file


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(recipe, tmp_path):
    process = _detr(tmp_path / "printed", "train", recipe, "--data", "nowhere", "--cpu_processes", 2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert output.startswith("detr train: nowhere: no such file or folder")
    assert output.count("nowhere: no such") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_two_machines_that_meet_train_one_run(recipe, tmp_path, free_port):
    options = ["--output_dir", tmp_path / "run", "--cpu_processes", 1, "--nodes", 2]
    options += ["--main_address", f"localhost:{free_port}", "--preflight", "false"]
    nodes = [_detr(tmp_path / f"node_{node}", "train", recipe, *options) for node in range(2)]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum("best AP" in output for output in outputs) == 1  # that of the main process
    assert len(entries(tmp_path / "run", "epoch")) == 1


@pytest.mark.slow
def test_sigterm_ends_all_processes_with_a_checkpoint(recipe, tmp_path):
    options = ["--output_dir", tmp_path / "run", "--epochs", 1000, "--cpu_processes", 2, "--preflight", "false"]
    process = _detr(tmp_path / "printed", "train", recipe, *options)
    wait_for_log(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in output
    assert "torch/distributed" not in output  # a warning of the launcher
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))
