"""Storefront reads over HTTP while the primary is killed in the middle of writes, and a replica takes over."""

import asyncio
import itertools
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.reads.conftest import fill_cluster
from tests.support import Service, running_cluster, running_service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

CLIENTS = 20
PRODUCTS = 20_000
# Each resource in turn, and in each a product that nobody has asked for: memory has nothing to answer with.
RESOURCES = (
    "/products/{n}",
    "/products/{n}/styles",
    "/products/{n}/related",
    "/products?page={n}&count=1",
    "/styles/{n}",
    "/api/fec2/c{n}/products/{n}",
    "/api/fec2/c{n}/products/{n}/styles",
    "/api/fec2/c{n}/products?page={n}&count=1",
)


@pytest.fixture
def broken() -> Iterator[EmbeddedCluster]:
    """A cluster of the test's own with many products, to be broken."""
    with running_cluster() as cluster:
        fill_cluster(cluster, PRODUCTS)
        yield cluster


@pytest.fixture
def serving(broken: EmbeddedCluster) -> Iterator[Service]:
    """The service over it."""
    with running_service(broken) as service:
        yield service


@dataclass
class Crowd:
    """Clients that read without a pause and never the same; whoever writes beside them does so until the kill."""

    service: Service
    turns: Iterator[int] = field(default_factory=itertools.count)
    served: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    dying: bool = False
    stopping: bool = False

    @property
    def reads(self) -> int:
        """How many went well."""
        return sum(self.served.values())

    def next_address(self) -> str:
        """One that nobody has read yet."""
        turn, place = divmod(next(self.turns), len(RESOURCES))
        assert turn < PRODUCTS, "every address has been read; there have to be more products"
        return RESOURCES[place].format(n=turn + 1)

    async def read(self, headers: dict[str, str]) -> None:
        """Reads until told to stop; anything but the resource is an error."""
        async with httpx.AsyncClient(base_url=self.service.url, headers=headers, timeout=15) as client:
            while not self.stopping:
                address = self.next_address()
                answer = await client.get(address)
                assert (answer.status_code, bool(answer.json())) == (200, True), (address, answer.text)
                self.served[answer.headers["Atelier-Served-By"]] += 1

    async def write(self) -> None:
        """Sends commands one after another until the primary dies; before that each of them has to go well."""
        async with open_client(self.service) as client:
            while not self.dying:
                sku_id = 1 + self.commands % PRODUCTS
                answer = await adjust(client, sku_id)
                assert answer.status_code == 200 or self.dying, answer.text
                self.commands += 1

    async def goes_on(self, *, reads: int, seconds: float) -> None:
        """Waits until so many more reads went well, and so much time has passed."""
        goal, until_s = self.reads + reads, time.monotonic() + seconds
        async with asyncio.timeout(seconds + 60):
            while self.reads < goal or time.monotonic() < until_s:
                await asyncio.sleep(0.02)


def open_client(service: Service) -> httpx.AsyncClient:
    """A client that may command, and remembers no cookie."""
    return httpx.AsyncClient(
        base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, cookies=None, timeout=15
    )


async def adjust(client: httpx.AsyncClient, sku_id: int) -> httpx.Response:
    """Adds one piece to a shelf."""
    return await client.post(
        "/inventory/adjustments",
        json={"reason": "delivery", "lines": [{"sku_id": sku_id, "delta": 1}]},
        headers={"Idempotency-Key": uuid.uuid4().hex},
    )


async def until_commanded(client: httpx.AsyncClient) -> None:
    """Waits until the writing side has found the new primary, too."""
    async with asyncio.timeout(30):
        while (await adjust(client, 2)).status_code != 200:
            await asyncio.sleep(0.05)


async def look(client: httpx.AsyncClient) -> dict[str, Any]:
    """Every node by its name, as the service tells of it."""
    return {node["name"]: node for node in (await client.get("/cluster")).json()["nodes"]}


async def until_roles(client: httpx.AsyncClient, **roles: str) -> None:
    """Waits until the service knows these roles, and each of these replicas has replayed all there is."""
    async with asyncio.timeout(30):
        while True:
            nodes = await look(client)
            if all(nodes[name]["role"] == role and not nodes[name]["lag_bytes"] for name, role in roles.items()):
                return
            await asyncio.sleep(0.02)


async def check_failover(
    broken: EmbeddedCluster, serving: Service, *, reads: int, before_s: float, after_s: float
) -> None:
    """Half of the clients send a token that both replicas have replayed; none of either half has an error."""
    crowd = Crowd(serving)
    async with open_client(serving) as client:
        token = (await adjust(client, 1)).headers["Atelier-Token"]
        await until_roles(client, pg1="primary", pg2="replica", pg3="replica")
        async with asyncio.TaskGroup() as group:
            for headers in ({}, {"Atelier-Token": token}):
                for _ in range(CLIENTS // 2):
                    group.create_task(crowd.read(headers))
            writing = group.create_task(crowd.write())
            await crowd.goes_on(reads=reads, seconds=before_s)
            crowd.dying = True
            await asyncio.to_thread(broken.kill, "pg1")
            await writing
            assert crowd.commands > reads / 100
            assert crowd.served.keys() >= {"pg2", "pg3"}
            before = crowd.reads
            await asyncio.to_thread(broken.promote, "pg2")
            await until_roles(client, pg2="primary", pg3="replica")
            assert crowd.reads > before, "nobody was reading while there was no primary"
            await crowd.goes_on(reads=reads, seconds=after_s)
            crowd.stopping = True
        await until_commanded(client)
        assert count_hits((await client.get("/metrics")).text) == 0


def count_hits(metrics: str) -> float:
    """How many answers came from memory."""
    assert "# TYPE atelier_cache_hits_total counter" in metrics
    return sum(float(count) for count in re.findall(r"^atelier_cache_hits_total\S* (\S+)$", metrics, re.MULTILINE))


async def test_no_read_fails_while_the_primary_is_killed_amid_writes(broken: EmbeddedCluster, serving: Service) -> None:
    """Every resource in both dialects, from the nodes and not from memory."""
    await check_failover(broken, serving, reads=500, before_s=1, after_s=2)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_reads_go_on_for_a_minute_around_a_failover_without_an_error(
    broken: EmbeddedCluster, serving: Service
) -> None:
    """Twenty clients, twenty seconds before the kill and forty after the promotion."""
    await check_failover(broken, serving, reads=5000, before_s=20, after_s=40)
