"""From errors to problem documents over HTTP: the one place where a refusal is written down."""

from collections.abc import Callable
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp

from atelier.errors import AtelierError
from atelier.http import TOKEN_HEADER
from atelier.problems import MEDIA_TYPE, ProblemError, to_problem
from atelier.telemetry import Exchange
from atelier.token import CausalToken, TokenKeys
from atelier.web.cors import SAFE_METHODS

AnyRequest = Request[Any, Any, Any]
Handler = Callable[[AnyRequest, Any], Response[bytes]]

_NAMES = {
    404: "not-found",
    405: "method-not-allowed",
    415: "unsupported-media-type",
}
_DETAILS = {
    404: "There is nothing at this address.",
    405: "This address does not take the method.",
}
# Whoever refuses with one of these means: come back.
_LATER = (429, 503)
_FAILED = b'{"type":"about:blank","title":"Internal Server Error","status":500}'

log = structlog.get_logger("atelier.refusals")


class Refusals:
    """Answers what was refused, whoever refused it."""

    def __init__(self, keys: TokenKeys, present: Callable[[], CausalToken | None]) -> None:
        """Takes what seals tokens, and what tells where the present primary stands (None while there is none)."""
        self._keys = keys
        self._present = present

    def handlers(self) -> dict[int | type[Exception], Handler]:
        """For the framework: what to do about which error."""
        return {AtelierError: self.refuse, HTTPException: self.refuse_http, Exception: fail}

    def answer(self, scope: Any, error: Exception) -> ASGIApp:
        """The same for who answers without the framework."""
        request: AnyRequest = Request(scope)
        refuse = self.refuse if isinstance(error, AtelierError) else fail
        return refuse(request, error).to_asgi_response(None, request)  # type: ignore[arg-type]  # just told apart

    def refuse(self, request: AnyRequest, error: AtelierError) -> Response[bytes]:
        """A refusal of ours."""
        problem = to_problem(error)
        if problem is None:
            return fail(request, error)
        headers = dict(problem.headers)
        if (problem.name == "history-lost" or _is_of_a_command(request)) and (token := self._present()) is not None:
            headers[TOKEN_HEADER] = self._keys.seal(token)
        return _write(request, problem, headers)

    def refuse_http(self, request: AnyRequest, error: HTTPException) -> Response[bytes]:
        """A refusal of the framework's, in the same form; its own words stay inside."""
        status = error.status_code
        if status >= 500:
            return fail(request, error)
        detail = _DETAILS.get(status, "The request is malformed.")
        problem = ProblemError(_NAMES.get(status, "invalid-request"), detail)
        return _write(request, problem, {"Allow": _allow(error)} if status == 405 else {})


def fail(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A mistake of ours: logged with everything, answered with nothing but that it happened."""
    log.error("request_failed", path=request.scope["path"], exc_info=error)
    return Response(_FAILED, status_code=500, media_type=MEDIA_TYPE)


def _is_of_a_command(request: AnyRequest) -> bool:
    """Whether somebody writes, or asks what became of it: every answer to that carries a token."""
    return request.scope["method"] not in SAFE_METHODS or request.scope["path"].startswith("/commands/")


def _allow(error: HTTPException) -> str:
    """The methods of the address: HEAD goes wherever GET does, and OPTIONS everywhere."""
    names = {name.strip() for name in (error.headers or {}).get("allow", "").split(",") if name.strip()}
    return ", ".join(sorted(names | {"OPTIONS"} | ({"HEAD"} if "GET" in names else set())))


def _write(request: AnyRequest, problem: ProblemError, headers: dict[str, str]) -> Response[bytes]:
    exchange: Exchange | None = request.scope.get("atelier")  # type: ignore[assignment]  # of no TypedDict
    if exchange is not None:
        exchange.notes["problem"] = problem.name
    later = {"Retry-After": "1"} if problem.type.status in _LATER else {}
    return Response(
        problem.body(request.scope["path"]),
        status_code=problem.type.status,
        headers={"Cache-Control": "no-store", **later, **headers},
        media_type=MEDIA_TYPE,
    )
