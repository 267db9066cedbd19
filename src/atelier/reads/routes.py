"""The reading side over HTTP: parse, ask, return bytes. No SQL, no driver."""

import re
from dataclasses import dataclass

from litestar import HttpMethod, Request, Response, Router, route
from litestar.di import Provide

from atelier.http import parse_id, parse_number
from atelier.problems import ProblemError
from atelier.reads.responding import Responder
from atelier.reads.storefront import Storefront

_READ = [HttpMethod.GET, HttpMethod.HEAD]
_CAMPUS = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_LARGEST_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Reads:
    """What the handlers work with."""

    storefront: Storefront
    responder: Responder


def build_router(reads: Reads) -> Router:
    """The routes of the reading side."""
    handlers = [list_products, get_product, get_styles, get_related, get_style, get_inventory]
    return Router("/", route_handlers=handlers, dependencies={"reads": Provide(lambda: reads, sync_to_thread=False)})


@route(["/products", "/api/fec2/{campus:str}/products"], http_method=_READ)
async def list_products(request: Request, reads: Reads, campus: str | None = None) -> Response[bytes]:
    """One page of products in id order."""
    campus = _check_campus(campus)
    page = parse_number(request.query_params.get("page", "1"), "page", low=1)
    count = parse_number(request.query_params.get("count", "5"), "count", low=1, high=_LARGEST_COUNT)
    return await reads.responder.respond(request, lambda ask: reads.storefront.page(page, count, campus, ask))


@route(["/products/{product_id:str}", "/api/fec2/{campus:str}/products/{product_id:str}"], http_method=_READ)
async def get_product(
    request: Request, reads: Reads, product_id: str, campus: str | None = None
) -> Response[bytes]:
    """One product with its features."""
    campus, number = _check_campus(campus), parse_id(product_id, "product_id")
    return await reads.responder.respond(request, lambda ask: reads.storefront.product(number, campus, ask))


@route(
    ["/products/{product_id:str}/styles", "/api/fec2/{campus:str}/products/{product_id:str}/styles"], http_method=_READ
)
async def get_styles(request: Request, reads: Reads, product_id: str, campus: str | None = None) -> Response[bytes]:
    """All styles of a product, with photos and SKUs."""
    live, number = _check_campus(campus) is not None, parse_id(product_id, "product_id")
    return await reads.responder.respond(request, lambda ask: reads.storefront.styles(number, live=live, ask=ask))


@route(
    ["/products/{product_id:str}/related", "/api/fec2/{campus:str}/products/{product_id:str}/related"],
    http_method=_READ,
)
async def get_related(request: Request, reads: Reads, product_id: str, campus: str | None = None) -> Response[bytes]:
    """The ids of related products, in stored order."""
    _check_campus(campus)
    number = parse_id(product_id, "product_id")
    return await reads.responder.respond(request, lambda ask: reads.storefront.related(number, ask))


@route("/styles/{style_id:str}", http_method=_READ)
async def get_style(request: Request, reads: Reads, style_id: str) -> Response[bytes]:
    """One style in the documented form."""
    number = parse_id(style_id, "style_id")
    return await reads.responder.respond(request, lambda ask: reads.storefront.style(number, ask))


@route("/inventory/{sku_id:str}", http_method=_READ)
async def get_inventory(request: Request, reads: Reads, sku_id: str) -> Response[bytes]:
    """The stock of one SKU."""
    number = parse_id(sku_id, "sku_id")
    return await reads.responder.respond(request, lambda ask: reads.storefront.inventory(number, ask))


def _check_campus(campus: str | None) -> str | None:
    """The campus of the live dialect; None stands for the documented one."""
    if campus is None or _CAMPUS.fullmatch(campus):
        return campus
    raise ProblemError("invalid-request", "campus takes 1 to 32 of a-z, 0-9 and -", field="campus")
