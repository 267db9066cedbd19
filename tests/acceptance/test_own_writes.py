"""The promise that the project is for, over real HTTP: who sends a command's token back sees what the command did."""

import asyncio
import uuid
from collections.abc import Iterator

import asyncpg
import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.fixtures.reading import flicker
from tests.support import Service, role_dsn, running_cluster, running_service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


@pytest.fixture(scope="module")
def lagging() -> Iterator[EmbeddedCluster]:
    """A cluster whose replicas' replay is paused and resumed all the time."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def serving(lagging: EmbeddedCluster) -> Iterator[Service]:
    """The service over it."""
    with running_service(lagging) as service:
        yield service


async def make_sku(cluster: EmbeddedCluster) -> int:
    """A SKU with one piece on the shelf."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        return await connection.fetchval("""
            with made as (insert into product (name, slogan, description, category, default_price)
                          values ('p', '', '', '', 1) returning id),
                 styled as (insert into style (product_id, name, original_price, is_default)
                            select id, 's', 1, true from made returning id),
                 sized as (insert into sku (style_id, size) select id, 'M' from styled returning id)
            insert into stock (sku_id, on_hand) select id, 1 from sized returning sku_id
            """)
    finally:
        connection.terminate()


async def test_a_thousand_adjustments_are_each_seen_by_the_read_that_follows(
    lagging: EmbeddedCluster, serving: Service
) -> None:
    """Every answer shows the new quantity, and replicas give their share of the answers."""
    sku_id = await make_sku(lagging)
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    served: set[str] = set()
    async with httpx.AsyncClient(base_url=serving.url, timeout=15) as client:
        client.headers["Authorization"] = f"Bearer {serving.key}"
        for number in range(2, 1002):
            adjusted = await client.post(
                "/inventory/adjustments",
                json={"reason": "counting up", "lines": [{"sku_id": sku_id, "delta": 1}]},
                headers={"Idempotency-Key": uuid.uuid4().hex},
            )
            token = {"Atelier-Token": adjusted.headers["Atelier-Token"]}
            client.cookies.clear()  # the header alone shall carry the promise
            seen = await client.get(f"/inventory/{sku_id}", headers=token)
            assert seen.json()["on_hand"] == number
            served.add(seen.headers["Atelier-Served-By"])
    done.set()
    await lag
    assert {"pg2", "pg3"} <= served
