"""The server process is killed at random moments while clients work: no key twice, nothing acknowledged is lost."""

import asyncio
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import pytest

from atelier.client import ClientTransport
from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, broken_shelves, new_key, serving
from tests.support import make_key

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

ROUNDS = 3
STOCK = 10_000


@dataclass
class Customers:
    """Clients that send each command, under its key, to whichever process runs now, until there is an answer to keep.

    Attributes:
        http: with the key of all of them.
        skus: what they buy, three lines at a time.
        urls: of the processes so far; the last one may run.
        told: what was acknowledged, by key: the status.
        states: how each reservation was said to be last.
        expected: what is on hand of each SKU if all that was acknowledged happened once, and nothing else.
    """

    http: httpx.AsyncClient
    skus: list[int]
    urls: list[str] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    expected: Counter[int] = field(default_factory=Counter)

    async def send(self, path: str, body: Any = None) -> Any:
        """One command; gives the body of its answer."""
        key = new_key()
        async with asyncio.timeout(90):
            while True:
                try:
                    answer = await self.http.post(self.urls[-1] + path, json=body, headers={"Idempotency-Key": key})
                    if answer.is_success:
                        self.told[key] = answer.status_code
                        return answer.json()
                    assert answer.status_code == 503 or answer.json()["type"] == "/problems/idempotency-in-flight"
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)

    async def adjust(self, lines: list[tuple[int, int]]) -> None:
        """Changes three shelves."""
        body = {"reason": "x", "lines": [{"sku_id": sku_id, "delta": delta} for sku_id, delta in lines]}
        await self.send("/inventory/adjustments", body)
        self.expected.update(dict(lines))

    async def buy(self, lines: list[tuple[int, int]], verb: str) -> None:
        """Reserves of three shelves, then confirms or releases."""
        body = {"ttl_seconds": 600, "lines": [{"sku_id": sku_id, "quantity": count} for sku_id, count in lines]}
        made = (await self.send("/reservations", body))["reservation_id"]
        self.states[made] = "pending"
        self.states[made] = (await self.send(f"/reservations/{made}/{verb}"))["state"]
        if verb == "confirm":
            self.expected.subtract(dict(lines))

    async def work(self, dice: random.Random, plans: list[str]) -> None:
        """Does what is planned, as long as there is something left."""
        while plans:
            kind = plans.pop()
            lines = [(sku_id, dice.randint(1, 3)) for sku_id in dice.sample(self.skus, 3)]
            await (self.adjust(lines) if kind == "adjust" else self.buy(lines, kind))

    async def answered(self, more: int, workers: list[asyncio.Task[None]]) -> None:
        """Waits until so many more commands were acknowledged; a worker that ends before that has failed."""
        goal = len(self.told) + more
        async with asyncio.timeout(60):
            while len(self.told) < goal:
                assert not [worker.result() for worker in workers if worker.done()]
                await asyncio.sleep(0.001)


async def test_killed_server_applies_no_key_twice_and_loses_nothing(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Kill -9 of the whole process group, then another one over the same nodes; clients go on with their keys."""
    skus = await shop.stocked(*[STOCK] * 6)
    headers = {"Authorization": f"Bearer {await make_key(cluster, name=new_key())}"}
    dice = random.Random()
    plans = [dice.choice(("adjust", "confirm", "release")) for _ in range(400)]
    async with httpx.AsyncClient(headers=headers, timeout=15, transport=ClientTransport()) as http:
        customers = Customers(http, skus, expected=Counter(dict.fromkeys(skus, STOCK)))
        workers: list[asyncio.Task[None]] = []
        for _ in range(ROUNDS):
            async with serving(cluster) as running:
                customers.urls.append(running.url)
                workers = workers or [asyncio.create_task(customers.work(dice, plans)) for _ in range(16)]
                await customers.answered(dice.randint(1, 60), workers)
                os.killpg(running.process.pid, signal.SIGKILL)
        assert not all(worker.done() for worker in workers), "nothing was left to do when the last one was killed"
        async with serving(cluster) as running:
            customers.urls.append(running.url)
            await asyncio.gather(*workers)
    await check(database, customers)


async def check(database: asyncpg.Connection, customers: Customers) -> None:
    """What was acknowledged is there once, and nothing else is."""
    keys, skus = list(customers.told), customers.skus
    stored = await database.fetch("select key, status from command_key where key = any($1)", keys)
    assert {row["key"]: row["status"] for row in stored} == customers.told
    audited = await database.fetch(
        "select command_key, count(*) as times from audit_entry where command_key = any($1) group by command_key", keys
    )
    assert {row["command_key"]: row["times"] for row in audited} == dict.fromkeys(keys, 1)
    twice = "select command_key from stock_movement where sku_id = any($1) and kind <> 'initial' group by command_key"
    assert await database.fetch(f"{twice} having count(*) <> 3", skus) == []
    held = await database.fetch(
        """
        select distinct reservation_id, state from reservation join reservation_line using (reservation_id)
         where sku_id = any($1)
        """,
        skus,
    )
    assert {row["reservation_id"]: row["state"] for row in held} == customers.states
    rows = await database.fetch("select sku_id, on_hand from stock where sku_id = any($1)", skus)
    assert {row["sku_id"]: row["on_hand"] for row in rows} == dict(customers.expected)
    assert await broken_shelves(database, skus) == []
