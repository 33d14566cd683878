"""Who may ask: the token, the host and the origin of a request are checked before anything of it is read."""

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeling_detr.listening import host_of, is_loopback
from modeling_detr.serving.refusal import Refusal
from modeling_detr.serving.service import Service


PREDICT, MODEL, METRICS, HEALTH = "/predict", "/model", "/metrics", "/health"
_PRIVATE = (PREDICT, MODEL, METRICS)  # the others say nothing about the model or its use
_COUNTED = ("/", PREDICT, MODEL, METRICS, HEALTH)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Lets through the requests that may be answered, and counts all.

    Without a token, other web pages in a browser of this machine must not use the model: a request whose Host header
    names another host is refused (DNS rebinding), and so is one that another page has sent.

    Args:
        app: What answers.
        service: The model.
        token: What a request must have as `Authorization: Bearer …`; None: nothing.
        origins: Web pages (`https://HOST:PORT`) that may use the model in a browser.
    """

    def __init__(self, app: ASGIApp, service: Service, token: str | None, origins: Collection[str] = ()) -> None:
        self.app, self.service, self._origins = app, service, origins
        self._answer: ASGIApp = self._answer_allowed
        if origins:
            self._answer = CORSMiddleware(
                self._answer_allowed, allow_origins=[*origins], allow_methods=["GET", "POST"], allow_headers=["*"]
            )
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, send_noted)
        finally:
            path = scope["path"]
            self.service.metrics.note_request(path if path in _COUNTED else "other", status)

    async def _answer_allowed(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        await (self.app if refusal is None else refusal.answer())(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if self._expected is not None:
            sent = headers.get("authorization", "").encode("latin-1")
            if scope["path"] in _PRIVATE and not hmac.compare_digest(sent, self._expected):
                return Refusal(401, "Authorization", "has no valid token", "send 'Authorization: Bearer TOKEN'")
            return None
        host = headers.get("host", "")
        if not is_loopback(host_of(host)):
            problem = "names a host that is not this machine"
            return Refusal(421, "Host", problem, "use http://127.0.0.1, or start the server with --token")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and urlsplit(origin).netloc != host:
            problem = "is another page, which may not use this server"
            return Refusal(403, "Origin", problem, f"start the server with --allowed_origins {origin[:100]}")
        return None
