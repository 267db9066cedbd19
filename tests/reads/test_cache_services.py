"""The service with its memory on while a catalogue is imported, a reservation expires, another node becomes primary."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, product, style
from tests.fixtures.remembering import WITH_MEMORY
from tests.oracle import Oracle
from tests.random_catalogue import write_random_catalogue
from tests.reads.conftest import connected
from tests.support import Service, plain_environment, role_dsn, running_cluster, running_service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

BOUNDED = {"Atelier-Consistency": "bounded; max-lag-ms=60000"}


@pytest.fixture
def imported() -> Iterator[EmbeddedCluster]:
    """A cluster of the test's own: its catalogue is replaced, or its primary lost."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def remembering(imported: EmbeddedCluster) -> Iterator[Service]:
    """A service over it that remembers."""
    with running_service(imported, settings=WITH_MEMORY) as service:
        yield service


@asynccontextmanager
async def shopping(service: Service) -> AsyncIterator[Shop]:
    """A client with a key."""
    headers = {"Authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=20) as http:
        yield Shop(http)


async def count_hits(http: httpx.AsyncClient) -> float:
    """How many reads the service has answered from memory."""
    metrics = (await http.get("/metrics")).text
    return sum(map(float, re.findall(r"^atelier_cache_hits_total\{[^}]*\} (\S+)$", metrics, re.MULTILINE)))


async def import_catalogue(cluster: EmbeddedCluster, folder: Path) -> None:
    """Runs the real command."""
    command = [sys.executable, "-P", "-m", "atelier.cli.main", "import", str(folder), f"--rejects={os.devnull}"]
    environ = plain_environment() | cluster.environment()
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.PIPE)
    _, told = await process.communicate()
    assert process.returncode == 0, told


def tell_all(oracle: Oracle) -> dict[str, Any]:
    """What every address of a catalogue shows; None where there is nothing."""
    told: dict[str, Any] = {f"/products?page={page}": oracle.list("documented", page=page) for page in (1, 2)}
    for product_id in oracle.product_ids():
        told[f"/products/{product_id}"] = oracle.product("documented", product_id)
        told[f"/products/{product_id}/styles"] = oracle.styles("documented", product_id)
        told[f"/products/{product_id}/related"] = oracle.related(product_id)
    return told


async def test_import_is_seen_at_once_and_as_a_whole_past_a_warm_memory(
    imported: EmbeddedCluster, remembering: Service, tmp_path: Path
) -> None:
    """While it runs each reader sees the old catalogue, then the new one, and never a page of the old one again."""
    folders = [write_random_catalogue(tmp_path / str(seed), seed=seed, products=12) for seed in (1, 2)]
    await import_catalogue(imported, folders[0])
    old, new = (tell_all(Oracle(folder)) for folder in folders)
    addresses = sorted({*old, *new})
    done, changed = asyncio.Event(), set[int]()

    async def look(http: httpx.AsyncClient, reader: int) -> None:
        token = (await http.get("/products", headers={"Atelier-Consistency": "strong"})).headers["Atelier-Token"]
        while not (done.is_set() and reader in changed):
            for address in addresses:
                answer = await http.get(address, headers={"Atelier-Token": token})
                shown = answer.json() if answer.status_code == 200 else None
                expected = [new.get(address)] if reader in changed else [old.get(address), new.get(address)]
                assert shown in expected, address
                if shown != old.get(address):
                    changed.add(reader)
                token = answer.headers.get("Atelier-Token", token)

    async with httpx.AsyncClient(base_url=remembering.url, timeout=20) as http:
        readers = [asyncio.create_task(look(http, reader)) for reader in range(3)]
        async with asyncio.timeout(20):
            while await count_hits(http) < 3 * len(addresses):
                await asyncio.sleep(0.01)
        assert not changed
        await import_catalogue(imported, folders[1])
        done.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*readers)
        token = (await http.get("/products", headers={"Atelier-Consistency": "strong"})).headers["Atelier-Token"]
        for policy in ({}, BOUNDED):
            for address in addresses:
                answer = await http.get(address, headers=policy | {"Atelier-Token": token})
                assert (answer.json() if answer.status_code == 200 else None) == new.get(address), address


async def make_hat(shop: Shop) -> tuple[str, int]:
    """A product with five of a kind: the address of its styles, and the SKU."""
    made = await shop.post("/products", product(styles=[style(5)]))
    address = f"/products/{made.json()['id']}/styles"
    (sku_id,) = (await shop.read(address, made)).json()["results"][0]["skus"]
    return address, int(sku_id)


def quantity(answer: httpx.Response) -> int:
    """What can be bought."""
    assert answer.status_code == 200, answer.text
    (sku,) = answer.json()["results"][0]["skus"].values()
    return int(sku["quantity"])


async def warm(shop: Shop, address: str, shown: int) -> None:
    """Reads until memory answers with this quantity, as somebody who has no token, not even as a cookie."""
    shop.http.cookies.clear()
    async with asyncio.timeout(20):
        while True:
            before = await count_hits(shop.http)
            answer = await shop.http.get(address)
            if await count_hits(shop.http) > before and quantity(answer) == shown:
                return


async def test_expired_reservation_is_given_back_past_a_warm_memory(
    imported: EmbeddedCluster, remembering: Service
) -> None:
    """Nobody commands it and nobody has a token of it: within moments every page shows it all the same."""
    async with shopping(remembering) as shop:
        address, sku_id = await make_hat(shop)
        held = await shop.reserve((sku_id, 2))
        await warm(shop, address, 3)
        async with connected(role_dsn(imported, "writer")) as database:
            await database.execute(
                "update reservation set expires_at = clock_timestamp() where reservation_id = $1",
                int(held.json()["reservation_id"]),
            )
        async with asyncio.timeout(5):
            while quantity(await shop.http.get(address, headers={"Atelier-Consistency": "strong"})) != 5:
                await asyncio.sleep(0.02)
        # A token would have memory look again: first without one.
        async with asyncio.timeout(5):
            while quantity(await shop.http.get(address, headers=BOUNDED)) != 5:
                await asyncio.sleep(0.02)
        await warm(shop, address, 5)
        seen = await shop.http.get(f"/inventory/{sku_id}", headers={"Atelier-Consistency": "strong"})
        assert quantity(await shop.read(address, seen)) == 5


async def test_memory_is_right_before_and_after_another_node_is_primary(
    imported: EmbeddedCluster, remembering: Service
) -> None:
    """What the lost primary's replicas have answered, and what they answer behind the new one."""
    async with shopping(remembering) as shop:
        address, sku_id = await make_hat(shop)
        await warm(shop, address, 5)
        told = await shop.adjust(sku_id, 1)
        assert quantity(await shop.read(address, told)) == 6
        await warm(shop, address, 6)
        await asyncio.to_thread(imported.kill, "pg1")
        assert quantity(await shop.read(address, told)) == 6
        await asyncio.to_thread(imported.promote, "pg2")
        for number in range(7, 30):
            async with asyncio.timeout(20):
                while (told := await shop.adjust(sku_id, 1)).status_code != 200:
                    assert told.status_code == 503, told.text
            if number % 2:
                assert quantity(await shop.read(address, told)) == number
            # Else nothing but the new primary's feed tells memory.
            await warm(shop, address, number)
            assert quantity(await shop.read(address, told)) == number
