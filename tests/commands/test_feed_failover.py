"""The change feed over a failover that loses something: told aloud to those who saw it, and to nobody else."""

import asyncio
from collections.abc import Iterator

import asyncpg
import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop
from tests.commands.events import Event, Events, follow, next_about
from tests.support import Service, role_dsn, running_cluster, running_service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


@pytest.fixture
def broken() -> Iterator[EmbeddedCluster]:
    """A cluster of the test's own, to be broken."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def serving(broken: EmbeddedCluster) -> Iterator[Service]:
    """The service over it."""
    with running_service(broken) as service:
        yield service


async def end_of(events: Events) -> Event:
    """The last event of a stream that the service ends."""
    async with asyncio.timeout(20):
        while (event := await events.next()).name != "end":
            pass
    return event


async def read_answer(http: httpx.AsyncClient, event_id: str) -> httpx.Response:
    """The answer to who comes back with an event id, once there is one that is not "later"."""
    async with asyncio.timeout(20):
        while True:
            async with http.stream("GET", "/changes", headers={"Last-Event-ID": event_id}) as response:
                if response.status_code != 200:
                    await response.aread()
                if response.status_code != 503:
                    return response
            await asyncio.sleep(0.05)


async def test_event_that_a_failover_threw_away_is_lost_history(broken: EmbeddedCluster, serving: Service) -> None:
    """Seen on the primary alone, which then dies: its id is 409 with a fresh token; an id before the fork goes on.

    Who was following is cut with a last event that says so.
    """
    headers = {"Authorization": f"Bearer {serving.key}"}
    async with httpx.AsyncClient(base_url=serving.url, headers=headers, timeout=30) as http:
        shop = Shop(http)
        [sku_id] = await shop.stocked(5)
        async with follow(http) as events:
            await shop.adjust(sku_id, 1)
            kept = await next_about(events, sku_id=sku_id, version=2)
        for name in ("pg2", "pg3"):
            await asyncio.to_thread(broken.stop_node, name)
        assert (await read_answer(http, kept.id)).status_code == 200
        async with follow(http, kept.id) as events:
            await shop.adjust(sku_id, 10)
            lost = await next_about(events, sku_id=sku_id)
            assert lost.data["available"] == 16
            await asyncio.to_thread(broken.kill, "pg1")
            for name in ("pg2", "pg3"):
                await asyncio.to_thread(broken.start_node, name)
            await asyncio.to_thread(broken.promote, "pg2")
            end = await end_of(events)
        assert end.data == {"reason": "history-lost", "last_event_id": lost.id}
        refused = await read_answer(http, lost.id)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/history-lost")
        fresh = refused.headers["Atelier-Token"]
        assert (await http.get(f"/inventory/{sku_id}", headers={"Atelier-Token": fresh})).json()["on_hand"] == 6
        assert (await read_answer(http, kept.id)).status_code == 200
        async with follow(http, kept.id) as events:
            again = await shop.adjust(sku_id, 100)
            assert again.status_code == 200
            assert (await next_about(events, sku_id=sku_id)).data["available"] == 106
    connection = await asyncpg.connect(role_dsn(broken, "writer"))
    assert await connection.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 106
    await connection.close()
