"""Reads and tokens while servers crash, freeze, restart and take over from one another."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import HistoryLostError, NoReplicaError, PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.reads.executor import Answer
from atelier.token import CausalToken
from tests.conftest import ClusterFactory
from tests.fixtures.reading import ClusterNodes, Reading, make_settings, open_reading, open_shop
from tests.support import running_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


@pytest.fixture
def broken() -> Iterator[EmbeddedCluster]:
    """A cluster of the test's own, to be broken."""
    with running_cluster() as cluster:
        yield cluster


@dataclass
class Clients:
    """Clients that read without a pause, each sending the token of its last answer when `causal`."""

    reading: Reading
    product_id: int
    nodes: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    stopping: bool = False

    async def read(self, *, causal: bool) -> None:
        token: CausalToken | None = None
        while not self.stopping:
            began_s = time.perf_counter()
            answer = await self.reading.product(self.product_id, self.reading.ask(token))
            self.took_s.append(time.perf_counter() - began_s)
            assert answer.rows[0]["body"] is not None
            self.nodes[answer.node] += 1
            token = answer.token if causal else None
            await asyncio.sleep(0.002)

    async def answered(self, more: int, *, by: str | None = None) -> None:
        """Waits until so many more reads went well; those that a node answered, when it is named."""
        goal = self._count(by) + more
        async with asyncio.timeout(120):
            while self._count(by) < goal:
                await asyncio.sleep(0.01)

    def _count(self, by: str | None) -> int:
        return len(self.took_s) if by is None else self.nodes[by]


@asynccontextmanager
async def clients_reading(
    reading: Reading, product_id: int, *, clients: int = 20, causal: bool = False
) -> AsyncIterator[Clients]:
    """Reads from many clients until the end of the block. Any error of any read fails the test."""
    crowd = Clients(reading, product_id)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(crowd.read(causal=causal))
        yield crowd
        crowd.stopping = True


async def test_reads_go_on_while_a_replica_crashes_and_comes_back(broken: EmbeddedCluster) -> None:
    """Kill -9 of one postmaster: no read fails, `/cluster` would tell, and the node returns after its start."""
    async with open_reading(make_settings(broken), ClusterNodes(broken)) as reading, open_shop(broken) as shop:
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
        product_id, _ = await shop.make_sku()
        async with clients_reading(reading, product_id) as crowd:
            for name in ("pg2", "pg3"):
                await crowd.answered(100, by=name)
            await asyncio.to_thread(broken.kill, "pg2")
            await reading.until_roles(pg2="unknown")
            await crowd.answered(100)  # what it had answered before it died is counted by then
            told = crowd.nodes["pg2"]
            await crowd.answered(1000)
            assert crowd.nodes["pg2"] == told
            await asyncio.to_thread(broken.start_node, "pg2")
            await reading.until_roles(pg2="replica")
            await crowd.answered(100, by="pg2")


async def test_a_frozen_replica_costs_a_few_reads_one_timeout(broken: EmbeddedCluster) -> None:
    """SIGSTOP: those that are on it wait for one timeout, and the others never notice."""
    async with open_reading(make_settings(broken), ClusterNodes(broken)) as reading, open_shop(broken) as shop:
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
        product_id, _ = await shop.make_sku()
        async with clients_reading(reading, product_id) as crowd:
            await crowd.answered(100, by="pg2")
            warm = len(crowd.took_s)
            await asyncio.to_thread(broken.freeze, "pg2")
            await reading.until_roles(pg2="unknown")
            await reading.until(lambda: not reading.pools.in_flight("pg2"))
            await crowd.answered(2000)
            took_s = crowd.took_s[warm:]
            assert len([one for one in took_s if one > 0.5]) <= 25
            assert max(took_s) < 2.5
            await asyncio.to_thread(broken.thaw, "pg2")
            await reading.until_roles(pg2="replica")


