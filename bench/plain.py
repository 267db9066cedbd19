"""What reads are compared with: a plain handler of the framework, a query of its own for every request, one pool."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from litestar import Litestar, Response, get

from atelier.reads.position import POSITION
from atelier.reads.queries import load_statements

_COUNT = 5
_SQL = {
    name: load_statements()[name].sql.replace(POSITION.strip(), "(select true as here) as position")
    for name in ("product_documented", "styles_documented", "related", "list_documented")
}


def create_app() -> Litestar:
    """The application, over the replica that `PLAIN` names."""
    pool = asyncpg.create_pool(os.environ["PLAIN"], min_size=8, max_size=8, init=_pass_json_on)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        async with pool:
            yield

    async def answer(name: str, *arguments: object) -> Response[bytes]:
        [row] = await pool.fetch(_SQL[name], *arguments)
        return Response(row["body"], media_type="application/json")

    @get("/products")
    async def products(page: int = 1) -> Response[bytes]:
        return await answer("list_documented", [(page - 1) * _COUNT], _COUNT)

    @get("/products/{product_id:int}")
    async def product(product_id: int) -> Response[bytes]:
        return await answer("product_documented", [product_id])

    @get("/products/{product_id:int}/styles")
    async def styles(product_id: int) -> Response[bytes]:
        return await answer("styles_documented", [product_id])

    @get("/products/{product_id:int}/related")
    async def related(product_id: int) -> Response[bytes]:
        return await answer("related", [product_id])

    return Litestar([products, product, styles, related], lifespan=[lifespan], openapi_config=None)


async def _pass_json_on(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
