"""From a finished document to an HTTP answer: token, served-by, lag, timings, entity tag, 304."""

from collections.abc import Awaitable, Callable

from litestar import Request, Response

from atelier.errors import HistoryLostError
from atelier.http import DROP_TOKEN_COOKIE, TOKEN_HEADER, matches
from atelier.reads.asking import Asker
from atelier.reads.executor import Answer, Ask
from atelier.reads.storefront import Document
from atelier.settings import Settings
from atelier.token import TokenKeys

Fetch = Callable[[Ask], Awaitable[Document]]


class Responder:
    """Answers a read over HTTP."""

    def __init__(self, settings: Settings, keys: TokenKeys, asker: Asker) -> None:
        """Takes the default `Cache-Control` from the settings, and what seals and reads tokens."""
        self._cache_control = settings.reads.cache_control
        self._keys = keys
        self._asker = asker

    async def respond(self, request: Request, fetch: Fetch, headers: dict[str, str] | None = None) -> Response[bytes]:
        """Reads what is asked, fetches the document, and writes it down.

        Args:
            request: for its headers and cookies.
            fetch: gets the document for an ask.
            headers: more headers of the answer.

        Raises:
            AtelierError: the app makes a problem of it.
        """
        ask, by_cookie = self._asker.read(request.headers, request.cookies)
        lost_cookie = by_cookie and ask.token is None
        try:
            document = await fetch(ask)
        except HistoryLostError:
            if not by_cookie:
                raise
            lost_cookie = True
            ask = self._asker.make(None, request.headers.get("Atelier-Consistency"), request.headers.get("Atelier-Wait-Ms"))
            document = await fetch(ask)
        answer_headers = {**self._describe(document, ask), **(headers or {})}
        if lost_cookie:
            answer_headers["Set-Cookie"] = DROP_TOKEN_COOKIE
        if matches(request.headers.get("If-None-Match"), document.tag):
            return Response(b"", status_code=304, headers=answer_headers, media_type="application/json")
        return Response(document.body, headers=answer_headers, media_type="application/json")

    def _describe(self, document: Document, ask: Ask) -> dict[str, str]:
        answer = document.answer
        private = ask.token is not None or ask.policy.consistency != "eventual"
        return {
            "ETag": document.tag,
            "Cache-Control": "private, no-cache" if private else self._cache_control,
            TOKEN_HEADER: self._keys.seal(answer.token),
            "Atelier-Served-By": answer.node,
            "Atelier-Lag-Ms": "unknown" if answer.lag_ms is None else str(int(answer.lag_ms + 0.999)),
            "Server-Timing": _timing(answer),
        }


def _timing(answer: Answer) -> str:
    spent = answer.timings
    return f"route;dur={spent.route_ms:.2f}, wait;dur={spent.wait_ms:.2f}, db;dur={spent.db_ms:.2f}"
