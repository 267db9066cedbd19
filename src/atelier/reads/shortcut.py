"""The short way for what pages read all the time, in both dialects, answered without the framework's routing.

The answers are made by the same functions as those of the ordinary handlers in `atelier.reads.routes`; whatever is not
plainly one of these reads goes on to the framework. Why: `docs/decisions/0008-the-short-way.md`.
"""

import re
from collections.abc import Callable
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from atelier.asgi import has_plain_host
from atelier.reads.routes import RESOURCES, Parse, Reads

# What follows the id is nothing ("") for the product itself, and missing (None) for the list.
_ADDRESS = re.compile(r"(?:/api/fec2/([a-z0-9-]{1,32}))?/products(?:/([0-9]+)(|/styles|/related))?", re.ASCII)
_LIVE = "/api/fec2/{campus}"

Refuse = Callable[[Any, Exception], ASGIApp]


class Shortcut:
    """An ASGI application in front of another one."""

    def __init__(self, app: ASGIApp, reads: Reads, refuse: Refuse) -> None:
        """Takes who answers everything else, what the reads work with, and what makes an answer of an error."""
        self._app = app
        self._reads = reads
        self._refuse = refuse
        self._places: dict[tuple[bool, str | None], tuple[str, Parse]] = {
            (live, rest): (f"{_LIVE}{template}" if live else template, RESOURCES[template])
            for live in (False, True)
            for rest, template in (
                (None, "/products"),
                ("", "/products/{product_id}"),
                ("/styles", "/products/{product_id}/styles"),
                ("/related", "/products/{product_id}/related"),
            )
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a plain read, hands anything else on."""
        address = _find_address(scope)
        if address is None:
            await self._app(scope, receive, send)
            return
        campus, product_id, rest = address.groups()
        template, parse = self._places[campus is not None, rest]
        parts = {name: part for name, part in (("product_id", product_id), ("campus", campus)) if part is not None}
        scope["path_template"] = template
        try:
            answer = await self._reads.responder.respond(scope, parse(self._reads.storefront, parts, scope))
        except Exception as error:  # noqa: BLE001  every request is answered
            answer = self._refuse(scope, error)
        await answer(scope, receive, send)


def _find_address(scope: Any) -> "re.Match[str] | None":
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    address = _ADDRESS.fullmatch(scope["path"])
    return address if address is not None and has_plain_host(scope) else None
