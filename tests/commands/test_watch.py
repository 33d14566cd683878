import re
import signal
import urllib.request
import webbrowser

import pytest
from launched_runs import start_code, wait_for_line

from modeling_detr.commands import run_command, watch
from modeling_detr.watching.server import WatchServer


def test_it_prints_its_address_and_ends_with_one_line(tmp_path):
    # a shell in the background ignores interrupts, which processes inherit
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from modeling_detr.commands import main; raise SystemExit(main())"
    process = start_code(tmp_path / "printed", code, "watch", tmp_path / "run")
    url = re.search(r"http://127\.0\.0\.1:\d+/", wait_for_line(process, 0))[0]
    assert b"<h1>run</h1>" in urllib.request.urlopen(url, timeout=60).read()
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert (process.returncode, lines[1:]) == (0, ["stopped watching; the run is not affected"])


def test_the_browser_is_opened_if_requested(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url))

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchServer, "serve_forever", interrupted)
    assert watch.main([str(tmp_path), "--open"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no browser found; open the address yourself",
        "stopped watching; the run is not affected",
    ]
    assert opened[0].startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["file"], "detr watch: file: is a file; expected the folder of a run."),
        (["run", "--port", "65536"], "detr watch: --port: got 65536, expected 0 to 65535."),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run_command("watch", arguments) == 2
    assert capsys.readouterr().err == f"{message}\n"
