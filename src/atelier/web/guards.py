"""Who may see what a setting has closed."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from atelier.access.verify import KeyVerifier

AnyConnection = ASGIConnection[Any, Any, Any, Any]


def ask_for_key(verifier: KeyVerifier) -> Guard:
    """A guard that lets any valid API key in, and answers 401 to everybody else."""

    async def guard(connection: AnyConnection, _handler: BaseRouteHandler) -> None:
        await verifier.verify(connection.headers.get("authorization"))

    return guard
