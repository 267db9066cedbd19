"""The documentation over HTTP: made once, answered from memory, the same in every role."""

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from atelier.documentation.pages import (
    DOCS_POLICY,
    PAGE_POLICY,
    describe_problem,
    docs_page,
    problem_page,
    problems_page,
    read_asset,
)
from atelier.http import hash_tag, matches
from atelier.problems import TYPES, ProblemError
from atelier.telemetry import Exchange

AnyRequest = Request[Any, Any, Any]

_HTML = "text/html; charset=utf-8"


def build_documentation(document: bytes) -> list[HTTPRouteHandler]:
    """The routes, around an OpenAPI document that is written already."""

    @get("/openapi.json")
    async def get_document(request: AnyRequest) -> Response[bytes]:
        return _answer(request, document, "application/json")

    @get("/docs")
    async def get_docs(request: AnyRequest) -> Response[bytes]:
        return _answer(request, docs_page().encode(), _HTML, policy=DOCS_POLICY)

    @get("/docs/assets/{asset:str}")
    async def get_asset(request: AnyRequest) -> Response[bytes]:
        found = read_asset(request.scope["path_params"]["asset"])
        if found is None:
            raise ProblemError("not-found", "The docs page has no such file.")
        return _answer(request, *found)

    @get("/problems/")
    async def get_problems(request: AnyRequest) -> Response[bytes]:
        if _wants_page(request):
            return _answer(request, problems_page().encode(), _HTML, policy=PAGE_POLICY, vary=True)
        listed = msgspec.json.encode([describe_problem(name) for name in TYPES])
        return _answer(request, listed, "application/json", vary=True)

    @get("/problems/{problem:str}")
    async def get_problem(request: AnyRequest) -> Response[bytes]:
        name = request.scope["path_params"]["problem"]
        if name not in TYPES:
            raise ProblemError("not-found", "There is no such kind of problem.")
        if _wants_page(request):
            return _answer(request, problem_page(name).encode(), _HTML, policy=PAGE_POLICY, vary=True)
        return _answer(request, msgspec.json.encode(describe_problem(name)), "application/json", vary=True)

    return [get_document, get_docs, get_asset, get_problems, get_problem]


def _wants_page(request: AnyRequest) -> bool:
    """Browsers name text/html; programs name JSON, anything, or nothing."""
    return "text/html" in request.headers.get("accept", "")


def _answer(
    request: AnyRequest, body: bytes, media_type: str, *, policy: bytes | None = None, vary: bool = False
) -> Response[bytes]:
    exchange: Exchange | None = request.scope.get("atelier")  # type: ignore[assignment]  # of no TypedDict
    if exchange is not None:
        exchange.policy = policy
    headers = {"ETag": hash_tag(body), "Cache-Control": "no-cache", **({"Vary": "Accept"} if vary else {})}
    if matches(request.headers.get("If-None-Match"), headers["ETag"]):
        return Response(b"", status_code=304, headers=headers, media_type=media_type)
    return Response(body, headers=headers, media_type=media_type)
