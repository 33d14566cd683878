"""The page in a browser: it follows a run from before its start to its end."""

import json
import os
import platform
import threading

import numpy as np
import pytest
from browser import CHROMIUM, browser

from modeling_detr.training.picture_history import keep_pictures
from modeling_detr.training.run_status import note_end, note_start
from modeling_detr.watching.server import WatchServer


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

HOSTILE = "<img src=x onerror=document.title='owned'>"
LINE = "document.querySelector('.state span').textContent"
STATE = "document.querySelector('.state').dataset.state"
HEADINGS = (
    "[...document.querySelectorAll('h2')].filter((one) => one.offsetParent !== null).map((one) => one.textContent)"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def server(tmp_path):
    with WatchServer(tmp_path / HOSTILE.replace("/", "")) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def log(folder, *entries):
    with (folder / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def step(number):
    return {"kind": "step", "epoch": 1, "step": number, "loss": 100.0 / number, "seconds": float(number)}


def test_the_page_follows_a_run_from_before_its_start_to_its_end(chromium, server):
    folder = server.run_dir
    chromium.open(server.url)
    assert chromium.wait_for(STATE, "waiting") == "waiting"
    assert chromium.evaluate(HEADINGS) == ["Curves"]

    folder.mkdir()
    (folder / ".lock").write_text(json.dumps({"host": platform.node(), "process": os.getpid()}))
    note_start(folder, 0, 0.0, total_steps=100, epochs=2, plan=f"classes   1, {HOSTILE}")
    (folder / "recipe.yaml").write_text(f"data: '{HOSTILE}'\n")
    log(folder, *map(step, range(10, 60, 10)))
    log(folder, {"kind": "warning", "epoch": 1, "step": 50, "text": HOSTILE})
    log(folder, {"kind": "epoch", "epoch": 1, "step": 50, "ap": 0.25, "seconds": 60.0})
    pictures = {f"000_{HOSTILE}".replace("/", ""): np.full((60, 120, 3), 200, np.uint8)}
    keep_pictures(folder, 50, pictures, most=5)
    assert chromium.wait_for(STATE, "training") == "training"
    assert chromium.evaluate(LINE) == "Training. Epoch 1 of 2, step 50 of 100."
    assert chromium.evaluate(HEADINGS) == ["Warnings", "Curves", "Predictions", "Plan", "Recipe"]
    assert chromium.evaluate("document.querySelector('progress').value") == 0.5
    assert chromium.evaluate("document.querySelector('.warnings li').textContent") == f"step 50{HOSTILE}"
    assert chromium.evaluate("document.querySelector('.live[data-name=plan] pre').textContent").endswith(HOSTILE)
    shown = "document.querySelector('figure img').naturalWidth"
    assert chromium.wait_for(shown, 120) == 120
    caption = "document.querySelector('.slider output').textContent"
    assert chromium.evaluate(caption) == "step 50, epoch 1, AP 0.250"
    lines = "document.querySelectorAll('.panel polyline').length > 0"
    assert chromium.evaluate(lines) is True

    chromium.evaluate("document.querySelectorAll('input[name=axis]')[1].click()")
    keep_pictures(folder, 100, {name: picture[:, :90] for name, picture in pictures.items()}, most=5)
    log(
        folder, *map(step, range(60, 110, 10)), {"kind": "epoch", "epoch": 2, "step": 100, "ap": 0.5, "seconds": 120.0}
    )
    note_end(folder, "finished")
    assert chromium.wait_for(STATE, "finished") == "finished"
    assert chromium.evaluate("document.querySelectorAll('input[name=axis]')[1].checked") is True
    assert chromium.wait_for(shown, 90) == 90  # the latest evaluation
    slider = "document.querySelector('.slider input')"
    chromium.evaluate(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    assert chromium.wait_for(shown, 120) == 120
    assert chromium.evaluate(caption) == "step 50, epoch 1, AP 0.250"
    assert chromium.evaluate("document.title") == f"finished 100% {HOSTILE}"
    assert [problem for problem in chromium.problems if not problem.startswith(server.url)] == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_its_window(chromium, server, width, scheme):
    folder = server.run_dir
    folder.mkdir()
    note_start(folder, 0, 0.0, total_steps=100, epochs=2, plan="classes   " + "x" * 500)
    log(folder, *map(step, range(1, 50)), {"kind": "warning", "epoch": 1, "step": 5, "text": "y" * 500})
    keep_pictures(folder, 50, {"000_" + "z" * 100: np.zeros((60, 1200, 3), np.uint8)}, most=5)
    chromium.open(server.url, width, scheme)
    assert chromium.wait_for("document.querySelectorAll('.panel').length > 0", True) is True
    assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_the_page_says_when_the_command_has_ended(chromium, tmp_path):
    server = WatchServer(tmp_path / "run")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    chromium.open(server.url)
    assert chromium.wait_for(STATE, "waiting") == "waiting"
    server.shutdown()
    thread.join()
    server.server_close()
    chromium("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    assert chromium.wait_for(STATE, "lost") == "lost"
    chromium("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
