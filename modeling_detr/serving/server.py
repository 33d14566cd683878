"""The sockets: where the server listens, how long clients may take, and how it ends.

uvicorn has no deadline for receiving a request or for a client that does not read its answer (Kludex/uvicorn#1192), so
each connection has one here.
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from modeling_detr.errors_detr import OutputError
from modeling_detr.serving.guard import Guard
from modeling_detr.serving.service import Service


_MOST_CONNECTIONS = 512  # more are answered 503
_KEEP_ALIVE = 30  # seconds until a connection without requests is closed
_GRACE = 5  # seconds that clients have to close their connections in the end
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Args:
        host: A name or address of this machine.
        port: The port; 0: one that is free.

    Raises:
        OutputError: The port is in use or not allowed, or the host is not this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        problem = f"cannot be opened ({error.strerror or error})"
        raise OutputError(f"port {port} of {host}", problem, "choose another --port or --host") from error


class Server(uvicorn.Server):
    """Runs the application until SIGINT or SIGTERM, and then until what was accepted is answered.

    A second signal does not wait for the answers.

    Args:
        service: The model.
        app: Its application.
    """

    def __init__(self, service: Service, app: Guard) -> None:
        seconds = service.limits.timeout
        super().__init__(
            uvicorn.Config(
                app,
                http=type("_Connection", (Connection,), {"seconds": seconds}),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self.service = service

    def serve_on(self, listener: socket.socket) -> None:
        """Answers requests until the end; `service.failure` says why if it was not asked for.

        Args:
            listener: See `listen`.
        """
        asyncio.run(self.serve(sockets=[listener]))

    def stop(self) -> None:
        """Begins the end; a second call does not wait for answers."""
        if self.service.is_stopping:
            self.should_exit = self.force_exit = True
        self.service.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Has signals stop the server. uvicorn's own would end the process with the signal instead of code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; asked ten times a second."""
        done = self.service.is_stopping and self.service.active == 0
        return await super().on_tick(counter) or done


class Connection(H11Protocol):
    """A connection that is cut if its client sends a request, or reads the answer, too slowly.

    Attributes:
        seconds: What a request may take to be received. A client that does not read has the same time.
    """

    seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begins to watch."""
        super().connection_made(transport)
        self._receiving_since: float | None = self.loop.time()
        self._unread = 0
        self._watch = self.loop.call_later(self.seconds / 2, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Notes when a request begins and when it is complete."""
        if self._receiving_since is None:
            self._receiving_since = self.loop.time()
        super().data_received(data)
        state = self.conn.their_state
        is_between = state is h11.IDLE and not self.conn.trailing_data[0]
        if is_between or state not in (h11.IDLE, h11.SEND_BODY):
            self._receiving_since = None

    def _check(self) -> None:
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        since = self._receiving_since
        # the application answers 408 after `seconds`; what is later does not read that either
        too_slow = since is not None and now - since > 1.25 * self.seconds
        if too_slow or (unread and unread == self._unread):
            self.transport.abort()
            return
        self._unread = unread
        self._watch = self.loop.call_later(self.seconds / 2, self._check)
