"""The server process is killed at random moments while clients work: no key twice, nothing acknowledged is lost."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, new_key
from tests.support import Service, make_key, running_service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

ROUNDS = 3


async def send_until_answered(urls: list[str], key: str, sku_id: int, api_key: str) -> int:
    """Sends one command to whichever process runs now, under the same key, until there is an answer to keep."""
    body = {"reason": "x", "lines": [{"sku_id": sku_id, "delta": 1}]}
    headers = {"Idempotency-Key": key, "Authorization": f"Bearer {api_key}"}
    async with asyncio.timeout(90):
        while True:
            try:
                async with httpx.AsyncClient(base_url=urls[-1], timeout=15) as http:
                    answer = await http.post("/inventory/adjustments", json=body, headers=headers)
                if answer.is_success:
                    return 1
                assert answer.status_code in (409, 503), answer.text
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(cluster: EmbeddedCluster) -> AsyncIterator[Service]:
    """A service of the test's own; its start and end do not hold up the clients."""
    opened = running_service(cluster)
    running = await asyncio.to_thread(opened.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)


async def test_killed_server_applies_no_key_twice_and_loses_nothing(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Kill -9 of the whole process group, then another one over the same nodes; clients go on with their keys."""
    [sku_id] = await shop.stocked(0)
    api_key = await make_key(cluster, name=new_key())
    keys, urls = [new_key() for _ in range(200)], list[str]()
    waiting = list(keys)

    async def work() -> int:
        done = 0
        while waiting:
            done += await send_until_answered(urls, waiting.pop(), sku_id, api_key)
        return done

    dice = random.Random(11)
    workers: list[asyncio.Task[int]] = []
    for _ in range(ROUNDS):
        async with serving(cluster) as running:
            urls.append(running.url)
            workers = workers or [asyncio.create_task(work()) for _ in range(16)]
            await asyncio.sleep(dice.uniform(0.1, 0.3))
            os.killpg(running.process.pid, signal.SIGKILL)
    async with serving(cluster) as running:
        urls.append(running.url)
        acknowledged = sum(await asyncio.gather(*workers))
    rows = await database.fetch(
        "select command_key, count(*) as times from stock_movement where sku_id = $1 group by command_key", sku_id
    )
    assert acknowledged == len(keys)
    assert {row["command_key"]: row["times"] for row in rows} == dict.fromkeys(keys, 1)
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == len(keys)
