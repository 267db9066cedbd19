"""What reads are compared with: a plain handler of the framework, a query of its own for every request, one pool."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from litestar import Litestar, Response, get

from atelier.reads.position import POSITION
from atelier.reads.queries import load_statements

_SQL = {
    name: load_statements()[name].sql.replace(POSITION.strip(), "(select true as here) as position")
    for name in ("product_documented", "styles_documented")
}


def create_app() -> Litestar:
    """The application, over the replica that `PLAIN` names."""
    pool = asyncpg.create_pool(os.environ["PLAIN"], min_size=8, max_size=8, init=_pass_json_on)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        async with pool:
            yield

    @get("/products/{product_id:int}")
    async def product(product_id: int) -> Response[bytes]:
        [row] = await pool.fetch(_SQL["product_documented"], [product_id])
        return Response(row["body"], media_type="application/json")

    @get("/products/{product_id:int}/styles")
    async def styles(product_id: int) -> Response[bytes]:
        [row] = await pool.fetch(_SQL["styles_documented"], [product_id])
        return Response(row["body"], media_type="application/json")

    return Litestar([product, styles], lifespan=[lifespan], openapi_config=None)


async def _pass_json_on(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
