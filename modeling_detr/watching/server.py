"""The server of the page: on this machine only, and for its own page only.

It listens on 127.0.0.1. A request whose Host header names another host is refused, so that no web page can reach
it by letting its own name point here (DNS rebinding). Addresses have numbers instead of names, so none leads out of
the run's folder.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from modeling_detr.errors_detr import DetrError, OutputError
from modeling_detr.input_files import read_bytes
from modeling_detr.training.picture_history import find_pictures
from modeling_detr.watching.page import watch_page
from modeling_detr.watching.run_view import RunWatcher


HOST = "127.0.0.1"
_MAX_PICTURE_BYTES = 32 << 20
_SECONDS_BETWEEN_VIEWS = 1.0  # however many browsers ask
_PICTURE = re.compile(r"/pictures/(\d{1,12}|best)/(\d{1,4})", re.ASCII)
_HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks whether its copy is still current
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Content(NamedTuple):
    """What a request is answered with.

    Attributes:
        body: The bytes.
        kind: Their media type.
        version: Changes with the body, for `ETag`.
    """

    body: bytes
    kind: str
    version: str

    @classmethod
    def of(cls, body: bytes, kind: str) -> "Content":
        """Content whose version is the hash of its bytes."""
        return cls(body, kind, hashlib.sha256(body).hexdigest()[:32])


class WatchServer(ThreadingHTTPServer):
    """Serves the page of a run.

    Args:
        run_dir: The folder of the run, which may not exist yet.
        port: The port on 127.0.0.1; 0: one that is free.

    Raises:
        OutputError: The port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, run_dir: Path, port: int = 0) -> None:
        self.run_dir = run_dir
        self._page = Content.of(
            watch_page(run_dir).to_html().encode("utf-8", "backslashreplace"), "text/html; charset=utf-8"
        )
        self._watcher = RunWatcher(run_dir)
        self._lock = threading.Lock()
        self._view: Content | None = None
        self._viewed_at = 0.0
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            problem = f"cannot be opened ({error.strerror or error})"
            raise OutputError(f"port {port}", problem, "choose another --port, or leave it out") from error

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}/"

    @property
    def hosts(self) -> set[str]:
        """The values of the Host header that belong to this server."""
        return {f"{host}:{self.port}" for host in (HOST, "localhost", "[::1]")}

    def content(self, path: str) -> Content | None:
        """The content of an address; None if there is none."""
        if path == "/":
            return self._page
        if path == "/status.json":
            return self._current_view()
        match = _PICTURE.fullmatch(path)
        return self._picture(match[1], int(match[2])) if match else None

    def _current_view(self) -> Content:
        with self._lock:
            now = time.monotonic()
            if self._view is None or now - self._viewed_at >= _SECONDS_BETWEEN_VIEWS:
                values = self._watcher.view().values()
                self._view = Content.of(json.dumps(values, separators=(",", ":")).encode(), "application/json")
                self._viewed_at = time.monotonic()
            return self._view

    def _picture(self, key: str, number: int) -> Content | None:
        files = next((pictures.files for pictures in find_pictures(self.run_dir) if pictures.key == key), ())
        if number >= len(files):
            return None
        try:
            return Content.of(read_bytes(files[number], _MAX_PICTURE_BYTES), "image/jpeg")
        except (DetrError, OSError):  # it has been replaced or removed in this moment
            return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error to print; any other one is."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; everything else is not implemented."""

    server: WatchServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a request until a connection is closed

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def version_string(self) -> str:
        return "detr"

    def log_message(self, *_: Any) -> None:
        """Requests are not printed."""

    def _answer(self, *, with_body: bool) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return
        try:
            content = self.server.content(self.path.partition("?")[0])
        except OSError:  # a file has been replaced or removed in this moment
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if content is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        tag = f'"{content.version}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
            return
        headers = {"ETag": tag, "Content-Type": content.kind, "Content-Length": str(len(content.body))}
        self._send(HTTPStatus.OK, headers)
        if with_body:
            self.wfile.write(content.body)

    def _refuse(self, status: HTTPStatus) -> None:
        body = f"{status.value} {status.phrase}\n".encode()
        self.close_connection = True  # whatever else the request has is not read
        self._send(status, {"Content-Type": "text/plain", "Content-Length": str(len(body)), "Connection": "close"})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
