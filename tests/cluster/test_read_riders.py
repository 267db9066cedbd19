"""Reads that share statements: how many are sent, who hears of whose failure, and what is left of those who go."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import msgspec
import pytest

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import DeadlineExceededError, NodeError
from atelier.reads.batch import NodeReader, TimeOverError
from atelier.reads.executor import Answer
from atelier.reads.position import POSITION
from atelier.reads.queries import Statement
from atelier.telemetry import EJECTIONS, RETRIES
from tests.fixtures.proxied import NODES, REPLICAS, make_visible_product, open_behind, run
from tests.fixtures.reading import Reading, Shop, make_settings, open_reading, open_shop
from tests.fixtures.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

_ASKED = f"from {POSITION} cross join unnest($1::bigint[]) as asked (id)"

# One id fails whatever statement it is in.
PICKY = Statement("picky", f"select asked.id, pg_sleep(0.02), 1 / (asked.id - 666) as body, position.* {_ASKED}")
# One id makes whatever statement it is in last longer than it may.
DROWSY = Statement(
    "drowsy", f"select asked.id, pg_sleep(case asked.id when 666 then 3 else 0 end), position.* {_ASKED}"
)
DAWDLING = Statement("dawdling", f"select asked.id, pg_sleep(0.5), position.* {_ASKED}")
# All of them take their time together.
SLEEPY = Statement(
    "sleepy",
    f"with nap as materialized (select pg_sleep(1)) select asked.id, nap.*, position.* {_ASKED} cross join nap",
)

WHERE = [("eventual", NODES), ("strong", NODES), ("eventual", ("pg1",))]


@pytest.fixture
async def shop(cluster: EmbeddedCluster) -> AsyncIterator[Shop]:
    """Writes to the shared cluster's primary."""
    async with open_shop(cluster) as opened:
        yield opened


@asynccontextmanager
async def open_over(cluster: EmbeddedCluster, names: tuple[str, ...], **changes: str) -> AsyncIterator[Reading]:
    """The reading side over some of the nodes."""
    nodes = ",".join(f"{name}=127.0.0.1:{cluster.node(name).port}" for name in names)
    async with open_reading(make_settings(cluster, {"ATELIER_NODES": nodes, **changes})) as reading:
        await reading.until_roles(**{name: "primary" if name == "pg1" else "replica" for name in names})
        yield reading


def count_ejections(reason: str) -> float:
    """How often a node has been ejected for a reason."""
    return sum(EJECTIONS.value(name, reason) for name in NODES)


# How many are sent


class CountingProxy(TcpProxy):
    """Counts the statements that take an array of ids: those of reads, and none of the monitor's."""

    statements = 0

    def _from_client(self, piece: bytes) -> tuple[bytes, bool]:
        # A Bind message, and in it the head of a bigint[] in binary: one dimension, no nulls, elements of type 20.
        if piece.startswith(b"B") and bytes.fromhex("000000010000000000000014") in piece:
            self.statements += 1
        return super()._from_client(piece)


@asynccontextmanager
async def open_counting(cluster: EmbeddedCluster, **changes: str) -> AsyncIterator[tuple[Reading, list[CountingProxy]]]:
    """The reading side behind proxies that count."""
    async with AsyncExitStack() as stack:
        proxies = {name: CountingProxy("127.0.0.1", cluster.node(name).port) for name in NODES}
        for proxy in proxies.values():
            await proxy.listen()
            stack.push_async_callback(proxy.close)
        yield await stack.enter_async_context(open_behind(cluster, proxies, changes)), list(proxies.values())


async def test_concurrent_reads_share_statements_and_each_gets_its_own(cluster: EmbeddedCluster, shop: Shop) -> None:
    """Sixty reads of thirty products that arrive together: one statement a replica; alone, each has its own."""
    async with open_counting(cluster) as (reading, proxies):
        products = [await make_visible_product(reading, shop) for _ in range(30)]

        def count() -> int:
            return sum(proxy.statements for proxy in proxies)

        await asyncio.gather(*(reading.product(products[0]) for _ in range(8)))
        before = count()
        answers = await asyncio.gather(*(reading.product(product_id) for product_id in products * 2))
        assert [msgspec.json.decode(answer.rows[0]["body"])["id"] for answer in answers] == products * 2
        assert {answer.node for answer in answers} == REPLICAS
        assert count() - before == 2
        for product_id in products:
            await reading.product(product_id)
        assert count() - before == 32


async def test_tokens_that_arrive_together_are_each_respected(cluster: EmbeddedCluster, shop: Shop) -> None:
    """One replica stands still: who has seen more rides elsewhere, with others who read the same thing."""
    paused = await asyncpg.connect(cluster.superuser_dsn("pg3"))
    async with open_counting(cluster, ATELIER_WAIT_MS="2000") as (reading, proxies):
        _, sku_id = await shop.make_sku()
        old = await shop.set_stock(sku_id, 1)
        await reading.until_replayed(old)
        await asyncio.gather(*(reading.stock(sku_id) for _ in range(8)))
        await paused.execute("select pg_wal_replay_pause()")
        try:
            new = await shop.set_stock(sku_id, 2)
            node = "pg2"
            await reading.until(lambda: reading.monitor.snapshot.node(node).observation.replayed_lsn >= new.lsn)
            before = sum(proxy.statements for proxy in proxies)
            asks = [reading.ask(token) for _ in range(10) for token in (old, new)]
            answers = await asyncio.gather(*(reading.stock(sku_id, ask) for ask in asks))
            sent = sum(proxy.statements for proxy in proxies) - before
        finally:
            await paused.execute("select pg_wal_replay_resume()")
            await paused.close()
    seen = Counter(
        (ask.token is new, answer.node, msgspec.json.decode(answer.rows[0]["body"])["on_hand"])
        for ask, answer in zip(asks, answers, strict=True)
    )
    assert set(seen) == {(True, "pg2", 2), (False, "pg2", 2), (False, "pg3", 1)}
    assert sum(times for (is_new, *_), times in seen.items() if is_new) == 10
    assert sent == 2


# Who hears of whose failure


@pytest.mark.parametrize(("consistency", "names"), WHERE)
async def test_a_failing_batch_fails_nobody_who_could_be_answered_alone(
    cluster: EmbeddedCluster, consistency: str, names: tuple[str, ...]
) -> None:
    """One of the ids makes the statement fail; only who asked for it hears of it, also where there is no other node."""
    ejections = count_ejections("failed")
    async with open_over(cluster, names) as reading:
        keys = [*range(1, 10), 666, *range(10, 20)]
        results = await asyncio.gather(
            *(run(reading, PICKY, key, consistency=consistency) for key in keys), return_exceptions=True
        )
        assert {key: type(result) for key, result in zip(keys, results, strict=True)} == {
            key: asyncpg.DivisionByZeroError if key == 666 else Answer for key in keys
        }
        assert [result.rows[0]["id"] for result in results if isinstance(result, Answer)] == [*range(1, 20)]
    assert count_ejections("failed") == ejections


@pytest.mark.parametrize(("consistency", "names"), WHERE)
async def test_a_batch_that_is_cut_for_one_id_fails_nobody_else(
    cluster: EmbeddedCluster, consistency: str, names: tuple[str, ...]
) -> None:
    """It takes longer than a statement may; the others are asked again, without it."""
    async with open_over(cluster, names) as reading:
        await run(reading, DROWSY, 1, consistency=consistency)
        keys = [*range(1, 10), 666, *range(10, 20)]
        results = await asyncio.gather(
            *(run(reading, DROWSY, key, consistency=consistency) for key in keys), return_exceptions=True
        )
        answered = {key for key, result in zip(keys, results, strict=True) if isinstance(result, Answer)}
        assert answered == {*range(1, 20)}
        assert isinstance(results[keys.index(666)], NodeError)


async def test_a_statement_that_is_cut_while_its_node_answers_others_ejects_nobody(
    cluster: EmbeddedCluster, shop: Shop
) -> None:
    """A heavy question is no fault of the node's."""
    async with open_over(cluster, NODES) as reading:
        product_id = await make_visible_product(reading, shop)
        ejections = count_ejections("failed")
        heavy = asyncio.create_task(run(reading, DROWSY, 666))
        answering: set[str] = set()
        while not heavy.done():
            answers = await asyncio.gather(*(reading.product(product_id) for _ in range(8)))
            answering.update(answer.node for answer in answers)
        assert answering >= REPLICAS
        assert isinstance(heavy.exception(), NodeError)
        # The last of its tries is on the primary, which answers nobody else.
        assert all(reading.executor.ejected_until_s(name) is None for name in REPLICAS)
        assert count_ejections("failed") - ejections <= 1


# Whose time is over


async def test_a_read_whose_time_is_over_leaves_its_statement_running(cluster: EmbeddedCluster) -> None:
    """Its own time may be shorter than a statement's; who rides on with the statement gets the answer."""
    async with open_over(cluster, NODES, ATELIER_STATEMENT_MS="8000") as reading:
        node = reading.monitor.snapshot.node("pg2")
        assert node is not None
        reader = reading.pools.reader(node)
        patient = asyncio.create_task(reader.fetch(DAWDLING, 1, (), within_s=10))
        with pytest.raises(TimeOverError):
            await reader.fetch(DAWDLING, 2, (), within_s=0.05)
        assert not patient.done()
        assert reader.in_flight > 0
        assert (await patient).row["id"] == 1


