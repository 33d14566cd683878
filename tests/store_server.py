"""Stores on this machine for the tests: an S3 server (moto), and a web server that can be made to fail."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock


class WebServer(ThreadingHTTPServer):
    """Serves a folder.

    delay: seconds before each answer. dead: whether requests get no answer. broken: how many of the next images break
    off in the middle. password: what `Authorization` must be. redirects: path → where it leads. requests: path → how
    often it was requested.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.delay = 0.0
        self.dead = False
        self.broken = 0
        self.password: str | None = None
        self.redirects: dict[str, str] = {}
        self.requests: Counter[str] = Counter()

    def handle_error(self, *_: object) -> None:
        """Keep the errors of clients that do not wait for an answer out of the tests' output."""

    @property
    def url(self) -> str:
        """The address that it listens on."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: WebServer

    def log_message(self, *_: object) -> None:
        """Keep the log of requests out of the tests' output."""

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        time.sleep(self.server.delay)
        if self.server.dead:
            self.close_connection = True
        elif self.server.password not in (None, self.headers.get("Authorization")):
            self.send_error(401)
        elif self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
        elif self.server.broken and self.path.endswith((".jpg", ".png")):
            self.server.broken -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()


@contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    """Run a web server during a `with` block."""
    with WebServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def s3_bucket(folder: Path, name: str) -> Iterator[str]:
    """Run an S3 server with the files of a folder in the bucket `name`; the environment leads clients to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, environment):
        try:
            client = boto3.client("s3")
            client.create_bucket(Bucket=name)
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                client.put_object(Bucket=name, Key=file.relative_to(folder).as_posix(), Body=file.read_bytes())
            yield f"s3://{name}"
        finally:
            server.stop()
