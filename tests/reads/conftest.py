"""A catalogue of 100,000 products behind a primary and a replica, for what only shows at size."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import role_dsn, running_cluster

LARGE = 100_000

# As the superuser with triggers off, because a hundred thousand announcements are not what the tests are about.
_PRODUCTS = """
set session_replication_role = replica;
set search_path = atelier;
insert into product (id, name, slogan, description, category, default_price)
select id, 'Product ' || id, 'slogan', repeat('words ', 20), 'Hats', id % 500 from generate_series(1, {n}) as id;
select setval('product_id_seq', {n});
select rebuild_page_counts();
"""
_PARTS = """
insert into feature (product_id, feature, value) select id, 'Fabric', 'Wool' from generate_series(1, {n}) as id;
insert into style (id, product_id, name, original_price, is_default)
select id, 1 + (id - 1) / 2, 'Red', 140, id % 2 = 0 from generate_series(1, 2 * {n}) as id;
insert into photo (style_id, url, thumbnail_url)
select id, 'https://a.example', null from generate_series(1, 2 * {n}) as id;
insert into sku (id, style_id, size)
select id, 1 + (id - 1) / 2, 'M' from generate_series(1, 4 * {n}) as id;
insert into stock (sku_id, on_hand, reserved) select id, 9, (id <= {n})::integer from generate_series(1, 4 * {n}) as id;
insert into related (product_id, position, related_product_id)
select id, 1, 1 + id % {n} from generate_series(1, {n}) as id;
insert into reservation (catalogue_id, expires_at) select 1, now() + '1 day' from generate_series(1, {n}) as id;
insert into reservation_line (reservation_id, line, sku_id, quantity)
select id, 0, id, 1 from generate_series(1, {n}) as id;
insert into stock_movement (catalogue_id, sku_id, delta, kind)
select 1, id, 9, 'initial' from generate_series(1, {n}) as id;
insert into outbox (topic, kind, product_id, version)
select 'product', 'updated', id, 1 from generate_series(1, {n}) as id;
"""


@pytest.fixture(scope="session")
def large_cluster() -> Iterator[EmbeddedCluster]:
    """A cluster with 100,000 products; tests may add and remove products behind them."""
    with running_cluster(replicas=1) as cluster:
        fill_cluster(cluster, LARGE)
        yield cluster


def fill_cluster(cluster: EmbeddedCluster, products: int, *, with_parts: bool = True) -> None:
    """Fills an empty catalogue with products 1 to `products`, and with everything that belongs to them if asked to."""

    async def fill() -> None:
        async with connected(cluster.superuser_dsn(cluster.primary.name)) as connection:
            await connection.execute((_PRODUCTS + (_PARTS if with_parts else "")).format(n=products))
            await connection.execute("vacuum analyze")

    asyncio.run(fill())


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that is gone when the block ends, also when it fails: an open one keeps uvloop from closing."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.fixture
async def reader(large_cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the primary as the reads have it."""
    async with connected(role_dsn(large_cluster, "reader")) as connection:
        yield connection


@pytest.fixture
async def writer(large_cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the primary as the commands have it."""
    async with connected(role_dsn(large_cluster, "writer")) as connection:
        yield connection


@pytest.fixture
async def other(large_cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A second one."""
    async with connected(role_dsn(large_cluster, "writer")) as connection:
        yield connection


@pytest.fixture
async def admin(large_cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may do anything; what it does is taken back."""
    async with connected(large_cluster.superuser_dsn("pg1")) as connection:
        await connection.execute("set search_path = atelier")
        yield connection
