"""The short way for the commands of a checkout: their addresses, answered without the framework's routing.

They are carried out by the same function as those of the ordinary handlers in `atelier.writes.routes`; whatever is not
plainly one of these commands goes on to the framework. Why: `docs/decisions/0008-the-short-way.md`.
"""

import re
from collections.abc import Callable
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from atelier.asgi import has_plain_host
from atelier.writes.endpoints import ENDPOINTS
from atelier.writes.routes import Incoming, Writes, carry_out

_ADDRESS = re.compile(r"/inventory/adjustments|/reservations(?:/([0-9]+)(/confirm|/release))?", re.ASCII)
_POSTS = {endpoint.path: endpoint for endpoint in ENDPOINTS if endpoint.method == "POST"}

Refuse = Callable[[Any, Exception], ASGIApp]


class CommandShortcut:
    """An ASGI application in front of another one."""

    def __init__(self, app: ASGIApp, writes: Writes, refuse: Refuse) -> None:
        """Takes who answers everything else, what the commands work with, and what makes an answer of an error."""
        self._app = app
        self._writes = writes
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a plain command, hands anything else on."""
        address = _find_address(scope)
        if address is None:
            await self._app(scope, receive, send)
            return
        reservation_id, deed = address.groups()
        if reservation_id is None:
            endpoint, path_params = _POSTS[address[0]], {}
        else:
            endpoint = _POSTS[f"/reservations/{{reservation_id}}{deed}"]
            path_params = {"reservation_id": reservation_id}
        scope["path_template"] = endpoint.path
        try:
            answer: ASGIApp = await carry_out(self._writes, endpoint, Incoming(scope, receive, path_params))
        except Exception as error:  # noqa: BLE001  every request is answered
            answer = self._refuse(scope, error)
        await answer(scope, receive, send)


def _find_address(scope: Any) -> "re.Match[str] | None":
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    address = _ADDRESS.fullmatch(scope["path"])
    return address if address is not None and has_plain_host(scope) else None
