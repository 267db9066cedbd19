"""A lean unit of work per request on a plain handler: key row, update and ledger row; no audit, API key or token."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, post
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

_CONNECTIONS = 10

_KEY = text("""
insert into command_key (owner, key, fingerprint, status, headers, body)
values ('baseline', :key, decode('00', 'hex'), 200, '{}', null)
""")
_STOCK = text("""
update stock set on_hand = on_hand + :delta, version = version + 1
 where sku_id = :sku_id and on_hand + :delta >= reserved returning on_hand, reserved, version
""")
_LEDGER = text("""
insert into stock_movement (catalogue_id, sku_id, delta, kind, reason, command_key)
select catalogue_id, :sku_id, :delta, 'adjustment', :reason, :key from current_catalogue
""")


def create_app() -> Litestar:
    """The application, over the node that `BASELINE` names, with PostgreSQL's settings of `BASELINE_SETTINGS`."""
    url = make_url(os.environ["BASELINE"]).set(drivername="postgresql+asyncpg")
    settings = dict(part.split("=") for part in os.environ.get("BASELINE_SETTINGS", "").split())
    engine = create_async_engine(
        url, pool_size=_CONNECTIONS, max_overflow=0, connect_args={"server_settings": settings}
    )

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    @post("/inventory/adjustments", status_code=200)
    async def adjust(request: Request[Any, Any, Any]) -> Response[bytes]:
        body = await request.json()
        line, key = body["lines"][0], request.headers["idempotency-key"]
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(_KEY, {"key": key})
            row = (await session.execute(_STOCK, line)).one_or_none()
            await session.execute(_LEDGER, {**line, "reason": body["reason"], "key": key})
        return Response(f'{{"on_hand": {row.on_hand if row else -1}}}'.encode(), media_type="application/json")

    return Litestar([adjust], lifespan=[lifespan], openapi_config=None)
