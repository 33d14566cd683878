import io
import json
import os
import subprocess
import sys
import types

from modeling_detr.commands import COMMANDS, Command, main
from modeling_detr.commands.terminal import PrintableStream


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
