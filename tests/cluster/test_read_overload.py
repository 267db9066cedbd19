"""Reads over HTTP when the primary takes no more of them, replicas go silent, or a thousand clients hang up."""

import asyncio
import os
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, serving
from tests.fixtures.proxied import NODES, REPLICAS, open_proxies
from tests.support import Service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

# Nothing here may end because something took long.
PATIENT = {"ATELIER_STATEMENT_MS": "20000", "ATELIER_STALLED_MS": "20000", "ATELIER_REQUEST_MS": "40000"}
SMALL = {"ATELIER_PRIMARY_READ_CONNECTIONS": "1", "ATELIER_PRIMARY_READ_WAITING": "1", "ATELIER_MERGED_READS": "1"}
FRESH = {"ATELIER_MAX_LAG_MS": "200", "ATELIER_CACHE_BYTES": "0"}


@asynccontextmanager
async def open_client(service: Service) -> AsyncIterator[Shop]:
    """A client with all scopes, and with as many connections as it likes."""
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60, limits=limits) as http:
        yield Shop(http)


def read(shop: Shop, path: str) -> Awaitable[httpx.Response]:
    """An eventual read, though the client has a cookie of what it has changed."""
    return shop.http.get(path, headers={"Atelier-Consistency": "eventual"})


@asynccontextmanager
async def stopped_readers(cluster: EmbeddedCluster, *names: str) -> AsyncIterator[None]:
    """The servers' processes that answer the reads of these nodes stand still; everybody else's go on."""
    stopped = []
    try:
        for name in names:
            for pid in await find_readers(cluster, name):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


async def find_readers(cluster: EmbeddedCluster, name: str) -> list[int]:
    """The processes that a node has for the role `reader`."""
    admin = await asyncpg.connect(cluster.superuser_dsn(name))
    try:
        rows = await admin.fetch("select pid from pg_stat_activity where usename = 'reader'")
        return [row["pid"] for row in rows]
    finally:
        await admin.close()


@asynccontextmanager
async def paused_replay(cluster: EmbeddedCluster) -> AsyncIterator[None]:
    """No replica replays anything."""
    admins = [await asyncpg.connect(cluster.superuser_dsn(name)) for name in sorted(REPLICAS)]
    try:
        for admin in admins:
            await admin.execute("select pg_wal_replay_pause()")
        yield
    finally:
        for admin in admins:
            await admin.execute("select pg_wal_replay_resume()")
            await admin.close()


