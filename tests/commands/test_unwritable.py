"""Where nothing can be written, each command says so, with a remedy, before it reads or computes anything."""

import errno
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

from modeling_detr.commands import COMMANDS as COMMANDS_OF_DETR
from modeling_detr.commands import (
    Command,
    convert,
    data,
    evaluate,
    explain,
    export,
    predict,
    run_command,
    slots,
    trained_on,
)
from modeling_detr.training import setup


@pytest.fixture
def read_only(tmp_path):
    """A folder on a file system that is mounted for reading only, which also root cannot write to."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode
    except OSError:
        mounted = 1
    if mounted != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def inputs(tmp_path, monkeypatch, backbone_weights, config):
    """The arguments of each command without its output; work that begins all the same fails."""

    def too_late(*_, **__):
        raise AssertionError("the work has begun")

    for module in (explain, slots, convert, export):
        monkeypatch.setattr(module, "load_model", too_late)
    for module in (predict, evaluate):
        monkeypatch.setattr(module, "load_detector", too_late)
    for module in (data, trained_on):
        monkeypatch.setattr(module, "open_dataset", too_late)
    monkeypatch.setattr(data, "check_dataset", too_late)
    monkeypatch.setattr(setup, "open_splits", too_late)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    picture, log = tmp_path / "a.png", tmp_path / "log.jsonl"
    picture.touch()
    log.write_text('{"kind": "epoch", "epoch": 1, "loss": 2.5}\n')
    return {
        "train": ["train", str(config), "--output_dir"],
        "evaluate": ["evaluate", "model", "shapes", "--output_dir"],
        "predict": ["predict", "model", str(picture), "--output_dir"],
        "explain": ["explain", "model", str(picture), "--output_dir"],
        "slots": ["slots", "model", "shapes", "--output_dir"],
        "convert": ["convert", "model"],
        "export": ["export", "model"],
        "data convert": ["data", "convert", "dataset", "--to", "coco"],
        "data check": ["data", "check", "dataset", "--fix"],
        "data check, page": ["data", "check", "dataset", "--html"],
        "data show": ["data", "show", "dataset", "--output_dir"],
        "plot": ["plot", str(log), "--output"],
        "benchmark convergence": ["benchmark", "convergence", "shapes", "--output_dir"],
    }


def program_of(command: str) -> str:
    """What messages start with."""
    return command.partition(",")[0]


COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "explain",
    "slots",
    "convert",
    "export",
    "data convert",
    "data check",
    "data check, page",
    "data show",
    "plot",
    "benchmark convergence",
]


def message(arguments: list[str], target: Path, capsys) -> str:
    name, *rest = arguments
    assert run_command(name, [*rest, str(target)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_folder(command, inputs, read_only, capsys):
    target = read_only / "out.png"
    assert message(inputs[command], target, capsys) == (
        f"detr {program_of(command)}: {target}: cannot be written (Read-only file system); mount its file system for "
        "writing, or choose another folder."
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_refuses_for_another_reason(command, inputs, tmp_path, capsys, monkeypatch, number):
    def refuse(**_):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    target = tmp_path / "new/out.png"
    problem = f"detr {program_of(command)}: {target}: cannot be written ({os.strerror(number)}); "
    text = message(inputs[command], target, capsys)
    assert text.startswith(problem)
    assert text.endswith(", or choose another folder.")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_parent_that_is_a_file_and_a_name_that_is_too_long(command, inputs, tmp_path, capsys):
    (tmp_path / "file").touch()
    text = message(inputs[command], tmp_path / "file/deep/out.png", capsys)
    assert text.endswith(
        f"(Not a directory); move {tmp_path / 'file'} away, which is a file, or choose another folder."
    )
    text = message(inputs[command], tmp_path / f"{'n' * 300}.png", capsys)
    assert text.endswith("n.png: cannot be written (File name too long); choose a shorter name.")


def test_a_folder_in_the_place_of_a_result(inputs, tmp_path, capsys):
    for command, name in (
        ("evaluate", "evaluation.md"),
        ("predict", "predictions.json"),
        ("predict", "a.png"),
        ("data show", "gallery.jpg"),
        ("train", ".lock"),
        ("train", "evaluation.json"),
    ):
        target = tmp_path / command / "out"
        (target / name).mkdir(parents=True)
        text = message(inputs[command], target, capsys)
        (target / name).rmdir()
        problem = f"{target / name}: cannot be written (Is a directory)"
        assert f"{problem}; move the folder of this name away, or choose another folder." in text


def test_an_error_of_the_system_has_no_number(capsys, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied", "log.jsonl")

    monkeypatch.setitem(sys.modules, "refusing_command", types.SimpleNamespace(main=refuse))
    monkeypatch.setitem(COMMANDS_OF_DETR, "refuse", Command("", "refusing_command"))
    assert run_command("refuse", []) == 2
    assert capsys.readouterr().err == "detr refuse: log.jsonl: Permission denied; change its permissions.\n"