async def check_failover(broken: EmbeddedCluster, *, before: int, after: int) -> None:
    """The primary is killed and a replica promoted while twenty clients read, half of them with tokens."""
    async with open_reading(make_settings(broken), ClusterNodes(broken)) as reading, open_shop(broken) as shop:
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
        product_id, _ = await shop.make_sku()
        async with (
            clients_reading(reading, product_id, clients=10) as plain,
            clients_reading(reading, product_id, clients=10, causal=True) as causal,
        ):
            for crowd in (plain, causal):
                await crowd.answered(before)
            await asyncio.to_thread(broken.kill, "pg1")
            await asyncio.to_thread(broken.promote, "pg2")
            await reading.until_roles(pg2="primary", pg3="replica")
            for crowd in (plain, causal):
                await crowd.answered(after)
        answer = await reading.product(product_id, reading.ask(None, "strong"))
        assert (answer.node, answer.token.timeline) == ("pg2", 2)


async def test_no_read_fails_while_the_primary_is_killed_and_a_replica_promoted(broken: EmbeddedCluster) -> None:
    """Without a restart: the new primary is found by what it says of itself."""
    await check_failover(broken, before=500, after=1000)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_read_of_a_hundred_thousand_fails_around_a_failover(broken: EmbeddedCluster) -> None:
    """Twenty clients; a third of the reads before, the others after."""
    await check_failover(broken, before=17_000, after=34_000)


async def test_tokens_survive_two_failovers_and_lost_ones_are_told(broken: EmbeddedCluster) -> None:
    """What was seen before a fork stays good on each later timeline; what lay beyond one is lost history, aloud."""
    async with open_reading(make_settings(broken), ClusterNodes(broken)) as reading:
        async with open_shop(broken) as shop:
            await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
            product_id, sku_id = await shop.make_sku(1)
            kept = await shop.set_stock(sku_id, 2)
            shown = (await reading.stock(sku_id, reading.ask(kept))).token
            # Nobody replicates any more, so what is committed now dies with the primary.
            for name in ("pg2", "pg3"):
                await asyncio.to_thread(broken.stop_node, name)
            lost = await shop.set_stock(sku_id, 3)
            strong = await reading.stock(sku_id, reading.ask(lost, "strong"))
        await asyncio.to_thread(broken.kill, "pg1")
        for name in ("pg2", "pg3"):
            await asyncio.to_thread(broken.start_node, name)
        await reading.until_roles(pg2="replica", pg3="replica")
        # With the primary gone, and the standbys started again since: nothing may be claimed that never was.
        restarted = (await reading.stock(sku_id)).token
        assert (await reading.stock(sku_id, reading.ask(shown))).rows[0]["body"] is not None
        await asyncio.to_thread(broken.promote, "pg2")
        await reading.until_roles(pg2="primary", pg3="replica")
        for token in (kept, shown, restarted):
            answer = await reading.stock(sku_id, reading.ask(token))
            assert b'"on_hand":2' in answer.rows[0]["body"]
        for token in (lost, strong.token):
            for consistency in ("causal", "eventual", "strong", "bounded; max-lag-ms=60000"):
                with pytest.raises(HistoryLostError):
                    await reading.stock(sku_id, reading.ask(token, consistency))
        await asyncio.to_thread(broken.start_node, "pg1")
        await reading.until_roles(pg1="replica", pg2="primary", pg3="replica")
        async with open_shop(broken) as shop:
            second = await shop.set_stock(sku_id, 4)
        await asyncio.to_thread(broken.promote, "pg3")
        await reading.until_roles(pg1="replica", pg2="replica", pg3="primary")
        for token in (kept, shown, restarted, second):
            answer = await reading.stock(sku_id, reading.ask(token))
            assert b'"on_hand":4' in answer.rows[0]["body"]
        with pytest.raises(HistoryLostError):
            await reading.stock(sku_id, reading.ask(lost))
        assert reading.monitor.snapshot.history is not None
        assert reading.monitor.snapshot.history.timeline == 3
        assert (await reading.product(product_id)).token.timeline == 3


