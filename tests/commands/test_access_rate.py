"""The rate limit of a key: off unless set, told in headers, shared among processes."""

import asyncio
import time

import httpx
import pytest

from atelier.access.rate import RateLimit, RateLimiter
from atelier.embedded.cluster import EmbeddedCluster
from atelier.problems import ProblemError
from tests.commands.conftest import Shop, new_key, open_shop, serving
from tests.support import make_key


def test_no_limit_says_nothing() -> None:
    """Off unless set."""
    limiter = RateLimiter(None, clock=lambda: 0.0)
    assert [limiter.take(1) for _ in range(1_000)] == [{}] * 1_000


def test_burst_passes_and_then_the_rate_holds() -> None:
    """Ten at once, then five a second, and `Retry-After` is long enough."""
    now = [0.0]
    limiter = RateLimiter(RateLimit(per_s=5, burst=10), clock=lambda: now[0])
    assert [limiter.take(1)["RateLimit"].split(";")[1] for _ in range(10)] == [f"r={left}" for left in range(9, -1, -1)]
    with pytest.raises(ProblemError) as caught:
        limiter.take(1)
    assert (caught.value.name, caught.value.headers["Retry-After"]) == ("too-many-requests", "1")
    now[0] = 1.0
    assert len([limiter.take(1) for _ in range(5)]) == 5
    with pytest.raises(ProblemError):
        limiter.take(1)


def test_keys_do_not_share_a_bucket() -> None:
    """One key's haste is no other's delay."""
    limiter = RateLimiter(RateLimit(per_s=1, burst=1), clock=lambda: 0.0)
    limiter.take(1)
    limiter.take(2)
    with pytest.raises(ProblemError):
        limiter.take(1)


def test_processes_share_the_limit_in_equal_parts() -> None:
    """Each of four processes lets a quarter pass."""
    limiter = RateLimiter(RateLimit(per_s=40, burst=40, processes=4), clock=lambda: 0.0)
    for _ in range(10):
        limiter.take(1)
    with pytest.raises(ProblemError):
        limiter.take(1)


@pytest.mark.anyio
@pytest.mark.cluster
async def test_key_of_a_command_that_came_too_fast_stays_free(cluster: EmbeddedCluster) -> None:
    """429 is no outcome: the same command under the same key is carried out as soon as there is room for it."""
    async with serving(cluster, ATELIER_RATE_PER_S="1", ATELIER_RATE_BURST="1", ATELIER_WORKERS="1") as service:
        headers = {"Authorization": f"Bearer {service.key}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
            shop, keys = Shop(http), []
            refused = None
            while refused is None or refused.status_code != 429:
                keys.append(new_key())
                refused = await shop.adjust(2**62, 1, Idempotency_Key=keys[-1])
                assert len(keys) < 20, "twenty commands in no time, and none was too many"
            async with asyncio.timeout(15):
                while (again := await shop.adjust(2**62, 1, Idempotency_Key=keys[-1])).status_code == 429:
                    await asyncio.sleep(0.1)
    assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (404, None)


@pytest.mark.anyio
@pytest.mark.cluster
@pytest.mark.soak
async def test_rate_of_a_key_holds_over_http_and_over_processes(cluster: EmbeddedCluster) -> None:
    """429 with Retry-After and nothing done; what is left stands in every answer before. Reads are not counted."""
    settings = {"ATELIER_RATE_PER_S": "1", "ATELIER_RATE_BURST": "20", "ATELIER_WORKERS": "2"}
    answers: list[httpx.Response] = []
    async with serving(cluster, **settings) as service:
        headers = {"Authorization": f"Bearer {service.key}"}
        began_s = time.monotonic()
        # Each over a connection of its own, which either process may take.
        while len(answers) < 60:
            async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
                answers.append(await Shop(http).adjust(2**62, 1))
                assert (await http.get("/products/1")).status_code in (200, 404)
        took_s = time.monotonic() - began_s
    passed = [answer for answer in answers if answer.status_code == 404]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(passed) + len(refused) == 60
    # One process alone lets its half pass; both together let all of it, and what came back meanwhile.
    assert 10 <= len(passed) <= 20 + took_s
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"key";q=10;w=20'}
    assert all(int(answer.headers["RateLimit"].split(";")[1].removeprefix("r=")) < 10 for answer in passed)
    assert {answer.json()["type"] for answer in refused} == {"/problems/too-many-requests"}
    assert all(answer.headers["RateLimit"].startswith('"key";r=0;t=') for answer in refused)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)


@pytest.mark.anyio
@pytest.mark.cluster
async def test_refused_command_tells_what_is_left_of_the_rate_as_well(cluster: EmbeddedCluster) -> None:
    """Whatever it is refused for after the key was found good: it has counted."""
    async with serving(cluster, ATELIER_RATE_PER_S="1", ATELIER_RATE_BURST="100") as service:
        scoped = await make_key(cluster, name=new_key(), scopes=("catalogue:write",))
        async with open_shop(service) as shop:
            [sku_id] = await shop.stocked(5)
            key, line = new_key(), {"reason": "x", "lines": [{"sku_id": sku_id, "delta": 1}]}
            answers = {
                200: await shop.post("/inventory/adjustments", line, Idempotency_Key=key),
                422: await shop.adjust(sku_id, 7, Idempotency_Key=key),
                400: await shop.post("/inventory/adjustments", {}),
                403: await shop.adjust(sku_id, 1, Authorization=f"Bearer {scoped}"),
                415: await shop.http.post("/inventory/adjustments", content="{}", headers={"Idempotency-Key": key}),
                428: await shop.send("PUT", f"/inventory/{sku_id}", {"on_hand": 1}),
                404: await shop.http.get("/commands/nothing"),
            }
            for status, answer in answers.items():
                assert answer.status_code == status, answer.text
                assert "RateLimit" in answer.headers, status
                assert "RateLimit-Policy" in answer.headers, status
            unknown = await shop.adjust(sku_id, 1, Authorization="Bearer nobody")
            assert (unknown.status_code, "RateLimit" in unknown.headers) == (401, False)
