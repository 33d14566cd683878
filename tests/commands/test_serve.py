import importlib.util
import re
import signal
import threading
import time
import urllib.request

import pytest
from launched_runs import start_code, wait_for_line
from served import TOKEN, jpeg

from modeling_detr.commands import run_command
from modeling_detr.commands import serve as command


# The model is held for two seconds in each image, so that the signal arrives during one.
CODE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores interrupts
from modeling_detr.commands import main
from modeling_detr.predicting import Detector
predict_batch = Detector.predict_batch
def slow(self, inputs, sizes, rules):
    print("computing", flush=True)
    time.sleep(2)
    return predict_batch(self, inputs, sizes, rules)
Detector.predict_batch = slow
raise SystemExit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_was_accepted_be_answered_and_the_exit_code_is_0(model_folder, tmp_path, number):
    process = start_code(tmp_path / "printed", CODE, "serve", model_folder, "--port", 0, "--device", "cpu")
    answers = []
    line = wait_for_line(process, 0)
    url = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
    assert line == f"serving {model_folder} at {url} (Ctrl-C ends)\n"
    assert wait_for_line(process, 1) == "computing\n"  # the first image, before it is ready

    def send():
        with urllib.request.urlopen(f"{url}predict", jpeg(), timeout=60) as answer:
            answers.append((answer.status, b"detections" in answer.read()))

    client = threading.Thread(target=send)
    client.start()
    assert wait_for_line(process, 2) == "computing\n"
    process.send_signal(number)
    lines = process.communicate(timeout=60)[0].splitlines()
    client.join()
    assert answers == [(200, True)]
    assert (process.returncode, lines[3:]) == (0, ["stopped"])


def test_a_second_signal_does_not_wait_for_a_model_that_computes_for_long(model_folder, tmp_path):
    code = CODE.replace("time.sleep(2)", "time.sleep(300)")
    process = start_code(tmp_path / "printed", code, "serve", model_folder, "--port", 0, "--device", "cpu")
    try:
        assert wait_for_line(process, 0).startswith("serving ")
        assert wait_for_line(process, 1) == "computing\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "detr serve: --host 0.0.0.0: other machines can reach the server there, and no token is",
        ),
        (["--token", "short"], "detr serve: --token: has 5 characters, expected at least 16, all of them printable"),
        (["--port", "65536"], "detr serve: --port: got 65536, expected 0 to 65535."),
        (["--batch_size", "0"], "detr serve: --batch_size: got 0, expected at least 1."),
        (["--batch_wait_ms", "-1"], "detr serve: --batch_wait_ms: got -1.0, expected at least 0."),
        (["--queue_size", "15"], "detr serve: --queue_size: got 15, expected at least 16."),
        (["--max_pixels", "1000000000"], "detr serve: --max_pixels: got 1,000,000,000, expected at most 178,956,970"),
        (["--timeout", "0"], "detr serve: --timeout: got 0, expected a positive number of seconds."),
        (["--timeout", "nan"], "detr serve: --timeout: got nan, expected a positive number of seconds."),
    ],
)
def test_a_wrong_option_is_one_line(capsys, monkeypatch, options, message):
    monkeypatch.delenv(command.TOKEN, raising=False)
    assert run_command("serve", ["no_model", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", ".3"], "unknown option --threshold; requests choose it: /predict?threshold=0.3"),
        (["--workers", "4"], "unknown option --workers; a server is one process"),
        (["--cors", "*"], "unknown option --cors; did you mean '--allowed_origins'?"),
        (["--allowed_origins", "*"], "argument --allowed_origins: got '*', expected http://HOST:PORT"),
        (["--allowed_origins", "http://a/b"], "argument --allowed_origins: got 'http://a/b', expected"),
    ],
)
def test_options_that_others_have_lead_to_what_is_here(capsys, options, message):
    with pytest.raises(SystemExit):
        run_command("serve", ["no_model", *options])
    assert capsys.readouterr().err.startswith(f"detr serve: error: {message}")


def test_a_missing_package_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    assert run_command("serve", ["no_model"]) == 2
    assert capsys.readouterr().err == ("detr serve: uvicorn: is not installed; pip install 'modeling-detr[serve]'.\n")


def test_elsewhere_it_warns_and_a_token_of_the_environment_is_enough(capsys, monkeypatch):
    monkeypatch.setenv(command.TOKEN, TOKEN)
    assert run_command("serve", ["no_model", "--host", "0.0.0.0", "--port", "0"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: other machines can reach the server at 0.0.0.0. It speaks plain HTTP")
    assert error.startswith("detr serve: no_model: no such folder")


def test_its_help_needs_none_of_its_packages(tmp_path):
    code = "import sys; before = {*sys.modules}; from modeling_detr.commands import serve; serve.build_parser()\n"
    code += "print('fastapi' in before, 'fastapi' in sys.modules)"
    result, _ = start_code(tmp_path / "printed", code).communicate(timeout=60)
    assert result == "False False\n"
