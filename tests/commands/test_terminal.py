import io
import json
import os
import subprocess
import sys
import types

import pytest

from modeling_detr.commands import COMMANDS, Command, main
from modeling_detr.commands.terminal import PrintableStream
from modeling_detr.errors_detr import DatasetError


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202e"


PROGRAM = """
import json, logging, sys, types, warnings
from modeling_detr.commands import COMMANDS, Command, main

def run(arguments):
    name = arguments[0]
    print(json.dumps({"name": name}, ensure_ascii=False))
    logging.warning("unused weight %s", name)
    warnings.warn(f"corrupt file {name}")
    raise RuntimeError(f"size mismatch for {name}")  # no error for the user: it keeps its traceback

sys.modules["hostile_command"] = types.SimpleNamespace(main=run)
COMMANDS["hostile"] = Command("", "hostile_command")
main(["hostile", sys.argv[1]])
"""


def test_no_control_sequence_of_a_name_reaches_the_terminal():
    command = [sys.executable, "-c", PROGRAM, HOSTILE]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert json.loads(result.stdout) == {"name": HOSTILE}
    for text in ("unused weight", "corrupt file", "RuntimeError: size mismatch for"):
        assert rf"{text} \u001b]0;owned\u0007\u001b[2J\u009b2J\u202e" in result.stderr
    assert not set(result.stdout + result.stderr) & set("\x1b\x07\x9b\u202e")


def test_progress_bars_and_colours_pass():
    stream = io.StringIO()
    text = "50%|#####     |\r\x1b[A\x1b[1;31mred\x1b[0m\tand 斑马\n"
    assert PrintableStream(stream).write(text) == len(text)
    assert stream.getvalue() == text


@pytest.fixture
def ranked(monkeypatch):
    """Returns a function that runs a function as a command on a rank of two."""

    def run(function, rank):
        monkeypatch.setitem(sys.modules, "ranked", types.SimpleNamespace(main=function))
        monkeypatch.setitem(COMMANDS, "ranked", Command("", "ranked"))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        return main(["ranked"])

    return run


def test_each_line_of_another_rank_begins_with_it(ranked, capsys):
    def command(_):
        print("one", "line")
        print("\nthen", end="")
        print(" two\n[rank1]: as PyTorch writes")
        raise FileNotFoundError("no such folder")

    assert ranked(command, "1") == 2
    out, err = capsys.readouterr()
    assert out == "[rank1]: one line\n\n[rank1]: then two\n[rank1]: as PyTorch writes\n"
    assert err == "[rank1]: detr ranked: no such folder\n"


def test_warnings_and_tracebacks_of_another_rank_begin_with_it():
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    result = subprocess.run([sys.executable, "-c", PROGRAM, "x"], capture_output=True, text=True, env=environment)
    lines = result.stderr.splitlines()
    assert {"[rank1]: WARNING:root:unused weight x", "[rank1]: RuntimeError: size mismatch for x"} <= {*lines}
    assert all(line.startswith("[rank1]: ") for line in lines)


def test_the_first_rank_says_of_which_rank_an_error_is(ranked, capsys):
    def command(_):
        error = DatasetError("labels", "are broken")
        error.add_note("raised on rank 1")
        raise error

    assert ranked(command, "0") == 2
    assert capsys.readouterr().err == "detr ranked: labels: are broken. (raised on rank 1)\n"


def test_a_name_that_the_terminals_encoding_lacks_is_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setitem(sys.modules, "chinese", types.SimpleNamespace(main=lambda _: print("斑马")))
    monkeypatch.setitem(COMMANDS, "chinese", Command("", "chinese"))
    assert main(["chinese"]) == 0
    sys.stdout.flush()
    assert buffer.getvalue().decode() == "\\u6591\\u9a6c\n"


def test_a_command_runs_without_stdout_and_stderr(tmp_path):
    # files that it opens must not get their numbers, or what libraries print goes into them
    program = (
        "import os, sys, types\n"
        "from modeling_detr.commands import COMMANDS, Command, main\n"
        "def run(arguments):\n"
        "    print('lost')\n"
        "    with open(arguments[0], 'w') as file:\n"
        "        os.write(1, b'noise'), os.write(2, b'noise')\n"
        "        file.write('result')\n"
        "sys.modules['own'] = types.SimpleNamespace(main=run)\n"
        "COMMANDS['own'] = Command('', 'own')\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [sys.executable, "-c", program, "own", str(tmp_path / "out")]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *arguments])
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "result"
