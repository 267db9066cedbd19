"""One deadline a request: what comes before and after the read itself is within it, too."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from atelier.access.keys import create_key
from atelier.access.verify import KeyRecord, KeyVerifier
from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import DeadlineExceededError, HistoryLostError
from atelier.http import TOKEN_COOKIE
from atelier.lsn import Lsn
from atelier.problems import ProblemError
from atelier.reads.asking import Asker
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask
from atelier.reads.responding import Responder
from atelier.settings import Settings
from atelier.token import CausalToken, TokenKeys
from tests.reads.conftest import connected
from tests.support import Service, role_dsn, running_cluster, running_service

pytestmark = pytest.mark.anyio

REQUEST_S = 3.0
SETTINGS = Settings(
    nodes=(), token_keys=(b"k" * 32,), reader_password="", monitor_password="", writer_password=""
)  # fmt: skip


@pytest.fixture(scope="module")
def breakable() -> Iterator[tuple[EmbeddedCluster, Service]]:
    """A cluster whose nodes may be frozen, and a service over it that gives a node nearly all of a request's time."""
    patience = {"ATELIER_REQUEST_MS": "3000", "ATELIER_CONNECT_MS": "2000", "ATELIER_STATEMENT_MS": "2000"}
    with running_cluster(replicas=2) as cluster, running_service(cluster, settings=patience) as service:
        yield cluster, service


async def make_keys(cluster: EmbeddedCluster, count: int) -> list[str]:
    """Keys that are valid on every node, and that no process has seen."""
    async with connected(role_dsn(cluster, "writer")) as connection:
        keys = [await create_key(connection, name=f"new-{number}", scopes=["admin"]) for number in range(count)]
        last = keys[-1].split("_")[1]
    for name in ("pg2", "pg3"):
        async with connected(cluster.superuser_dsn(name)) as replica, asyncio.timeout(10):
            while not await replica.fetchval("select true from atelier.api_key where prefix = $1", last):
                await asyncio.sleep(0.01)
    return keys


@pytest.mark.cluster
async def test_a_frozen_replica_holds_up_nobody_with_a_key(breakable: tuple[EmbeddedCluster, Service]) -> None:
    """Known keys, new ones and wrong ones: each is answered within the time of one request, and the valid ones well."""
    cluster, service = breakable
    new = await make_keys(cluster, 5)
    wrong = [f"atl_{number:08d}_{'x' * 43}" for number in range(10)]
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:

        async def read(key: str) -> tuple[str, int, float]:
            began_s = time.perf_counter()
            answer = await http.get("/inventory/1", headers={"Authorization": f"Bearer {key}"})
            return key, answer.status_code, time.perf_counter() - began_s

        assert (await read(service.key))[1] == 404
        cluster.freeze("pg2")
        try:
            answers = await asyncio.gather(*(read(key) for key in [*wrong, *new, service.key]))
        finally:
            cluster.thaw("pg2")
    for key, status, took_s in answers:
        assert status == (401 if key in wrong else 404), key
        assert took_s < REQUEST_S, key


@pytest.mark.cluster
async def test_all_replicas_frozen_leave_the_primary_to_know_keys(breakable: tuple[EmbeddedCluster, Service]) -> None:
    """And the read itself: the first ones may run out of time, and hear so; then they are left alone."""
    cluster, service = breakable
    known, *new = await make_keys(cluster, 5)
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:
        for name in ("pg2", "pg3"):
            cluster.freeze(name)
        try:
            for key in new:
                began_s = time.perf_counter()
                answer = await http.get("/inventory/1", headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code in (404, 503)
                assert time.perf_counter() - began_s < REQUEST_S + 0.7
            answer = await http.get("/inventory/1", headers={"Authorization": f"Bearer {known}"})
            assert (answer.status_code, answer.headers["Atelier-Served-By"]) == (404, "pg1")
        finally:
            for name in ("pg2", "pg3"):
                cluster.thaw(name)


async def test_a_look_up_that_hangs_holds_up_only_its_own_key_and_only_until_the_deadline() -> None:
    """Who waits for the same one gives up at its own time; another key is looked up beside it."""
    asked: list[str] = []

    async def look_up(prefix: str) -> KeyRecord | None:
        asked.append(prefix)
        if prefix == "a" * 8:
            await asyncio.Event().wait()
        return None

    verifier = KeyVerifier(look_up, clock=time.monotonic, now=lambda: datetime.now(UTC))

    async def verify(letter: str, within_s: float) -> None:
        await verifier.verify(f"Bearer atl_{letter * 8}_{'x' * 43}", Deadline.after(within_s, time.monotonic))

    patient = asyncio.create_task(verify("a", 30))
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceededError):
            await verify("a", 0.05)
        with pytest.raises(ProblemError, match="valid key"):
            await verify("b", 30)
    assert not patient.done()
    patient.cancel()
    assert asked == ["a" * 8, "b" * 8]


async def test_a_read_whose_cookie_is_lost_has_no_more_time_than_any_other() -> None:
    """The second try goes on with what the first has left."""
    keys = TokenKeys(SETTINGS.token_keys)
    responder = Responder(SETTINGS, keys, Asker(SETTINGS, keys, clock=time.monotonic))
    token = CausalToken(1, 1, Lsn(5))
    asks: list[Ask] = []

    async def fetch(ask: Ask) -> Document:
        asks.append(ask)
        if ask.token is not None:
            raise HistoryLostError
        return Document(b"{}", '"1"', Answer((), "pg2", "replica", 0.0, token))

    cookie = f"{TOKEN_COOKIE}={keys.seal(token)}".encode()
    scope = {"type": "http", "path": "/products/1", "headers": [(b"cookie", cookie)]}
    await responder.respond(scope, fetch)  # type: ignore[arg-type]  # all that is asked of it
    first, second = asks
    assert (first.token, second.token) == (token, None)
    assert second.deadline == first.deadline
    keyed = responder.begin()
    await responder.respond(scope, fetch, keyed=keyed)  # type: ignore[arg-type]
    assert [ask.deadline for ask in asks[2:]] == [keyed, keyed]
