"""The `/metrics` of a run: while it trains, from this machine only, and without a hold on it."""

import contextlib
import http.client
import re
import socket
import threading
import time

import pytest

from modeling_detr.errors_detr import RecipeError
from modeling_detr.listening import listen
from modeling_detr.training.metrics_server import MetricsServer, check_metrics_port
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer


def get(port, path="/metrics", headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def free_port():
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def serve():
    """Returns a function that serves a text until the test ends, and returns the port."""
    with contextlib.ExitStack() as stack:

        def start(text=lambda: b"detr_train_step 7\n", **options):
            listener = stack.enter_context(listen("127.0.0.1", 0))
            server = MetricsServer(listener, text, "text/plain", **options)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            stack.callback(server.shutdown)
            return listener.getsockname()[1]

        yield start


def test_a_run_serves_its_metrics_until_it_ends(tiny_recipe, free_port, capsys):
    seen, done = [], threading.Event()

    def scrape():
        while not done.is_set():
            with contextlib.suppress(OSError):
                seen.append(get(free_port)[1])
            time.sleep(0.02)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        Trainer.from_recipe(tiny_recipe(metrics_port=free_port, epochs=4)).train()
    finally:
        done.set()
        scraper.join()
    assert f"metrics   http://127.0.0.1:{free_port}/metrics\n" in capsys.readouterr().out
    evaluated = next(text for text in reversed(seen) if 'detr_train_metric{name="ap"}' in text)
    values = dict(re.findall(r"^(\S+) (\S+)$", evaluated, flags=re.MULTILINE))
    step = float(values["detr_train_step"])
    assert step > 0
    assert float(values["detr_train_images_total"]) == 4 * step  # 20 images in batches of 4
    assert float(values["detr_train_last_step"]) == 20
    assert float(values["detr_train_checkpoint_age_seconds"]) < 60
    assert float(values["detr_train_best_score"]) >= 0
    assert {'detr_train_loss{term="loss"}', 'detr_train_loader_wait_seconds_total{rank="0"}'} <= values.keys()
    listen("127.0.0.1", free_port).close()  # the run has given it back


def test_a_port_in_use_stops_the_run_before_it_starts(tiny_recipe):
    with listen("127.0.0.1", 0) as listener:
        recipe = tiny_recipe(metrics_port=(port := listener.getsockname()[1]))
        with pytest.raises(
            RecipeError,
            match=rf"metrics_port: port {port} of 127.0.0.1 cannot .*in use.*choose another metrics_port",
        ):
            prepare_run(recipe)
    assert not recipe.run_dir.exists()


def test_a_missing_package_is_an_error_before_the_run_starts(tiny_recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"metrics_port: needs prometheus-client.*'modeling-detr\[metrics\]'"):
        check_metrics_port(tiny_recipe(metrics_port=0))
    check_metrics_port(tiny_recipe())


def test_only_the_metrics_are_answered_and_only_to_this_machine(serve):
    port = serve()
    assert get(port) == (200, "detr_train_step 7\n")
    assert get(port, headers={"Host": "localhost:9999"})[0] == 200  # through a tunnel
    assert get(port, headers={"Host": "evil.example"})[0] == 421
    assert get(port, "/../recipe.yaml")[0] == 404
    assert get(serve(is_local=False), headers={"Host": "node7:9400"})[0] == 200


def test_clients_that_are_slow_lose_their_place(serve, capfd):
    port = serve(seconds=1.0)
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for connection in slow:
        connection.sendall(b"GET /metr")
    until = time.monotonic() + 20
    status = None
    while status != 200 and time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status = get(port)[0]
        time.sleep(0.05)
    assert status == 200
    for connection in slow:
        connection.close()
    assert "Traceback" not in capfd.readouterr().err
