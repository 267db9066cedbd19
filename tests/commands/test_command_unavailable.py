"""What a client of the real service is told while the primary does not do its part, and what its key is worth later."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NoReturn

import asyncpg
import httpx
import pytest

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import OverloadedError, PrimaryUnavailableError
from atelier.settings import NodeAddress
from tests.commands.conftest import Shop, new_key, open_shop, serving
from tests.commands.writing import open_gateway, open_proxy, settings_of

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

SOON = {"ATELIER_COMMAND_MS": "1500"}


def check_problem(answer: httpx.Response, name: str) -> None:
    """503, which problem, and when to come again."""
    assert (answer.status_code, answer.json()["type"]) == (503, f"/problems/{name}"), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["retry_after_s"] == int(answer.headers["Retry-After"])


async def wait_until_ready(http: httpx.AsyncClient, *, status: int) -> None:
    """Waits until the service says that it can do its work, or that it cannot."""
    async with asyncio.timeout(30):
        while (await http.get("/health/ready")).status_code != status:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("moment", "replayed"), [("hold", "true"), ("cut-before", None)])
async def test_lost_commit_is_told_and_settled_by_its_key(
    cluster: EmbeddedCluster, moment: str, replayed: str | None
) -> None:
    """503 outcome-unknown is no outcome: the key gives what was committed, or does what never was. Once, either way."""
    async with open_proxy(cluster.primary.port) as proxy:
        nodes = f"{cluster.primary.name}=127.0.0.1:{proxy.port}"
        async with serving(cluster, ATELIER_NODES=nodes, **SOON) as service:
            headers = {"Authorization": f"Bearer {service.key}"}
            async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
                shop, key = Shop(http), new_key()
                [sku_id] = await shop.stocked(5)
                proxy.on_commit = lambda: moment
                check_problem(await shop.adjust(sku_id, -2, Idempotency_Key=key), "outcome-unknown")
                proxy.on_commit = lambda: "pass"
                proxy.release.set()
                again = await shop.adjust(sku_id, -2, Idempotency_Key=key)
                assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (200, replayed)
                assert again.json()["lines"][0]["on_hand"] == 3


async def test_client_that_hangs_up_during_the_commit_leaves_it_alone(
    cluster: EmbeddedCluster, database: asyncpg.Connection
) -> None:
    """The server has committed and its answer is on the way when the client goes: done once, and found by its key."""
    async with open_proxy(cluster.primary.port) as proxy:
        nodes = f"{cluster.primary.name}=127.0.0.1:{proxy.port}"
        async with serving(cluster, ATELIER_NODES=nodes) as service, open_shop(service) as shop:
            [sku_id] = await shop.stocked(5)
            key = new_key()
            proxy.on_commit = lambda: "hold"
            async with open_shop(service) as leaving:
                sending = asyncio.create_task(leaving.adjust(sku_id, 10, Idempotency_Key=key))
                async with asyncio.timeout(10):
                    while not await database.fetchval("select count(*) from command_key where key = $1", key):
                        await asyncio.sleep(0.01)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            proxy.on_commit = lambda: "pass"
            proxy.release.set()
            again = await shop.adjust(sku_id, 10, Idempotency_Key=key)
            assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (200, "true")
            assert again.json()["lines"][0]["on_hand"] == 15


async def test_command_without_a_primary_is_told_so_and_its_key_stays_free(
    make_cluster: Callable[..., EmbeddedCluster],
) -> None:
    """503 primary-unavailable, nothing done; the same key does it when the primary is back."""
    cluster = await asyncio.to_thread(make_cluster, replicas=0)
    async with serving(cluster, **SOON) as service:
        headers = {"Authorization": f"Bearer {service.key}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
            shop, key = Shop(http), new_key()
            [sku_id] = await shop.stocked(5)
            await asyncio.to_thread(cluster.kill, cluster.primary.name)
            await wait_until_ready(http, status=503)
            check_problem(await shop.adjust(sku_id, -2, Idempotency_Key=key), "primary-unavailable")
            await asyncio.to_thread(cluster.start)
            await wait_until_ready(http, status=200)
            again = await shop.adjust(sku_id, -2, Idempotency_Key=key)
            assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (200, None)
            assert again.json()["lines"][0]["on_hand"] == 3


@pytest.mark.parametrize("is_taken", [True, False])
async def test_connection_that_does_not_open_in_time_is_no_overload(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, *, is_taken: bool
) -> None:
    """It is the primary that does not answer; overload is when the connections that there may be are all in use."""

    async def never(_address: NodeAddress) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    async with open_gateway(settings_of(cluster)) as gateway, AsyncExitStack() as stack:
        if is_taken:
            connection, _ = await gateway.connect(Deadline.after(10, time.monotonic))
            stack.push_async_callback(connection.close)
        monkeypatch.setattr(gateway, "_open", never)
        with pytest.raises(OverloadedError if is_taken else PrimaryUnavailableError):
            await gateway.connect(Deadline.after(0.5, time.monotonic))
