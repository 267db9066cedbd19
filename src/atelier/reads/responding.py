"""From a finished document to an HTTP answer: token, served-by, lag, timings, entity tag, 304, 404."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request, Response

from atelier.errors import HistoryLostError
from atelier.http import DROP_TOKEN_COOKIE, TOKEN_HEADER, matches
from atelier.problems import MEDIA_TYPE, ProblemError
from atelier.reads.asking import Asker
from atelier.reads.executor import Answer, Ask
from atelier.reads.storefront import Document
from atelier.settings import Settings
from atelier.telemetry import Exchange
from atelier.token import TokenKeys

Fetch = Callable[[Ask], Awaitable[Document]]
ReadRequest = Request[Any, Any, Any]

# A cache that keeps an answer for a while must not give it to who has seen more, or asked for more.
_VARY = "Atelier-Token, Atelier-Consistency, Cookie"


class Responder:
    """Answers a read over HTTP."""

    def __init__(self, settings: Settings, keys: TokenKeys, asker: Asker) -> None:
        """Takes the default `Cache-Control` from the settings, and what seals and reads tokens."""
        self._cache_control = settings.reads.cache_control
        self._keys = keys
        self._asker = asker

    async def respond(self, request: ReadRequest, fetch: Fetch) -> Response[bytes]:
        """Reads what is asked, fetches the document, and writes it down.

        Args:
            request: for its headers and cookies.
            fetch: gets the document for an ask.

        Raises:
            AtelierError: the app makes a problem of it.
        """
        ask, by_cookie = self._asker.read(request.headers, request.cookies)
        drop_cookie = by_cookie and ask.token is None
        try:
            document = await fetch(ask)
        except HistoryLostError:
            if not by_cookie:
                raise
            drop_cookie = True
            headers = request.headers
            ask = self._asker.make(None, headers.get("Atelier-Consistency"), headers.get("Atelier-Wait-Ms"))
            document = await fetch(ask)
        _note(request.scope, document.answer)
        answer_headers = self._describe(document, ask)
        if drop_cookie:
            answer_headers["Set-Cookie"] = DROP_TOKEN_COOKIE
        return _write(request, document, answer_headers)

    def _describe(self, document: Document, ask: Ask) -> dict[str, str]:
        answer = document.answer
        private = ask.token is not None or ask.policy.consistency != "eventual"
        headers = {
            "Cache-Control": "private, no-cache" if private else self._cache_control,
            "Vary": _VARY,
            TOKEN_HEADER: self._keys.seal(answer.token),
            "Atelier-Served-By": answer.node,
            "Atelier-Lag-Ms": "unknown" if answer.lag_ms is None else str(math.ceil(answer.lag_ms)),
            "Server-Timing": _timing(answer),
        }
        if document.tag:
            headers["ETag"] = document.tag
        if document.links:
            headers["Link"] = document.links
        return headers


def _write(request: ReadRequest, document: Document, headers: dict[str, str]) -> Response[bytes]:
    if document.body is None:
        body = ProblemError("not-found", document.missing).body(request.scope["path"])
        return Response(body, status_code=404, headers=headers, media_type=MEDIA_TYPE)
    if matches(request.headers.get("If-None-Match"), document.tag):
        return Response(b"", status_code=304, headers=headers, media_type="application/json")
    return Response(document.body, headers=headers, media_type="application/json")


def _timing(answer: Answer) -> str:
    spent = answer.timings
    return f"route;dur={spent.route_ms:.2f}, wait;dur={spent.wait_ms:.2f}, db;dur={spent.db_ms:.2f}"


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
