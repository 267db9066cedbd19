"""The outermost layer: exact paths, HEAD, CORS, request ids, security headers, the log line and the request metrics.

Plain ASGI and one pass over a request, because it is on the path of every one.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from atelier.asgi import headers_of
from atelier.deadline import Clock
from atelier.problems import MEDIA_TYPE, ProblemError
from atelier.telemetry import DURATIONS, REQUESTS, Exchange, requests
from atelier.web.cors import Cors, Headers
from atelier.web.paths import Surface, is_exact

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A document that is no page loads nothing, whatever somebody makes a browser take it for.
STRICT_POLICY = b"default-src 'none'; frame-ancestors 'none'"
_SECURITY: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_CLOSE: Headers = [(b"connection", b"close")]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KNOWN_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_LONGEST_LOGGED = 200
_ADDRESSES_WITH_SLASH = frozenset({b"/problems/"})


def make_request_id() -> str:
    """A new request id: 16 hexadecimal digits. It names, it does not protect, so the cheap dice will do."""
    return f"{random.getrandbits(64):016x}"


class Edge:
    """The application as the server sees it."""

    def __init__(
        self,
        app: App,
        *,
        surface: Surface,
        cors: Cors,
        clock: Clock,
        tell: Callable[..., object] | None = None,
        is_ending: Callable[[], bool] = lambda: False,
        make_id: Callable[[], str] = make_request_id,
    ) -> None:
        """Wraps an application.

        Args:
            app: what answers.
            surface: all addresses, for OPTIONS.
            cors: who may call from where.
            clock: monotonic, in seconds.
            tell: writes the line of a request: its event and its fields; None for no lines.
            is_ending: whether the process will end soon; then each answer closes its connection.
            make_id: makes the id of a request that came without one.
        """
        self._app = app
        self._surface = surface
        self._cors = cors
        self._clock = clock
        self._tell_line = tell
        self._is_ending = is_ending
        self._make_id = make_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands the process's lifespan on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope).raw
        given = headers.get(b"x-request-id", b"")
        exchange = Exchange(given.decode() if _REQUEST_ID.fullmatch(given) else self._make_id())
        scope["atelier"] = exchange
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        answer = _Answer(send, exchange, scope["method"], self._cors.of_answer(scope["method"], origin))
        if self._is_ending():
            answer.farewell = _CLOSE
        started_s = self._clock()
        requests.in_progress += 1
        try:
            await self._answer(scope, receive, answer, headers)
        finally:
            requests.in_progress -= 1
            self._tell(scope, answer, exchange, duration_s=self._clock() - started_s)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer", headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        if not is_exact(_read_raw_path(scope), with_slash=_ADDRESSES_WITH_SLASH):
            await answer.refuse(ProblemError("not-found", "There is nothing at this address."), path)
        elif answer.method == "OPTIONS":
            await self._answer_options(path, answer, headers)
        elif answer.method == "HEAD":
            # A GET whose body stays here, so that both have the same headers. An endless answer is told to end.
            scope["method"] = "GET"
            await self._app(scope, answer.until_started(receive), answer.send)
        else:
            await self._app(scope, receive, answer.send)

    async def _answer_options(self, path: str, answer: "_Answer", headers: dict[bytes, bytes]) -> None:
        methods = self._surface.methods_of(path)
        if not methods:
            await answer.refuse(ProblemError("not-found", "There is nothing at this address."), path)
            return
        answer_headers: Headers = [(b"allow", ", ".join(methods).encode())]
        asked = headers.get(b"access-control-request-method")
        if asked is not None and b"origin" in headers:
            answer.cors = self._cors.of_preflight(asked.decode("latin-1"), headers[b"origin"].decode("latin-1"))
        await answer.send({"type": "http.response.start", "status": 204, "headers": answer_headers})
        await answer.send({"type": "http.response.body", "body": b""})

    def _tell(self, scope: Scope, answer: "_Answer", exchange: Exchange, *, duration_s: float) -> None:
        """Counts the request, by route template, and writes its line."""
        route = scope.get("path_template") or "(none)"
        method = answer.method if answer.method in _KNOWN_METHODS else "(other)"
        REQUESTS.count(method, route, str(answer.status))
        DURATIONS.observe(duration_s, route)
        if self._tell_line is not None:
            self._tell_line(
                "request",
                method=answer.method,
                path=_read_raw_path(scope).decode("latin-1")[:_LONGEST_LOGGED],
                status=answer.status,
                duration_ms=round(duration_s * 1000, 2),
                request_id=exchange.request_id,
                **exchange.notes,
            )


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send, exchange: Exchange, method: str, cors: Headers) -> None:
        self._send = send
        self._exchange = exchange
        self.method = method
        self.cors = cors
        self.farewell: Headers = []
        self.status = 0

    async def send(self, message: Message) -> None:
        """Passes a message on, with the headers that every answer has, and without the body of a HEAD."""
        if message["type"] != "http.response.start":
            # Without a body to send, an endless answer would never let go of the loop, nor hear that it is over.
            await (asyncio.sleep(0) if self.method == "HEAD" else self._send(message))
            return
        self.status = message["status"]
        message["headers"] = [*message["headers"], *self._own_headers()]
        await self._send(message)
        if self.method == "HEAD":
            await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, problem: ProblemError, path: str) -> None:
        """Answers with a problem that no route is needed for."""
        body = problem.body(path)
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": problem.type.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def until_started(self, receive: Receive) -> Receive:
        """What the application of a HEAD request receives: once it has sent its headers, the client is gone."""

        async def receive_head() -> Message:
            return {"type": "http.disconnect"} if self.status else await receive()

        return receive_head

    def _own_headers(self) -> Headers:
        return [
            (b"x-request-id", self._exchange.request_id.encode()),
            (b"content-security-policy", self._exchange.policy or STRICT_POLICY),
            *_SECURITY,
            *self.cors,
            *self.farewell,
        ]


def _read_raw_path(scope: Scope) -> bytes:
    """The path as it came over the wire: nothing in it can move a terminal's cursor, and no slash hides in it."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw
