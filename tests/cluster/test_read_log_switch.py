"""Reads with tokens while the log is switched under writes, as every base backup does."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import HistoryLostError
from atelier.token import CausalToken
from tests.fixtures.reading import Reading, make_settings, open_reading
from tests.support import running_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

SWITCHES = 25


@pytest.fixture(scope="module")
def durable() -> Iterator[EmbeddedCluster]:
    """A cluster that waits for its disk: without that the primary fills a segment in no time."""
    with running_cluster(replicas=1, extra={"fsync": "on"}) as cluster:
        yield cluster


async def test_a_switched_log_loses_nobodys_history(durable: EmbeddedCluster) -> None:
    """A standby stands at the segment's end before the primary does; the next read is answered all the same."""
    switched = asyncio.Event()
    async with open_reading(make_settings(durable)) as reading:
        writers = [asyncio.create_task(write(durable, switched)) for _ in range(4)]
        readers = [asyncio.create_task(read(reading, switched)) for _ in range(4)]
        await switch_log(durable)
        switched.set()
        await asyncio.gather(*writers)
        lost = sum(await asyncio.gather(*readers))
    assert lost == 0


async def switch_log(cluster: EmbeddedCluster) -> None:
    """Switches it again and again."""
    connection = await asyncpg.connect(cluster.superuser_dsn("pg1"))
    for _ in range(SWITCHES):
        await connection.execute("select pg_logical_emit_message(true, 'test', '')")
        await connection.execute("select pg_switch_wal()")
    await connection.close()


async def write(cluster: EmbeddedCluster, until: asyncio.Event) -> None:
    """Commits something, over and over."""
    connection = await asyncpg.connect(cluster.superuser_dsn("pg1"))
    while not until.is_set():
        await connection.execute("select pg_logical_emit_message(true, 'test', '')")
    await connection.close()


async def read(reading: Reading, until: asyncio.Event) -> int:
    """Reads with the token of the last answer; tells how often its history was said to be lost."""
    token: CausalToken | None = None
    lost = 0
    while not until.is_set():
        try:
            token = (await reading.product(1, reading.ask(token))).token
        except HistoryLostError:
            token, lost = None, lost + 1
    return lost