async def test_who_waited_in_vain_blames_no_node(cluster: EmbeddedCluster) -> None:
    """One connection a node, and more to do on it than there is time for: that is load, no fault of a node's."""
    ejections, retries = count_ejections("failed"), sum(RETRIES.value(name) for name in NODES)
    changes = {"REPLICA_CONNECTIONS": "1", "PRIMARY_READ_CONNECTIONS": "1", "STATEMENT_MS": "700", "STALLED_MS": "9000"}
    async with open_over(cluster, NODES, **{f"ATELIER_{name}": value for name, value in changes.items()}) as reading:
        several = [Statement(f"dawdling{number}", DAWDLING.sql) for number in range(8)]
        results = await asyncio.gather(*(run(reading, statement, 1) for statement in several), return_exceptions=True)
        assert any(isinstance(result, Answer) for result in results)
        assert sum(RETRIES.value(name) for name in NODES) > retries
        assert all(reading.executor.ejected_until_s(name) is None for name in NODES)
    assert count_ejections("failed") == ejections


async def test_a_client_in_a_hurry_blames_no_node(cluster: EmbeddedCluster) -> None:
    """What is left of its request's time is less than the statement needs."""
    ejections = count_ejections("failed")
    async with open_over(cluster, NODES) as reading:
        ask = msgspec.structs.replace(reading.ask(), deadline=Deadline.after(0.1, time.monotonic))
        with pytest.raises(DeadlineExceededError):
            await reading.executor.run(DAWDLING, ([1],), ask)
        assert all(reading.executor.ejected_until_s(name) is None for name in NODES)
    assert count_ejections("failed") == ejections


# What is left of those who go


def readers_of(reading: Reading) -> list[NodeReader]:
    """What runs the reads on each node."""
    return list(reading.pools._readers.values())


async def count_readers(cluster: EmbeddedCluster) -> int:
    """Connections of the role `reader` on all nodes."""
    total = 0
    for name in NODES:
        admin = await asyncpg.connect(cluster.superuser_dsn(name))
        total += await admin.fetchval("select count(*) from pg_stat_activity where usename = 'reader'")
        await admin.close()
    return total


async def until(condition: Callable[[], bool]) -> None:
    """Waits from one turn of the event loop to the next, so that no stage passes unseen."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_a_thousand_cancelled_reads_leave_the_pools_whole(cluster: EmbeddedCluster, shop: Shop) -> None:
    """Before their first step, while connections are opened, in the queue, and in the middle of a statement."""
    stages: Counter[str] = Counter()

    async def cancel(tasks: list["asyncio.Task[Answer]"]) -> None:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    def begin(statement: Statement, count: int) -> list["asyncio.Task[Answer]"]:
        return [asyncio.create_task(run(reading, statement, key)) for key in range(1, count + 1)]

    changes = {"REPLICA_CONNECTIONS": "2", "STALLED_MS": "20000", "STATEMENT_MS": "5000"}
    before = await count_readers(cluster)
    async with open_over(cluster, NODES, **{f"ATELIER_{name}": value for name, value in changes.items()}) as reading:
        product_id = await make_visible_product(reading, shop)
        product = reading.statements["product_documented"]
        await cancel(begin(product, 100))
        stages["not begun"] += 100

        tasks = begin(product, 200)
        await until(lambda: sum(reader.in_flight for reader in readers_of(reading)) == 200)
        stages["connecting"] += sum(reader._waiting for reader in readers_of(reading) if not reader.pool.lent)
        await cancel(tasks)

        await asyncio.gather(*(reading.product(product_id) for _ in range(8)))
        tasks = begin(SLEEPY, 256)
        await until(lambda: sum(reader._riding for reader in readers_of(reading)) == 256)
        sleepers = begin(product, 444)
        await until(lambda: sum(reader.in_flight for reader in readers_of(reading)) == 700)
        stages["in a statement"] += sum(reader._riding for reader in readers_of(reading))
        stages["queued"] += sum(reader._waiting for reader in readers_of(reading))
        await cancel(tasks + sleepers)

        assert stages == {"not begun": 100, "connecting": 200, "in a statement": 256, "queued": 444}
        assert all(reading.pools.connections(name)["busy"] == 2 for name in REPLICAS), "what was sent runs to its end"
        await until(lambda: not any(reader.in_flight or reader.pool.lent for reader in readers_of(reading)))
        assert {name: reading.pools.connections(name)["open"] for name in NODES} == {"pg1": 0, "pg2": 2, "pg3": 2}
        assert await count_readers(cluster) - before == 4
        answers = await asyncio.gather(*(reading.product(product_id) for _ in range(100)))
        assert {answer.node for answer in answers} == REPLICAS