async def test_a_process_that_starts_with_the_primary_gone_serves_reads(broken: EmbeddedCluster) -> None:
    """From the replicas' own word: eventual reads, and causal ones that a replica satisfies."""
    async with open_shop(broken) as shop:
        _, sku_id = await shop.make_sku(1)
        token = await shop.set_stock(sku_id, 7)
        async with open_reading(make_settings(broken), ClusterNodes(broken)) as before:
            await before.until_replayed(token)
    await asyncio.to_thread(broken.kill, "pg1")
    async with open_reading(make_settings(broken), ClusterNodes(broken), expected=("pg2", "pg3")) as reading:
        await reading.until_roles(pg2="replica", pg3="replica")
        answer = await reading.stock(sku_id)
        assert b'"on_hand":7' in answer.rows[0]["body"]
        for sent in (token, answer.token):
            again = await reading.stock(sku_id, reading.ask(sent))
            assert b'"on_hand":7' in again.rows[0]["body"]


BOUND_MS = 3000
# How long ago the primary was looked at when it died, at most: looks are 100 ms apart, and a busy machine takes longer.
LOOKS_APART_S = 0.8


async def read_until_refused(reading: Reading, sku_id: int, *, bound_ms: int, gone_since_s: float) -> Counter[str]:
    """Reads with a bound until no node may answer any more: who answered. The primary is gone, so all of them age."""
    served: Counter[str] = Counter()
    while True:
        asked_s = time.monotonic()
        try:
            answer = await reading.stock(sku_id, reading.ask(None, f"bounded; max-lag-ms={bound_ms}", wait_ms=0))
        except NoReplicaError:
            return served
        assert asked_s <= gone_since_s + bound_ms / 1000, "an answer came that may be older than its bound"
        assert answer.lag_ms is not None
        assert (asked_s - gone_since_s) * 1000 <= answer.lag_ms <= bound_ms
        served[answer.node] += 1


async def test_bounded_reads_end_when_the_bound_has_passed_since_the_primary_died(broken: EmbeddedCluster) -> None:
    """With nobody to tell what is missing, replicas grow old with time: 503 from then on, and not long before."""
    async with open_reading(make_settings(broken), ClusterNodes(broken)) as reading, open_shop(broken) as shop:
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
        _, sku_id = await shop.make_sku(1)
        await reading.until_replayed(await shop.token())
        alive_s = time.monotonic()
        await asyncio.to_thread(broken.kill, "pg1")
        gone_s = time.monotonic()
        served = await read_until_refused(reading, sku_id, bound_ms=BOUND_MS, gone_since_s=gone_s)
        refused_s = time.monotonic()
        assert alive_s + BOUND_MS / 1000 - LOOKS_APART_S < refused_s
        assert set(served) == {"pg2", "pg3"}
        # What asks for no bound goes on, and says how old it may be.
        eventual = await reading.stock(sku_id)
        assert eventual.node in {"pg2", "pg3"}
        assert eventual.lag_ms is not None
        assert eventual.lag_ms > (refused_s - gone_s) * 1000
        await asyncio.to_thread(broken.promote, "pg2")
        await reading.until_roles(pg2="primary", pg3="replica")
        again = await reading.stock(sku_id, reading.ask(None, f"bounded; max-lag-ms={BOUND_MS}"))
        assert again.rows[0]["body"] is not None


async def test_what_no_replica_has_is_unavailable_until_a_primary_says_that_it_is_lost(
    make_cluster: ClusterFactory,
) -> None:
    """The primary died with it: 503 as long as it may come back, 409 when another one has taken over."""
    pair = await asyncio.to_thread(make_cluster, replicas=1)
    async with open_reading(make_settings(pair), ClusterNodes(pair)) as reading:
        async with open_shop(pair) as shop:
            _, sku_id = await shop.make_sku(1)
            last = await shop.token()
            await reading.until_replayed(last)
        await asyncio.to_thread(pair.kill, "pg1")
        # As if it had written a megabyte more, and had not sent it.
        token = replace(last, lsn=Lsn(last.lsn.bytes + 1_000_000))
        await reading.until_roles(pg1="unknown", pg2="replica")
        for consistency in ("causal", "strong", "bounded; max-lag-ms=60000"):
            with pytest.raises(PrimaryUnavailableError):
                await reading.stock(sku_id, reading.ask(token, consistency))
        eventual = await reading.stock(sku_id, reading.ask(token, "eventual"))
        assert (eventual.node, eventual.token.lsn) == ("pg2", token.lsn)
        await asyncio.to_thread(pair.promote, "pg2")
        await reading.until_roles(pg2="primary")
        for consistency in ("causal", "strong", "bounded; max-lag-ms=60000", "eventual"):
            with pytest.raises(HistoryLostError):
                await reading.stock(sku_id, reading.ask(token, consistency))