async def read_metrics(shop: Shop) -> dict[str, float]:
    """All samples, by name and labels as they are written."""
    lines = (await shop.http.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def count_in_flight(shop: Shop) -> float:
    """The reads that wait for any node, or run on one."""
    metrics = await read_metrics(shop)
    return sum(metrics[f'atelier_node_reads_in_flight{{node="{name}"}}'] for name in NODES)


async def wait_for_lag(shop: Shop, *, lag_ms: int) -> None:
    """Waits until the service knows all replicas to be behind."""
    async with asyncio.timeout(10):
        while True:
            nodes = (await shop.http.get("/cluster")).json()["nodes"]
            if all(node["role"] == "primary" or (node["lag_ms"] or 0) > lag_ms for node in nodes):
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_full_primary(
    cluster: EmbeddedCluster, **settings: str
) -> AsyncIterator[tuple[Shop, int, str, list["asyncio.Future[httpx.Response]"]]]:
    """A service whose replicas are beyond the limit, and whose primary has as many reads as it takes.

    Gives a client, a SKU, the path of its product, and the two reads that the primary has.
    """
    async with serving(cluster, **PATIENT, **SMALL, **FRESH, **settings) as service, open_client(service) as shop:
        [sku_id] = await shop.stocked(5)
        rows = await find_product(cluster, sku_id)
        path = f"/products/{rows}"
        async with paused_replay(cluster):
            assert (await shop.adjust(sku_id, 1)).status_code == 200
            await wait_for_lag(shop, lag_ms=200)
            assert (await read(shop, path)).headers["Atelier-Served-By"] == "pg1"
            async with stopped_readers(cluster, "pg1"):
                held = [asyncio.ensure_future(read(shop, path)) for _ in range(2)]
                async with asyncio.timeout(10):
                    while await count_in_flight(shop) < 2:
                        await asyncio.sleep(0.01)
                yield shop, sku_id, path, held
            for answer in await asyncio.gather(*held):
                assert (answer.status_code, answer.headers["Atelier-Served-By"]) == (200, "pg1")


async def find_product(cluster: EmbeddedCluster, sku_id: int) -> int:
    """The product that a SKU is of."""
    admin = await asyncpg.connect(cluster.superuser_dsn("pg1"))
    try:
        return await admin.fetchval(
            "select product_id from atelier.style join atelier.sku on style.id = style_id where sku.id = $1", sku_id
        )
    finally:
        await admin.close()


async def test_over_the_cap_reads_are_refused_and_commands_go_on(cluster: EmbeddedCluster) -> None:
    """With lagging replicas the limit holds: 503 with Retry-After. Commands never use the reads' connections."""
    async with open_full_primary(cluster) as (shop, sku_id, path, held):
        refused = await asyncio.gather(*(read(shop, path) for _ in range(20)))
        adjusted = [await shop.adjust(sku_id, 1) for _ in range(5)]
        strong = await shop.http.get(path, headers={"Atelier-Consistency": "strong"})
        metrics = await read_metrics(shop)
        assert not any(task.done() for task in held)
        assert {(answer.status_code, answer.json()["type"]) for answer in refused} == {(503, "/problems/no-replica")}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert (strong.status_code, strong.json()["type"]) == (503, "/problems/primary-unavailable")
        assert [answer.json()["lines"][0]["on_hand"] for answer in adjusted] == [7, 8, 9, 10, 11]
        assert metrics['atelier_node_connections{node="pg1",state="open"}'] == 1


async def test_over_the_cap_the_stalest_allowed_answer_is_marked(cluster: EmbeddedCluster) -> None:
    """Where the settings say so: from a replica beyond the limit, which the answer's lag and timing tell."""
    async with open_full_primary(cluster, ATELIER_WHEN_PRIMARY_FULL="stalest") as (shop, _sku_id, path, held):
        answers = await asyncio.gather(*(read(shop, path) for _ in range(20)))
        bounded = await shop.http.get(path, headers={"Atelier-Consistency": "bounded; max-lag-ms=200"})
        assert not any(task.done() for task in held)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["Atelier-Served-By"] for answer in answers} <= REPLICAS
        assert all(int(answer.headers["Atelier-Lag-Ms"]) > 200 for answer in answers)
        marked = re.compile(r'route;dur=[\d.]+;desc="stale-replica", wait;dur=[\d.]+, db;dur=[\d.]+')
        assert all(marked.fullmatch(answer.headers["Server-Timing"]) for answer in answers)
        assert bounded.status_code == 503
    assert all("desc" not in answer.headers["Server-Timing"] for answer in await asyncio.gather(*held))


