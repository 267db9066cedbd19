"""A catalogue of 100,000 products behind a primary and a replica, for what only shows at size."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import role_dsn, running_cluster

LARGE = 100_000

# As the superuser with triggers off, because a hundred thousand announcements are not what the tests are about.
_FILL = """
set session_replication_role = replica;
set search_path = atelier;
insert into product (id, name, slogan, description, category, default_price)
select id, 'Product ' || id, 'slogan', repeat('words ', 20), 'Hats', id % 500 from generate_series(1, {n}) as id;
insert into feature (product_id, feature, value) select id, 'Fabric', 'Wool' from generate_series(1, {n}) as id;
insert into style (id, product_id, name, original_price, is_default)
select id, 1 + (id - 1) / 2, 'Red', 140, id % 2 = 0 from generate_series(1, 2 * {n}) as id;
insert into photo (style_id, url, thumbnail_url) select id, 'https://a.example', null from generate_series(1, 2 * {n}) as id;
insert into sku (id, style_id, size) select id, 1 + (id - 1) / 2, 'M' from generate_series(1, 4 * {n}) as id;
insert into stock (sku_id, on_hand) select id, 9 from generate_series(1, 4 * {n}) as id;
insert into related (product_id, position, related_product_id)
select id, 1, 1 + id % {n} from generate_series(1, {n}) as id;
select setval('product_id_seq', {n});
select rebuild_page_counts();
"""


@pytest.fixture(scope="session")
def large_cluster() -> Iterator[EmbeddedCluster]:
    """A cluster with 100,000 products; tests may add and remove products behind them."""
    with running_cluster(replicas=1) as cluster:
        fill_cluster(cluster, LARGE)
        yield cluster


def fill_cluster(cluster: EmbeddedCluster, products: int) -> None:
    """Fills an empty catalogue with products 1 to `products` and everything that belongs to them."""
    import asyncio

    async def fill() -> None:
        connection = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name))
        try:
            await connection.execute(_FILL.format(n=products))
            await connection.execute("vacuum analyze")
        finally:
            await connection.close()

    asyncio.run(fill())


@pytest.fixture
async def reader(large_cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the primary as the reads have it."""
    connection = await asyncpg.connect(role_dsn(large_cluster, "reader"))
    yield connection
    await connection.close()


@pytest.fixture
async def writer(large_cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the primary as the commands have it."""
    connection = await asyncpg.connect(role_dsn(large_cluster, "writer"))
    yield connection
    await connection.close()
