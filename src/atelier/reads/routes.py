"""The reading side over HTTP: parse, ask, return bytes. No SQL, no driver."""

import re
from dataclasses import dataclass
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from atelier.access.verify import KeyVerifier
from atelier.http import parse_id, parse_number, read_query
from atelier.problems import ProblemError
from atelier.reads.responding import Responder
from atelier.reads.storefront import Storefront

ReadRequest = Request[Any, Any, Any]

_CAMPUS = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_LIST_PARAMETERS = frozenset({"page", "count", "after"})
_MOVEMENT_PARAMETERS = frozenset({"after", "count"})
_LARGEST_COUNT = 1000
_LIVE = "/api/fec2/{campus:str}"


@dataclass(frozen=True, slots=True)
class Reads:
    """What the routes work with."""

    storefront: Storefront
    responder: Responder
    verifier: KeyVerifier


def build_handlers(reads: Reads) -> list[HTTPRouteHandler]:
    """The routes of the reading side, both dialects. HEAD is answered from GET by the outermost layer."""
    storefront, respond = reads.storefront, reads.responder.respond

    @get(["/products", f"{_LIVE}/products"])
    async def list_products(request: ReadRequest) -> ASGIApp:
        campus, path = _read_campus(request), request.scope["path"]
        query = read_query(request.scope["query_string"], _LIST_PARAMETERS)
        count = parse_number(query.get("count", "5"), "count", low=1, high=_LARGEST_COUNT)
        if "after" in query:
            after = _read_after(query)
            return await respond(request, lambda ask: storefront.after(after, count, campus, path=path, ask=ask))
        page = parse_number(query.get("page", "1"), "page", low=1)
        return await respond(request, lambda ask: storefront.page(page, count, campus, path=path, ask=ask))

    @get(["/products/{product_id:str}", f"{_LIVE}/products/{{product_id:str}}"])
    async def get_product(request: ReadRequest) -> ASGIApp:
        campus, product_id = _read_campus(request), _read_id(request, "product_id")
        return await respond(request, lambda ask: storefront.product(product_id, campus, ask))

    @get(["/products/{product_id:str}/styles", f"{_LIVE}/products/{{product_id:str}}/styles"])
    async def get_styles(request: ReadRequest) -> ASGIApp:
        live, product_id = _read_campus(request) is not None, _read_id(request, "product_id")
        return await respond(request, lambda ask: storefront.styles(product_id, live=live, ask=ask))

    @get(["/products/{product_id:str}/related", f"{_LIVE}/products/{{product_id:str}}/related"])
    async def get_related(request: ReadRequest) -> ASGIApp:
        _read_campus(request)
        product_id = _read_id(request, "product_id")
        return await respond(request, lambda ask: storefront.related(product_id, ask))

    @get("/styles/{style_id:str}")
    async def get_style(request: ReadRequest) -> ASGIApp:
        style_id = _read_id(request, "style_id")
        return await respond(request, lambda ask: storefront.style(style_id, ask))

    return [list_products, get_product, get_styles, get_related, get_style, *_build_inventory(reads)]


def _build_inventory(reads: Reads) -> list[HTTPRouteHandler]:
    """The routes that any valid API key may read, and nobody without one."""
    storefront, respond = reads.storefront, reads.responder.respond

    @get("/inventory/{sku_id:str}")
    async def get_inventory(request: ReadRequest) -> ASGIApp:
        await reads.verifier.verify(request.headers.get("authorization"))
        sku_id = _read_id(request, "sku_id")
        return await respond(request, lambda ask: storefront.inventory(sku_id, ask), is_keyed=True)

    @get("/inventory/{sku_id:str}/movements")
    async def get_movements(request: ReadRequest) -> ASGIApp:
        await reads.verifier.verify(request.headers.get("authorization"))
        sku_id = _read_id(request, "sku_id")
        query = read_query(request.scope["query_string"], _MOVEMENT_PARAMETERS)
        after = parse_number(query.get("after", "0"), "after", low=0)
        count = parse_number(query.get("count", "100"), "count", low=1, high=_LARGEST_COUNT)
        return await respond(request, lambda ask: storefront.movements(sku_id, after, count, ask), is_keyed=True)

    @get("/reservations/{reservation_id:str}")
    async def get_reservation(request: ReadRequest) -> ASGIApp:
        await reads.verifier.verify(request.headers.get("authorization"))
        reservation_id = _read_id(request, "reservation_id")
        return await respond(request, lambda ask: storefront.reservation(reservation_id, ask), is_keyed=True)

    return [get_inventory, get_movements, get_reservation]


def _read_id(request: ReadRequest, name: str) -> int:
    return parse_id(request.scope["path_params"][name], name)


def _read_after(query: dict[str, str]) -> int:
    if "page" in query:
        raise ProblemError("invalid-request", "page and after exclude each other", field="after")
    return parse_number(query["after"], "after", low=0)


def _read_campus(request: ReadRequest) -> str | None:
    """The campus of the live dialect; None stands for the documented one."""
    campus: str | None = request.scope["path_params"].get("campus")
    if campus is None or _CAMPUS.fullmatch(campus):
        return campus
    raise ProblemError("invalid-request", "campus takes 1 to 32 of a-z, 0-9 and -", field="campus")
