"""Clients that are slow, many, or gone; and the end of the server."""

import contextlib
import json
import resource
import socket
import time

import pytest
from served import held_detector, jpeg, served, wait_until

from modeling_detr.errors_detr import OutputError
from modeling_detr.listening import is_loopback, listen
from modeling_detr.serving.limits import Limits
from modeling_detr.serving.server import most_connections


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
BUNDLE = "/static-offline-docs/swagger-ui-bundle.js"  # sent in pieces
QUICK = Limits(timeout=0.6, queue_size=16)


@contextlib.contextmanager
def slow_reader(running, path="/model"):
    """A client that has asked for an answer of megabytes and has hardly room for it."""
    large = running.service.description() | {"classes": ["x" * 20_000_000]}
    running.service.description = lambda: large
    running.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        wait_until(lambda: len(running.server.server_state.connections) == 1)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield connection


@pytest.fixture
def detector(tiny_detector):
    return held_detector(tiny_detector())


def test_a_client_that_sends_its_body_too_slowly_is_answered_408_and_others_are_not_affected(detector):
    with served(detector, limits=QUICK) as running:
        slow = [running.connect(HEAD % 5000 + b"\xff\xd8\xff") for _ in range(20)]
        assert running.request("/predict", jpeg())[0] == 200
        answer = b"".join(iter(lambda: slow[0].recv(10_000), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the request: was not received within 0.6 seconds; send it faster" in answer
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_client_that_sends_no_complete_head_is_cut_off(detector, sent):
    with served(detector, limits=QUICK) as running:
        connection = running.connect(sent)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
        connection.close()


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(detector):
    with served(detector, limits=QUICK) as running:
        connection = running.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")

        def is_cut():
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        wait_until(is_cut)
        connection.close()


def test_a_client_that_does_not_read_its_answer_is_cut_off(detector):
    with served(detector, limits=QUICK) as running, slow_reader(running):
        wait_until(lambda: len(running.server.server_state.connections) == 0)
        assert running.request("/predict", jpeg())[0] == 200


def test_a_client_that_reads_its_answer_too_slowly_is_cut_off(detector):
    with served(detector, limits=QUICK) as running, slow_reader(running) as connection:
        wait_until(lambda: connection.recv(4000) and len(running.server.server_state.connections) == 0)
        assert running.request("/predict", jpeg())[0] == 200


def test_clients_that_send_nothing_complete_cost_each_other_their_place_and_nobody_else(detector, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (48, 48))
    with served(detector, limits=Limits(queue_size=16)) as running:
        detector.gate.clear()
        accepted = running.connect(HEAD % len(jpeg()) + jpeg())
        wait_until(lambda: running.queued() == 1)
        parts = [b"", b"GET /health HT", HEAD % 5000 + b"\xff\xd8", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
        slow = [running.connect(parts[number % len(parts)]) for number in range(60)]
        wait_until(lambda: len(running.server.server_state.connections) == most_connections())
        assert running.request("/health")[0] == 200
        with contextlib.suppress(ConnectionResetError):
            assert slow[0].recv(1000) == b""
        detector.gate.set()
        assert accepted.recv(10_000).startswith(b"HTTP/1.1 200 ")
        for connection in (accepted, *slow):
            connection.close()


def test_a_process_that_may_open_few_files_has_fewer_connections(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert most_connections() == 128
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert most_connections() == 512


def test_what_is_no_http_is_answered_400(detector):
    with served(detector) as running:
        connection = running.connect(b"\x16\x03\x01\x00 nonsense\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
        connection.close()


def test_an_image_whose_client_has_gone_is_not_computed(detector):
    with served(detector) as running:
        detector.gate.clear()
        first = running.later("/predict", jpeg())
        wait_until(detector.started.is_set)
        gone = running.connect(HEAD % len(jpeg(90, 120)) + jpeg(90, 120))
        wait_until(lambda: running.queued() == 2)
        gone.close()
        wait_until(lambda: running.queued() == 1)
        half = running.connect(HEAD % 5000 + b"\xff\xd8\xff")
        half.close()
        detector.gate.set()
        assert first()[0] == 200
        assert running.request("/predict", jpeg())[0] == 200
        assert 'status="499"} 2.0' in running.request("/metrics")[2]
    assert detector.batches == [[(90, 120)], [(90, 120)]]


def test_a_full_queue_is_answered_503_with_a_time_to_come_back(detector):
    with served(detector, limits=Limits(queue_size=3, max_images=3)) as running:
        detector.gate.clear()
        waiting = [running.later("/predict", jpeg()) for _ in range(3)]
        wait_until(lambda: running.queued() == 3)
        status, headers, content = running.request("/predict", jpeg())
        assert (status, int(headers["retry-after"]) >= 1) == (503, True)
        assert content["error"]["message"] == (
            "the server: is busy: 3 images are waiting, of at most 3; send the request again later."
        )
        detector.gate.set()
        assert [answer()[0] for answer in waiting] == [200] * 3
        assert running.request("/predict", jpeg())[0] == 200


def test_a_request_that_takes_too_long_is_answered_503_and_leaves_the_queue(detector):
    with served(detector, limits=QUICK) as running:
        detector.gate.clear()
        status, headers, content = running.request("/predict", jpeg())
        assert (status, "retry-after" in headers) == (503, True)
        assert content["error"]["message"].startswith(
            "the request: was not answered within 0.6 seconds; send it again"
        )
        assert running.queued() == 0
        detector.gate.set()
        assert wait_until(lambda: running.request("/predict", jpeg())[0] == 200)


def test_bodies_together_have_a_limit(detector):
    with served(detector, limits=Limits(max_bytes=70_000_000)) as running:
        held = [running.connect(HEAD % 69_000_000 + b"x" * 68_000_000) for _ in range(4)]
        status, _, content = running.request("/predict", b"x" * 20_000_000)
        assert (status, content["error"]["message"]) == (
            503,
            "the server: is busy: the bodies of other requests fill the memory; send the request again later.",
        )
        for connection in held:
            connection.close()
        assert wait_until(lambda: running.request("/predict", jpeg())[0] == 200)


# The end


def test_when_it_stops_what_was_accepted_is_answered_and_the_rest_is_refused(detector):
    with served(detector) as running:
        detector.gate.clear()
        accepted = [running.later("/predict", jpeg()) for _ in range(3)]
        wait_until(lambda: running.queued() == 3)
        half_sent = running.connect(HEAD % 5000 + b"\xff\xd8\xff")
        wait_until(lambda: running.service.active == 4)
        running.stop()
        assert half_sent.recv(10_000).startswith(b"HTTP/1.1 503 ")
        status, headers, content = running.request("/predict", jpeg())
        assert (status, headers["retry-after"]) == (503, "5")
        assert content["error"]["message"].startswith("the server: is stopping; send the request to another server")
        assert running.request("/health")[::2] == (503, {"status": "stopping"})
        detector.gate.set()
        assert [answer()[0] for answer in accepted] == [200] * 3
        wait_until(lambda: not running.server.server_state.connections)
        half_sent.close()


def test_clients_that_are_slow_do_not_delay_the_end(detector):
    with served(detector, limits=Limits(timeout=300)) as running, slow_reader(running, BUNDLE):
        running.server.config.timeout_graceful_shutdown = 1
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        parts = [b"", head, head + b"\r\n", head + b"\r\n" + head, HEAD % 5000 + b"\xff\xd8"]
        slow = [running.connect(part) for part in parts]
        wait_until(lambda: len(running.server.server_state.connections) == len(parts) + 1)
        started = time.monotonic()
        running.stop()
        wait_until(lambda: not running.is_alive())
        assert time.monotonic() - started < 15
        for connection in slow:
            connection.close()


def test_a_model_that_fails_on_its_first_image_ends_the_server(detector, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(detector, "predict_batch", fail)
    with served(detector, wait_for_ready=False) as running:
        wait_until(lambda: running.service.failure)
    assert str(running.service.failure) == "no such kernel"


def test_a_port_in_use_is_an_error():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OutputError, match=rf"^port {port} of 127\.0\.0\.1: cannot be opened \(Address already in use"
        ):
            listen("127.0.0.1", port)
    with pytest.raises(OutputError, match="no-such-host: cannot be opened"):
        listen("no-such-host", 0)


def test_loopback_is_known_by_its_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))


def test_an_answer_is_plain_json(detector):
    with served(detector) as running:
        connection = running.connect(HEAD % len(jpeg()) + jpeg())
        head, _, body = b"".join(iter(lambda: _received(connection), b"")).partition(b"\r\n\r\n")
        connection.close()
    assert json.loads(body)["model"] == "the_model"
    for header in (b"x-content-type-options: nosniff", b"cache-control: no-store", b"x-frame-options: deny"):
        assert header in head.lower()
    assert b"server:" not in head.lower()


def _received(connection):
    connection.settimeout(2)
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""
