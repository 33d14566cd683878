"""The `/metrics` of a run: an HTTP server in a thread of its main process, from which Prometheus reads its values.

It may be reached by others, and must not disturb the training: few connections at a time, each for a few seconds.
"""

import contextlib
import importlib.util
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import Accelerator

from modeling_detr.errors_detr import OutputError, RecipeError
from modeling_detr.listening import host_of, is_loopback, listen, url_of
from modeling_detr.training.distributed import in_main_process
from modeling_detr.training.recipe import Recipe


if TYPE_CHECKING:
    from modeling_detr.process_metrics import ProcessMetrics


_MOST_CONNECTIONS = 8
_SECONDS = 10.0  # that a connection lasts at most
METRICS = "/metrics"

_Metrics = TypeVar("_Metrics", bound="ProcessMetrics")


def check_metrics_port(recipe: Recipe) -> None:
    """Check, before any work, that the metrics of a run can be served.

    Raises:
        RecipeError: The port cannot be opened, or prometheus-client is not installed.
    """
    if recipe.metrics_port is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise RecipeError(
            "metrics_port", "needs prometheus-client, which is not installed", "pip install 'modeling-detr[metrics]'"
        )
    _listen(recipe.metrics_host, recipe.metrics_port).close()


@contextlib.contextmanager
def served_metrics(
    recipe: Recipe, accelerator: Accelerator, build: Callable[[], _Metrics]
) -> Iterator[_Metrics | None]:
    """Serve the metrics of a run in the block, if its recipe asks for it. All processes call it together.

    Args:
        recipe: The recipe.
        accelerator: The accelerator of the run.
        build: Returns the metrics; it may import an optional package.

    Yields:
        What `build` returned; None in processes that serve nothing.

    Raises:
        RecipeError: The port cannot be opened. Raised in all processes.
    """
    with contextlib.ExitStack() as stack:
        metrics = None
        with in_main_process(accelerator) as is_main:
            if is_main and recipe.metrics_port is not None:
                metrics = build()
                listener = stack.enter_context(_listen(recipe.metrics_host, recipe.metrics_port))
                is_local = is_loopback(recipe.metrics_host)
                readers = "" if is_local else ", for all who reach this machine"
                print(f"metrics   {url_of(recipe.metrics_host, listener)}{METRICS[1:]}{readers}", flush=True)
                stack.enter_context(_serving(metrics, listener, is_local))
        yield metrics


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OutputError as error:
        remedy = "choose another metrics_port, 0 for one that is free, or another metrics_host"
        raise RecipeError("metrics_port", f"{error.where} {error.problem}", remedy) from error


@contextlib.contextmanager
def _serving(metrics: "ProcessMetrics", listener: socket.socket, is_local: bool) -> Iterator[None]:
    server = MetricsServer(listener, metrics.to_text, metrics.kind, is_local)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


class MetricsServer(ThreadingHTTPServer):
    """Answers GET /metrics.

    Args:
        listener: An open port; see `listen`. It is not closed.
        text: Returns the content.
        kind: Its media type.
        is_local: Whether to refuse requests that name another host than this machine: from a web page whose own name
            points here (DNS rebinding).
        seconds: How long a connection lasts at most.
    """

    daemon_threads = True

    def __init__(
        self,
        listener: socket.socket,
        text: Callable[[], bytes],
        kind: str,
        is_local: bool = True,
        seconds: float = _SECONDS,
    ) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.text, self.kind, self.is_local, self.seconds = text, kind, is_local, seconds
        self._places = threading.Semaphore(_MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of its own, or closes the connection if there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system allows no further thread
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers, for a limited time."""
        deadline = threading.Timer(self.seconds, _shut, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error to print; any other one is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended in this moment
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        server = self.server
        if server.is_local and not is_loopback(host_of(self.headers.get("Host", ""))):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"use http://127.0.0.1\n")
        elif self.path.partition("?")[0] != METRICS:
            self._send(HTTPStatus.NOT_FOUND, b"see /metrics\n")
        else:
            self._send(HTTPStatus.OK, server.text(), server.kind)

    def version_string(self) -> str:
        return "detr"

    def log_message(self, *_: Any) -> None:
        """Requests are not printed."""

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
