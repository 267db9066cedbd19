"""The reading side over HTTP: parse, ask, return bytes. No SQL, no driver."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Scope

from atelier.access.verify import KeyVerifier
from atelier.deadline import Deadline
from atelier.http import parse_id, parse_number, read_query
from atelier.problems import ProblemError
from atelier.reads.responding import Fetch, Responder
from atelier.reads.storefront import Storefront

ReadRequest = Request[Any, Any, Any]
Parts = Mapping[str, str]
Parse = Callable[[Storefront, Parts, Scope], Fetch]
"""From the parts of an address, and the query, to what fetches the document; raises ProblemError (400)."""

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

    @get("/styles/{style_id:str}")
    async def get_style(request: ReadRequest) -> ASGIApp:
        style_id = _read_id(request, "style_id")
        return await respond(request.scope, lambda ask: storefront.style(style_id, ask))

    pages = [_make_handler(reads, template, parse) for template, parse in RESOURCES.items()]
    return [*pages, get_style, *_build_inventory(reads)]


def _make_handler(reads: Reads, template: str, parse: Parse) -> HTTPRouteHandler:
    path = template.replace("}", ":str}")

    @get([path, f"{_LIVE}{path}"])
    async def read(request: ReadRequest) -> ASGIApp:
        scope = request.scope
        return await reads.responder.respond(scope, parse(reads.storefront, scope["path_params"], scope))

    return read


def _build_inventory(reads: Reads) -> list[HTTPRouteHandler]:
    """The routes that any valid API key may read, and nobody without one."""
    storefront, respond = reads.storefront, reads.responder.respond

    @get("/inventory/{sku_id:str}")
    async def get_inventory(request: ReadRequest) -> ASGIApp:
        deadline = await _admit(reads, request)
        sku_id = _read_id(request, "sku_id")
        return await respond(request.scope, lambda ask: storefront.inventory(sku_id, ask), keyed=deadline)

    @get("/inventory/{sku_id:str}/movements")
    async def get_movements(request: ReadRequest) -> ASGIApp:
        deadline = await _admit(reads, request)
        sku_id = _read_id(request, "sku_id")
        query = read_query(request.scope["query_string"], _MOVEMENT_PARAMETERS)
        after = parse_number(query.get("after", "0"), "after", low=0)
        count = parse_number(query.get("count", "100"), "count", low=1, high=_LARGEST_COUNT)
        return await respond(request.scope, lambda ask: storefront.movements(sku_id, after, count, ask), keyed=deadline)

    @get("/reservations/{reservation_id:str}")
    async def get_reservation(request: ReadRequest) -> ASGIApp:
        deadline = await _admit(reads, request)
        reservation_id = _read_id(request, "reservation_id")
        return await respond(request.scope, lambda ask: storefront.reservation(reservation_id, ask), keyed=deadline)

    return [get_inventory, get_movements, get_reservation]


async def _admit(reads: Reads, request: ReadRequest) -> Deadline:
    """Lets any valid key in, before anything else is looked at.

    Returns:
        The deadline of the request, of which this has taken its part.
    """
    deadline = reads.responder.begin()
    await reads.verifier.verify(request.headers.get("authorization"), deadline)
    return deadline


def _read_id(request: ReadRequest, name: str) -> int:
    return parse_id(request.scope["path_params"][name], name)


# What a product page reads, from the parts of the address to what is fetched


def _parse_page(storefront: Storefront, parts: Parts, scope: Scope) -> Fetch:
    campus, path = _read_campus(parts), scope["path"]
    query = read_query(scope["query_string"], _LIST_PARAMETERS)
    count = parse_number(query.get("count", "5"), "count", low=1, high=_LARGEST_COUNT)
    if "after" in query:
        after = _read_after(query)
        return lambda ask: storefront.after(after, count, campus, path=path, ask=ask)
    page = parse_number(query.get("page", "1"), "page", low=1)
    return lambda ask: storefront.page(page, count, campus, path=path, ask=ask)


def _parse_product(storefront: Storefront, parts: Parts, _scope: Scope) -> Fetch:
    campus, product_id = _read_campus(parts), parse_id(parts["product_id"], "product_id")
    return lambda ask: storefront.product(product_id, campus, ask)


def _parse_styles(storefront: Storefront, parts: Parts, _scope: Scope) -> Fetch:
    live, product_id = _read_campus(parts) is not None, parse_id(parts["product_id"], "product_id")
    return lambda ask: storefront.styles(product_id, live=live, ask=ask)


def _parse_related(storefront: Storefront, parts: Parts, _scope: Scope) -> Fetch:
    _read_campus(parts)
    product_id = parse_id(parts["product_id"], "product_id")
    return lambda ask: storefront.related(product_id, ask)


RESOURCES: dict[str, Parse] = {
    "/products": _parse_page,
    "/products/{product_id}": _parse_product,
    "/products/{product_id}/styles": _parse_styles,
    "/products/{product_id}/related": _parse_related,
}
"""What pages read all the time, by the template of its address: also answered by `atelier.reads.shortcut`."""


def _read_after(query: dict[str, str]) -> int:
    if "page" in query:
        raise ProblemError("invalid-request", "page and after exclude each other", field="after")
    return parse_number(query["after"], "after", low=0)


def _read_campus(parts: Parts) -> str | None:
    """The campus of the live dialect; None stands for the documented one."""
    campus = parts.get("campus")
    if campus is None or _CAMPUS.fullmatch(campus):
        return campus
    raise ProblemError("invalid-request", "campus takes 1 to 32 of a-z, 0-9 and -", field="campus")
