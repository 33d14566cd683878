"""The sockets: where the server listens, how long clients may take, and how it ends.

uvicorn has no deadline for receiving a request or for a client that does not read its answer (Kludex/uvicorn#1192), so
each connection has one here. When slow clients hold all connections, uvicorn's `limit_concurrency` refuses the others;
here, the slow ones lose their place.
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from modeling_detr.serving.guard import Guard
from modeling_detr.serving.service import Service


try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None  # type: ignore[assignment]

FORCED = 1  # exit code after a second signal
_MOST_CONNECTIONS = 512  # more cost those their place that have waited longest for their clients
_KEEP_ALIVE = 30  # seconds until a connection without requests is closed
_GRACE = 5  # seconds that clients have to close their connections in the end
_SLACK = 1.25  # of the time to receive a request: the application answers 408 first
_CHECKS = 8  # in that time
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def most_connections() -> int:
    """The number of connections at a time, for which the process may need half of the files that it may open."""
    if resource is None:
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, files // 2)


class Server(uvicorn.Server):
    """Runs the application until SIGINT or SIGTERM, and then until what was accepted is answered.

    A second signal waits for nothing.

    Args:
        service: The model.
        app: Its application.
    """

    def __init__(self, service: Service, app: Guard) -> None:
        seconds, most = service.limits.timeout, most_connections()
        super().__init__(
            uvicorn.Config(
                app,
                http=type("_Connection", (Connection,), {"seconds": seconds, "most": most}),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=2 * most,  # requests of clients that were cut off may still be ending
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self.service = service
        self._is_asked_to_stop = False

    def serve_on(self, listener: socket.socket) -> None:
        """Answers requests until the end; `service.failure` says why if it was not asked for.

        Args:
            listener: See `listen`.
        """
        asyncio.run(self.serve(sockets=[listener]))

    def stop(self) -> None:
        """Begins the end."""
        self.service.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Has signals stop the server. uvicorn's own would end the process with the signal instead of code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._handle_signal)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _handle_signal(self) -> None:
        if self._is_asked_to_stop:
            os._exit(FORCED)  # a thread that computes cannot be interrupted
        self._is_asked_to_stop = True
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for clients to read their answers, and cuts off those that take too long."""
        await super().shutdown(sockets)
        for connection in self.server_state.connections:
            connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; asked ten times a second."""
        done = self.service.is_stopping and self.service.active == 0
        return await super().on_tick(counter) or done


class Connection(H11Protocol):
    """A connection that is cut if its client sends a request, or reads the answer, too slowly.

    When there are too many connections, a new one replaces the one that has waited longest for its client.

    Attributes:
        seconds: What a request may take to be received, and again its answer to be read.
        most: Number of connections.
    """

    seconds = 30.0
    most = _MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begins to watch."""
        super().connection_made(transport)
        self._since = self.loop.time()  # when the client had to act
        self._watch = self.loop.call_later(self.seconds / _CHECKS, self._check)
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Notes when a request begins and when it is complete."""
        was_receiving = self._is_receiving
        if self._is_between_requests:
            self._since = self.loop.time()
        super().data_received(data)
        if was_receiving and not self._is_receiving:
            self._since = self.loop.time()

    def on_response_complete(self) -> None:
        """Notes when an answer is left to its client to read."""
        self._since = self.loop.time()
        super().on_response_complete()

    @property
    def _is_receiving(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    @property
    def _is_unread(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    @property
    def _is_between_requests(self) -> bool:
        """Whether it is idle, which has a time limit of uvicorn's."""
        is_idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        return is_idle and self.cycle is not None and not self._is_unread

    def _check(self) -> None:
        waits_for_client = (self._is_receiving and not self._is_between_requests) or self._is_unread
        if waits_for_client and self.loop.time() - self._since > _SLACK * self.seconds:
            self._cut()
            return
        self._watch = self.loop.call_later(self.seconds / _CHECKS, self._check)

    def _make_room(self) -> None:
        while len(self.connections) > self.most:
            others = [
                one
                for one in self.connections
                if isinstance(one, Connection) and one is not self and (one._is_receiving or one._is_unread)
            ]
            if not others:
                return
            min(others, key=lambda one: one._since)._cut()

    def _cut(self) -> None:
        self.connections.discard(self)
        self.transport.abort()