# Longer than a few pages of the log, and flushed by nobody's commit: the log writer sends the whole pages of it ahead.
HALF_A_RECORD = "select pg_logical_emit_message(false, 'half', repeat('x', 50000))"


async def test_half_a_record_that_a_dead_primary_left_behind_makes_no_token_lost(broken: EmbeddedCluster) -> None:
    """It was never whole, so nobody has seen it; but a standby has received more than it can replay."""
    async with open_reading(make_settings(broken), ClusterNodes(broken)) as reading:
        async with open_shop(broken) as shop:
            _, sku_id = await shop.make_sku(1)
            await reading.until_replayed(await shop.token())
        await asyncio.to_thread(broken.primary.sql, HALF_A_RECORD)

        def all_have_half(*, streaming: bool) -> bool:
            replicas = reading.monitor.snapshot.replicas
            seen = [node.observation for node in replicas if node.observation]
            return len(seen) == 2 and all(
                one.streaming is streaming and one.received_lsn and one.received_lsn > one.replayed_lsn for one in seen
            )

        await reading.until(lambda: all_have_half(streaming=True))
        await asyncio.to_thread(broken.kill, "pg1")
        await reading.until(lambda: all_have_half(streaming=False))
        shown = [(await reading.stock(sku_id)).token for _ in range(50)]
        await asyncio.to_thread(broken.promote, "pg2")
        await reading.until_roles(pg2="primary", pg3="replica")
        assert {token.timeline for token in shown} == {1}
        for token in set(shown):
            answer = await reading.stock(sku_id, reading.ask(token))
            assert b'"on_hand":1' in answer.rows[0]["body"]


