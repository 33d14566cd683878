"""A server of `detr serve` in a thread, its clients, and a model that can be held."""

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.listening import listen
from modeling_detr.predicting import Detector
from modeling_detr.serving.app import create_app
from modeling_detr.serving.limits import Limits
from modeling_detr.serving.server import Server
from modeling_detr.serving.service import Service


TOKEN = "a-token-that-nobody-guesses"


class HeldDetector(Detector):
    """Notes its batches, and waits in each one while `gate` is closed."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches = []

    def predict_batch(self, inputs, sizes, rules):
        self.batches.append([*sizes])
        self.started.set()
        assert self.gate.wait(60)
        return super().predict_batch(inputs, sizes, rules)


def held_detector(model, source="the_model"):
    """A detector of small images."""
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return HeldDetector(model, processor, source=source)


def jpeg(width=120, height=90, seed=0):
    """The bytes of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Served:
    """A running server and its clients."""

    def __init__(self, service, server, port):
        self.service, self.server, self.port = service, server, port
        self.loop = self.thread = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, path="/predict", body=None, headers=None, method=None):
        """Sends a request on a connection of its own, and returns status, headers and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = answer.getheader("content-type") == "application/json"
        return answer.status, dict(answer.getheaders()), json.loads(content) if is_json else content.decode()

    def later(self, *arguments, **options):
        """Sends a request in a thread; the returned function waits for the answer."""
        answers = []

        def send():
            answers.append(self.request(*arguments, **options))

        thread = threading.Thread(target=send)
        thread.start()

        def answer():
            thread.join(60)
            return answers[0]

        return answer

    def connect(self, sent=b""):
        """A bare connection, on which something was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(sent)
        return connection

    def queued(self):
        """The number of images that wait."""
        text = self.request("/metrics")[2]
        return float(next(line for line in text.splitlines() if line.startswith("detr_queue_images ")).split()[1])

    def is_alive(self):
        """Whether the server is still running."""
        return self.thread.is_alive()

    def stop(self):
        """Does what a signal does."""
        self.loop.call_soon_threadsafe(self.server.stop)


def wait_until(condition, seconds=30):
    """Waits until a function returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


@contextmanager
def served(detector, token=None, limits=None, wait_for_ready=True, origins=(), **options):
    """Serves a detector until the block ends."""
    service = Service(detector, limits or Limits(), **options)
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, create_app(service, token, origins))
        running = Served(service, server, listener.getsockname()[1])

        def run():
            torch.set_num_threads(1)
            with asyncio.Runner() as runner:
                running.loop = runner.get_loop()
                runner.run(server.serve(sockets=[listener]))

        thread = running.thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_until(lambda: server.started)
            if wait_for_ready:
                wait_until(lambda: service.is_ready)
                getattr(detector, "batches", []).clear()
                getattr(detector, "started", threading.Event()).clear()
            yield running
        finally:
            getattr(detector, "gate", threading.Event()).set()
            if thread.is_alive():
                running.stop()
            thread.join(60)
            assert not thread.is_alive()
