"""What the tests of commands share: a client that sends as a careful client does, and products of the test's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import Service, role_dsn, running_service


def new_key() -> str:
    """An idempotency key that nobody had before."""
    return os.urandom(12).hex()


def product(**fields: Any) -> dict[str, Any]:
    """The body of a product without styles."""
    return {"name": "Hat", "slogan": "Warm", "description": "", "category": "Hats", "default_price": "19.50"} | fields


def style(*quantities: int, **fields: Any) -> dict[str, Any]:
    """The body of a style with one SKU per quantity."""
    skus = [{"size": f"S{index}", "quantity": quantity} for index, quantity in enumerate(quantities)]
    return {"name": "Red", "original_price": "140", "sale_price": None, "default?": True, "skus": skus} | fields


async def broken_shelves(database: asyncpg.Connection, skus: Sequence[int]) -> list[asyncpg.Record]:
    """The SKUs that break an invariant: bounds, ledger, or what their pending reservations add up to."""
    return await database.fetch(
        """
        select * from (
            select sku_id, on_hand, reserved,
                   (select coalesce(sum(delta), 0) from stock_movement as m where m.sku_id = stock.sku_id) as ledger,
                   (select coalesce(sum(quantity), 0) from reservation_line as l join reservation using (reservation_id)
                     where l.sku_id = stock.sku_id and state = 'pending') as pending
              from stock where sku_id = any($1)) as seen
         where reserved < 0 or reserved > on_hand or ledger <> on_hand or pending <> reserved
        """,
        skus,
    )


@dataclass
class Shop:
    """A client of the service that sends a new key with every command."""

    http: httpx.AsyncClient

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Sends one command; `Idempotency_Key="..."` and the like are headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if method == "POST" and "Idempotency-Key" not in named:
            named["Idempotency-Key"] = new_key()
        return await self.http.request(method, path, json=body, headers=named)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.send("POST", path, body, **headers)

    async def read(self, path: str, after: httpx.Response) -> httpx.Response:
        """Reads what is at least as new as an answer."""
        return await self.http.get(path, headers={"Atelier-Token": after.headers["Atelier-Token"]})

    async def stocked(self, *quantities: int) -> list[int]:
        """Makes a product; gives the ids of its SKUs."""
        made = await self.post("/products", product(styles=[style(*quantities)]))
        assert made.status_code == 201, made.text
        styles = await self.read(f"/products/{made.json()['id']}/styles", made)
        return [int(sku_id) for one in styles.json()["results"] for sku_id in one["skus"]]

    async def adjust(self, sku_id: int, delta: int, **headers: str) -> httpx.Response:
        body = {"reason": "test", "lines": [{"sku_id": sku_id, "delta": delta}]}
        return await self.post("/inventory/adjustments", body, **headers)

    async def reserve(self, *lines: tuple[int, int], ttl_seconds: int = 300, **headers: str) -> httpx.Response:
        body = {"ttl_seconds": ttl_seconds, "lines": [{"sku_id": sku, "quantity": count} for sku, count in lines]}
        return await self.post("/reservations", body, **headers)


async def wait_until_blocked(database: "asyncpg.Connection[asyncpg.Record]", *, sessions: int = 1) -> None:
    """Waits until a session waits for a lock that this one holds, or so many wait for any.

    Asked of the locks: within a transaction the list of sessions stays as it was when it was first looked at.
    """
    waiting = (
        "select count(distinct pid) from pg_locks "
        "where not granted and ($1 > 1 or pg_backend_pid() = any(pg_blocking_pids(pid)))"
    )
    async with asyncio.timeout(10):
        while await database.fetchval(waiting, sessions) < sessions:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(cluster: EmbeddedCluster, **settings: str) -> AsyncIterator[Service]:
    """A service of the test's own; its start and end hold up nobody who works meanwhile."""
    opened = running_service(cluster, settings=settings)
    running = await asyncio.to_thread(opened.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)


@asynccontextmanager
async def open_shop(service: Service) -> AsyncIterator[Shop]:
    """A client with all scopes."""
    headers = {"Authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
        yield Shop(http)


@pytest.fixture
async def shop(service: Service) -> AsyncIterator[Shop]:
    """A client of the service that the tests share."""
    async with open_shop(service) as opened:
        yield opened


@pytest.fixture
async def database(cluster: EmbeddedCluster) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The primary, as the service's own writing role."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    yield connection
    await connection.close()
