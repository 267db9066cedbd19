"""From a finished document to an HTTP answer: token, served-by, lag, timings, entity tag, 304, 404."""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar.types import ASGIApp, Scope

from atelier.asgi import Sent, describe_body, headers_of
from atelier.deadline import Deadline
from atelier.errors import HistoryLostError
from atelier.http import DROP_TOKEN_COOKIE, TOKEN_HEADER, matches, read_cookies
from atelier.problems import MEDIA_TYPE, ProblemError
from atelier.reads.asking import Asker
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask
from atelier.reads.router import STALE
from atelier.settings import Settings
from atelier.telemetry import Exchange
from atelier.token import TokenKeys

Fetch = Callable[[Ask], Awaitable[Document]]

# A cache that keeps an answer for a while must not give it to who has seen more, or asked for more.
_VARY = b"Atelier-Token, Atelier-Consistency, Cookie"
_TOKEN = TOKEN_HEADER.lower().encode()
_NO_COOKIES: Mapping[str, str] = {}


class Responder:
    """Answers a read over HTTP."""

    def __init__(self, settings: Settings, keys: TokenKeys, asker: Asker) -> None:
        """Takes the default `Cache-Control` from the settings, and what seals and reads tokens."""
        self._cache_control = settings.reads.cache_control.encode()
        self._keys = keys
        self._asker = asker

    def begin(self) -> Deadline:
        """The deadline of a request that begins now, where it has to do something else before `respond`."""
        return self._asker.begin()

    async def respond(self, scope: Scope, fetch: Fetch, *, keyed: Deadline | None = None) -> ASGIApp:
        """Reads what is asked, fetches the document, and writes it down.

        Args:
            scope: of the request, for its headers.
            fetch: gets the document for an ask.
            keyed: for a read that needs an API key, the deadline under which it was found valid. No cache may give
                the answer to anybody else.

        Raises:
            AtelierError: the app makes a problem of it.
        """
        headers = headers_of(scope)
        cookies = read_cookies(headers["Cookie"]) if "cookie" in headers else _NO_COOKIES
        ask, by_cookie = self._asker.read(headers, cookies, keyed)
        drop_cookie = by_cookie and ask.token is None
        try:
            document = await fetch(ask)
        except HistoryLostError:
            if not by_cookie:
                raise
            drop_cookie = True
            consistency, wait_ms = headers.get("Atelier-Consistency"), headers.get("Atelier-Wait-Ms")
            ask = self._asker.make(None, consistency, wait_ms, ask.deadline)
            document = await fetch(ask)
        _note(scope, document.answer)
        is_private = keyed is not None or ask.token is not None or ask.policy.consistency != "eventual"
        answer_headers = self._describe(document, is_private=is_private)
        if drop_cookie:
            answer_headers.append((b"set-cookie", DROP_TOKEN_COOKIE.encode()))
        return _write(document, answer_headers, path=scope["path"], asked=headers.get("If-None-Match"))

    def _describe(self, document: Document, *, is_private: bool) -> list[tuple[bytes, bytes]]:
        answer = document.answer
        lag = "unknown" if answer.lag_ms is None else str(math.ceil(answer.lag_ms))
        headers = [
            (b"cache-control", b"private, no-cache" if is_private else self._cache_control),
            (b"vary", _VARY),
            (_TOKEN, self._keys.seal(answer.token).encode()),
            (b"atelier-served-by", answer.node.encode()),
            (b"atelier-lag-ms", lag.encode()),
            (b"server-timing", _timing(answer).encode()),
        ]
        if document.tag:
            headers.append((b"etag", document.tag.encode()))
        if document.links:
            headers.append((b"link", document.links.encode()))
        return headers


def _write(document: Document, headers: list[tuple[bytes, bytes]], *, path: str, asked: str | None) -> Sent:
    """The answer; `asked` is the `If-None-Match` of the request, None when there is none."""
    if document.body is None:
        body = ProblemError("not-found", document.missing).body(path)
        return Sent(404, [*headers, *describe_body(MEDIA_TYPE, body)], body)
    if asked is not None and matches(asked, document.tag):
        return Sent(304, headers, b"")
    return Sent(200, [*headers, *describe_body("application/json", document.body)], document.body)


def _timing(answer: Answer) -> str:
    spent = answer.timings
    # An answer that breaks the limit on lag, because the settings prefer that to none, says so.
    mark = f';desc="{STALE}"' if answer.reason == STALE else ""
    return f"route;dur={spent.route_ms:.2f}{mark}, wait;dur={spent.wait_ms:.2f}, db;dur={spent.db_ms:.2f}"


def _note(scope: Any, answer: Answer) -> None:
    """Tells the request's log line where the answer came from."""
    exchange: Exchange | None = scope.get("atelier")
    if exchange is not None:
        spent = answer.timings
        exchange.notes.update(
            node=answer.node,
            reason=answer.reason,
            route_ms=round(spent.route_ms, 2),
            wait_ms=round(spent.wait_ms, 2),
            db_ms=round(spent.db_ms, 2),
        )