async def test_a_thousand_clients_that_hang_up_leave_the_pools_whole(cluster: EmbeddedCluster) -> None:
    """All replicas' readers stand still, so that everybody hangs up in the middle of a statement or in the queue."""
    before = {name: len(await find_readers(cluster, name)) for name in NODES}
    # One connection each, so that none is opened later that does not stand still.
    settings = PATIENT | {"ATELIER_REPLICA_CONNECTIONS": "1", "ATELIER_CACHE_BYTES": "0"}
    async with serving(cluster, **settings) as service, open_client(service) as shop:
        [sku_id] = await shop.stocked(5)
        path = f"/products/{await find_product(cluster, sku_id)}"
        idle = {name: len(await find_readers(cluster, name)) - before[name] for name in NODES}
        await asyncio.gather(*(read(shop, path) for _ in range(50)))
        async with stopped_readers(cluster, *REPLICAS):
            for number in range(10):
                with open_clients(service, path, count=100):
                    await count_reaches(shop, 100 * (number + 1))
        async with asyncio.timeout(15):
            while await count_in_flight(shop):
                await asyncio.sleep(0.02)
        metrics = await read_metrics(shop)
        opened = {name: metrics[f'atelier_node_connections{{node="{name}",state="open"}}'] for name in NODES}
        assert all(opened[name] <= 1 for name in REPLICAS)
        assert not any(metrics[f'atelier_node_connections{{node="{name}",state="busy"}}'] for name in NODES)
        for name in NODES:
            assert len(await find_readers(cluster, name)) - before[name] - idle[name] <= opened[name]
        answers = await asyncio.gather(*(read(shop, path) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}


@contextmanager
def open_clients(service: Service, path: str, *, count: int) -> Iterator[None]:
    """So many clients have sent a request; leaving it they hang up without a goodbye."""
    parts = urlsplit(service.url)
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((str(parts.hostname), int(parts.port or 80)), 10))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode())
        yield


async def count_reaches(shop: Shop, count: int) -> None:
    """Waits until so many reads have been begun that have no answer."""
    async with asyncio.timeout(10):
        while await count_in_flight(shop) < count:
            await asyncio.sleep(0.01)


async def test_a_node_that_hangs_is_counted_and_shown(cluster: EmbeddedCluster) -> None:
    """Once a spell of silence; so are the reads that were tried again, and those that waited."""
    async with open_proxies(cluster) as proxies:
        nodes = ",".join(f"{name}=127.0.0.1:{proxy.port}" for name, proxy in proxies.items())
        settings = {"ATELIER_NODES": nodes, "ATELIER_CACHE_BYTES": "0", "ATELIER_WAIT_MS": "50"}
        # Longer than a probe: what ejects the node is its silence, before any statement has failed.
        settings |= {"ATELIER_STATEMENT_MS": "2500"}
        async with serving(cluster, **settings) as service, open_client(service) as shop:
            [sku_id] = await shop.stocked(5)
            path = f"/products/{await find_product(cluster, sku_id)}"
            await asyncio.gather(*(read(shop, path) for _ in range(20)))
            assert 'atelier_node_ejections_total{node="pg2",reason="silent"}' not in await read_metrics(shop)
            proxies["pg2"].hang()
            reads = [asyncio.ensure_future(read(shop, path)) for _ in range(20)]
            async with asyncio.timeout(10):
                while not (node := await describe(shop, "pg2"))["ejected_until"]:
                    await asyncio.sleep(0.01)
            assert node["role"] == "replica"
            assert {answer.status_code for answer in await asyncio.gather(*reads)} == {200}
            # Then it counts as unreachable: no other spell.
            async with asyncio.timeout(10):
                while (await describe(shop, "pg2"))["role"] != "unknown":
                    await asyncio.sleep(0.01)
            async with paused_replay(cluster):
                changed = await shop.adjust(sku_id, 1)
                assert (await shop.read(path, changed)).headers["Atelier-Served-By"] == "pg1"
            metrics = await read_metrics(shop)
            assert metrics['atelier_node_ejections_total{node="pg2",reason="silent"}'] == 1
            assert metrics['atelier_read_retries_total{node="pg2"}'] >= 1
            assert metrics['atelier_read_wait_seconds_count{outcome="in-vain"}'] >= 1
            proxies["pg2"].heal()
            async with asyncio.timeout(10):
                while (await describe(shop, "pg2"))["ejected_until"]:
                    await read(shop, path)


async def describe(shop: Shop, name: str) -> dict[str, object]:
    """A node as `/cluster` shows it."""
    nodes = (await shop.http.get("/cluster")).json()["nodes"]
    return next(node for node in nodes if node["name"] == name)