async def test_a_read_that_runs_into_a_promotion_waits_for_the_new_primary_to_be_seen(
    make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only node was a replica when it was last looked at, and has been promoted since: that is over in a moment."""
    pair = await asyncio.to_thread(make_cluster, replicas=1)
    async with open_reading(make_settings(pair), ClusterNodes(pair)) as reading:
        async with open_shop(pair) as shop:
            product_id, _ = await shop.make_sku()
            await reading.until_replayed(await shop.token())
        await asyncio.to_thread(pair.kill, "pg1")
        await reading.until_roles(pg1="unknown", pg2="replica")
        monkeypatch.setattr("atelier.topology.state.OBSERVATION_EXPIRES_S", 60)
        monkeypatch.setattr("atelier.topology.monitor.REPLICA_INTERVAL_S", 60)
        looked_s = observed_at_s(reading, "pg2")
        await reading.until(lambda: observed_at_s(reading, "pg2") > looked_s)
        await asyncio.to_thread(pair.node("pg2").sql, "select pg_promote()")
        answer = await reading.product(product_id)
        assert (answer.node, answer.token.timeline) == ("pg2", 2)


def observed_at_s(reading: Reading, name: str) -> float:
    """When a node was last looked at."""
    node = reading.monitor.snapshot.node(name)
    assert node is not None
    return node.observation.observed_at_s if node.observation else 0.0


async def test_neither_a_deposed_primary_nor_its_replica_is_read(broken: EmbeddedCluster) -> None:
    """It froze, another node took over, and it goes on: two take writes, and only what the new one has is shown."""
    async with open_reading(make_settings(broken)) as reading, open_shop(broken) as left_behind:
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
        _, sku_id = await left_behind.make_sku(1)
        kept = await left_behind.set_stock(sku_id, 2)
        await reading.until_replayed(kept)
        await asyncio.to_thread(broken.freeze, "pg1")
        # Not by the cluster's own command, which has pg3 follow at once: here it stays with the one it knows.
        await promote_alone(broken, "pg2")
        await reading.until_roles(pg2="primary", pg3="replica")
        await asyncio.to_thread(broken.thaw, "pg1")
        await reading.until_roles(pg1="deposed", pg2="primary", pg3="replica")
        lost = await left_behind.set_stock(sku_id, 666)
        await reading.until(lambda: has_replayed(reading, "pg3", lost))
        await reading.until_roles(pg1="deposed", pg2="primary", pg3="unknown")
        assert [reading.monitor.snapshot.node(name).reason for name in ("pg1", "pg3")] == [
            "out of recovery on an older timeline",
            "has replayed beyond the fork: its history is lost",
        ]
        async with open_shop(broken, node="pg2") as shop:
            for number in range(3, 40):
                token = await shop.set_stock(sku_id, number)
                answers = [await reading.stock(sku_id, reading.ask(*ask)) for ask in asks(token, kept)]
                assert {answer.node for answer in answers} == {"pg2"}
                assert {shown(answer) for answer in answers} == {number}
                assert {answer.token.timeline for answer in answers} == {2}
        for _, consistency in asks(lost, lost):
            with pytest.raises(HistoryLostError):
                await reading.stock(sku_id, reading.ask(lost, consistency))


def asks(token: CausalToken, kept: CausalToken) -> list[tuple[CausalToken | None, str]]:
    """Every way to ask, with nothing seen, with a token of before the failover, and with one of after it."""
    words = ("eventual", "causal", "strong", "bounded; max-lag-ms=60000")
    return list(itertools.product((None, kept, token), words))


def shown(answer: Answer) -> int:
    """The quantity in an answer."""
    return int(msgspec.json.decode(answer.rows[0]["body"])["on_hand"])


def has_replayed(reading: Reading, name: str, token: CausalToken) -> bool:
    """Whether a node is known to have replayed a position, whatever its role."""
    node = reading.monitor.snapshot.node(name)
    return bool(node and node.observation and node.observation.replayed_lsn >= token.lsn)


async def promote_alone(cluster: EmbeddedCluster, name: str) -> None:
    """Makes a replica a primary, and tells nobody."""
    admin = await asyncpg.connect(cluster.superuser_dsn(name))
    try:
        assert await admin.fetchval("select pg_promote()")
    finally:
        await admin.close()


async def test_a_replica_of_a_deposed_primary_shows_nothing_of_it_before_it_is_seen_to_have_gone_on(
    broken: EmbeddedCluster,
) -> None:
    """At the fork it is a replica still; what it replays beyond it is in no answer, though nobody has looked yet."""
    async with open_reading(make_settings(broken)) as reading, open_shop(broken) as left_behind:
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica")
        _, sku_id = await left_behind.make_sku(1)
        await reading.until_replayed(await left_behind.set_stock(sku_id, 2))
        await asyncio.to_thread(broken.freeze, "pg1")
        await promote_alone(broken, "pg2")
        await reading.until_roles(pg2="primary", pg3="replica")
        await asyncio.to_thread(broken.thaw, "pg1")
        await reading.until_roles(pg1="deposed", pg2="primary", pg3="replica")
        answers: list[Answer] = []
        is_over = asyncio.Event()

        async def read() -> None:
            while not is_over.is_set():
                answers.append(await reading.stock(sku_id))

        readers = [asyncio.create_task(read()) for _ in range(5)]
        await reading.until(lambda: any(answer.node == "pg3" for answer in answers))
        await left_behind.set_stock(sku_id, 666)
        await reading.until_roles(pg1="deposed", pg2="primary", pg3="unknown")
        is_over.set()
        await asyncio.gather(*readers)
        assert {shown(answer) for answer in answers} == {2}
