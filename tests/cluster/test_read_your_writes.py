"""Reads with tokens over real replicas that lag, and what would happen without the rules."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import HistoryLostError, InvalidTokenError, PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.reads import router
from atelier.reads.executor import Answer
from atelier.token import CausalToken, Standing, TokenKeys
from atelier.topology.monitor import TopologyMonitor, Whom
from atelier.topology.probe import Probe
from atelier.topology.state import NodeState, Observation
from tests.conftest import ClusterFactory
from tests.fixtures.reading import Reading, Shop, flicker, make_settings, open_reading, open_shop, with_ports
from tests.fixtures.tcp_proxy import open_proxy
from tests.support import running_cluster, wait_until_commits_wait

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

# The event loop counts whole milliseconds, from the moment at which it woke up last: a timer may be a bit early.
TICK_MS = 2
REPLICAS = {"pg2", "pg3"}
LIMIT_MS = 3000


@pytest.fixture(scope="module")
def lagging() -> Iterator[EmbeddedCluster]:
    """A cluster whose replicas' replay the tests of this module pause."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
async def reading(lagging: EmbeddedCluster) -> AsyncIterator[Reading]:
    """The reading side over that cluster."""
    async with open_reading(make_settings(lagging)) as opened:
        yield opened


@pytest.fixture
async def shop(lagging: EmbeddedCluster) -> AsyncIterator[Shop]:
    """Writes to its primary."""
    async with open_shop(lagging) as opened:
        yield opened


class Pauses:
    """Pauses the replay of replicas, and resumes it when the test ends."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._paused: set[str] = set()

    async def pause(self, *names: str) -> None:
        for name in names:
            await asyncio.to_thread(self._cluster.pause_replay, name)
            self._paused.add(name)

    async def resume(self) -> None:
        for name in sorted(self._paused):
            await asyncio.to_thread(self._cluster.resume_replay, name)
        self._paused.clear()


@pytest.fixture
async def pauses(lagging: EmbeddedCluster) -> AsyncIterator[Pauses]:
    """Whatever is paused goes on when the test ends."""
    made = Pauses(lagging)
    yield made
    await made.resume()


def on_hand(answer: Answer) -> int:
    """The quantity in an answer."""
    return int(msgspec.json.decode(answer.rows[0]["body"])["on_hand"])


async def write_and_read(reading: Reading, shop: Shop, times: int) -> tuple[int, list[str]]:
    """Changes a quantity and reads it with the token, again and again: how many reads were stale, and who answered."""
    _, sku_id = await shop.make_sku()
    stale, served = 0, []
    for number in range(1, times + 1):
        token = await shop.set_stock(sku_id, number)
        answer = await reading.stock(sku_id, reading.ask(token))
        stale += answer.rows[0]["body"] is None or on_hand(answer) != number
        served.append(answer.node)
    return stale, served


async def test_a_write_is_read_a_thousand_times_while_replicas_lag(
    lagging: EmbeddedCluster, reading: Reading, shop: Shop
) -> None:
    """Every read that sends the token of the write shows it, and replicas answer their share."""
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    stale, served = await write_and_read(reading, shop, 1000)
    done.set()
    await lag
    assert stale == 0
    assert {"pg2", "pg3"} <= set(served)


async def test_without_the_token_check_the_same_test_fails(
    lagging: EmbeddedCluster, reading: Reading, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that is tested is the one that carries the promise."""
    monkeypatch.setattr(router, "covers", lambda *_: True)
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    stale, _ = await write_and_read(reading, shop, 300)
    done.set()
    await lag
    assert stale > 0


async def test_by_received_positions_the_same_test_fails(
    lagging: EmbeddedCluster, reading: Reading, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replica has received it does not show."""

    def received(node: NodeState, _: CausalToken) -> Lsn | None:
        seen = node.observation
        return seen and (seen.received_lsn or seen.replayed_lsn)

    monkeypatch.setattr(router, "_shown_lsn", received)
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    stale, _ = await write_and_read(reading, shop, 300)
    done.set()
    await lag
    assert stale > 0


async def test_read_waits_when_replica_is_behind_token(reading: Reading, shop: Shop, pauses: Pauses) -> None:
    """It is answered by a replica as soon as one has replayed the token, within its budget."""
    _, sku_id = await shop.make_sku()
    await pauses.pause("pg2", "pg3")
    token = await shop.set_stock(sku_id, 5)
    read = asyncio.create_task(reading.stock(sku_id, reading.ask(token, wait_ms=2000)))
    await reading.until(lambda: reading.monitor._waiters)
    await pauses.resume()
    answer = await read
    assert (on_hand(answer), answer.node in {"pg2", "pg3"}) == (5, True)
    assert answer.timings.wait_ms > 0


async def test_a_token_read_goes_to_the_primary_when_its_budget_is_used_up(
    reading: Reading, shop: Shop, pauses: Pauses
) -> None:
    """Both replicas are paused; the wait is as long as was asked, not longer than the request."""
    _, sku_id = await shop.make_sku()
    await pauses.pause("pg2", "pg3")
    token = await shop.set_stock(sku_id, 6)
    answer = await reading.stock(sku_id, reading.ask(token, wait_ms=150))
    assert (on_hand(answer), answer.node, answer.reason) == (6, "pg1", "replicas-behind")
    assert 150 - TICK_MS <= answer.timings.wait_ms < 1000


def all_behind(reading: Reading, lag_ms: float) -> bool:
    """Whether every replica is known to be further behind than that."""
    return all((node.lag_ms or 0) > lag_ms for node in reading.monitor.snapshot.replicas)


async def read_until_all_behind(reading: Reading, sku_id: int, lag_ms: float) -> set[str]:
    """Reads with no wish at all until both replicas are so far behind: who answered."""
    served = set()
    while not all_behind(reading, lag_ms):
        served.add((await reading.stock(sku_id)).node)
        await asyncio.sleep(0.005)
    return served


async def read_until_both_serve(reading: Reading, sku_id: int, token: CausalToken) -> None:
    """Reads in every way that a replica may answer until both replicas have answered each of them."""
    for sent, consistency in ((None, "eventual"), (None, "bounded; max-lag-ms=200"), (token, "causal")):
        served: set[str] = set()
        while not served >= REPLICAS:
            answer = await reading.stock(sku_id, reading.ask(sent, consistency))
            assert consistency == "eventual" or on_hand(answer) == 1
            served.add(answer.node)


async def test_paused_replicas_serve_eventual_reads_until_the_limit(
    lagging: EmbeddedCluster, shop: Shop, pauses: Pauses
) -> None:
    """Then the primary does; a bound of 200 ms and a token go there before; resumed, all return within a second."""
    _, sku_id = await shop.make_sku()
    async with open_reading(make_settings(lagging, {"ATELIER_MAX_LAG_MS": str(LIMIT_MS)})) as reading:
        await reading.until_replayed(await shop.token())
        await pauses.pause("pg2", "pg3")
        token = await shop.set_stock(sku_id, 1)
        assert await read_until_all_behind(reading, sku_id, 200) == REPLICAS
        assert not all_behind(reading, LIMIT_MS)
        bounded = await reading.stock(sku_id, reading.ask(None, "bounded; max-lag-ms=200", wait_ms=0))
        causal = await reading.stock(sku_id, reading.ask(token, wait_ms=50))
        assert [(answer.node, answer.reason, on_hand(answer)) for answer in (bounded, causal)] == [
            ("pg1", "replicas-behind", 1)
        ] * 2
        assert causal.timings.wait_ms >= 50 - TICK_MS
        # Whoever asks for nothing sees the old quantity from a replica that cannot show the new one.
        assert not all_behind(reading, LIMIT_MS)
        eventual = await reading.stock(sku_id)
        assert (eventual.node in REPLICAS, on_hand(eventual)) == (True, 0)
        await reading.until(lambda: all_behind(reading, LIMIT_MS))
        late = await reading.stock(sku_id)
        assert (late.node, late.reason, on_hand(late)) == ("pg1", "replicas-behind", 1)
        await pauses.resume()
        async with asyncio.timeout(1):
            await read_until_both_serve(reading, sku_id, token)


async def test_a_bounded_answer_is_within_its_bound(lagging: EmbeddedCluster, reading: Reading, shop: Shop) -> None:
    """Whatever the replicas do meanwhile, an answer that is older than asked for does not go out."""
    _, sku_id = await shop.make_sku()
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    for bound_ms in [0, 1, 5, 20, 100] * 30:
        answer = await reading.stock(sku_id, reading.ask(None, f"bounded; max-lag-ms={bound_ms}", wait_ms=5))
        assert answer.lag_ms is not None
        assert answer.lag_ms <= bound_ms
    done.set()
    await lag


async def test_tokens_of_reads_never_let_time_go_backwards(
    lagging: EmbeddedCluster, reading: Reading, shop: Shop
) -> None:
    """Each answer's token is sent with the next read, on whichever node that is answered."""
    _, sku_id = await shop.make_sku()
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))

    async def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            await shop.set_stock(sku_id, number)

    async def read() -> set[str]:
        token, newest, nodes = None, 0, set()
        for _ in range(200):
            answer = await reading.stock(sku_id, reading.ask(token, wait_ms=20))
            assert on_hand(answer) >= newest
            token, newest = answer.token, on_hand(answer)
            nodes.add(answer.node)
        return nodes

    writing = asyncio.create_task(write())
    nodes = await asyncio.gather(*(read() for _ in range(8)))
    done.set()
    await asyncio.gather(writing, lag)
    assert set().union(*nodes) >= {"pg2", "pg3"}


async def test_an_eventual_read_merges_its_token_and_does_not_wait_for_it(
    reading: Reading, shop: Shop, pauses: Pauses
) -> None:
    """The answer may be older than the token; the token that comes back is not."""
    _, sku_id = await shop.make_sku()
    await pauses.pause("pg2", "pg3")
    token = await shop.set_stock(sku_id, 9)
    answer = await reading.stock(sku_id, reading.ask(token, "eventual"))
    assert answer.node in {"pg2", "pg3"}
    assert answer.token.lsn >= token.lsn
    assert answer.token.minted_by_replica


async def test_strong_reads_come_from_the_primary_and_see_every_commit(reading: Reading, shop: Shop) -> None:
    """With no token at all."""
    _, sku_id = await shop.make_sku()
    for number in range(1, 20):
        await shop.set_stock(sku_id, number)
        answer = await reading.stock(sku_id, reading.ask(None, "strong"))
        assert (answer.node, answer.lag_ms, on_hand(answer)) == ("pg1", 0, number)


async def test_a_position_nobody_has_written_is_lost_history_at_once(reading: Reading, shop: Shop) -> None:
    """Far in the future: one shared look at the primary, no waiting."""
    token = replace(await shop.token(), lsn=Lsn(2**62))
    ask = reading.ask(token, wait_ms=2000)
    with pytest.raises(HistoryLostError):
        await reading.stock(1, ask)
    assert ask.deadline.remaining_s() > 4.5


async def test_a_token_of_another_system_is_lost_history_at_once(reading: Reading, shop: Shop) -> None:
    """No look at anybody is needed."""
    token = await shop.token()
    with pytest.raises(HistoryLostError):
        await reading.stock(1, reading.ask(replace(token, system_id=token.system_id ^ 1)))


@pytest.fixture
def pair(make_cluster: ClusterFactory) -> EmbeddedCluster:
    """A primary and one replica, for this test alone."""
    return make_cluster(replicas=1)


async def test_a_commit_that_waits_for_a_standby_is_not_hidden_by_the_primary(pair: EmbeddedCluster) -> None:
    """Under synchronous replication a replica shows a commit first; with its token the primary waits to show it too."""
    admin = await asyncpg.connect(pair.superuser_dsn("pg1"))
    async with open_reading(make_settings(pair)) as reading, open_shop(pair) as shop:
        _, sku_id = await shop.make_sku()
        # A standby of this name does not exist, so the commit is flushed and replayed, and does not end by itself.
        await wait_for_standby(admin, "nobody")
        await wait_until_commits_wait(pair.superuser_dsn("pg1"))
        commit = asyncio.create_task(shop.set_stock(sku_id, 3))
        try:
            async with asyncio.timeout(10):
                while on_hand(answer := await reading.stock(sku_id)) != 3:
                    await asyncio.sleep(0.01)
            assert answer.node == "pg2"
            # Without waiting the primary would show the old quantity: that is what the rule is for.
            assert on_hand(await reading.stock(sku_id, reading.ask(None, "strong"))) == 0
            impatient = replace(reading.ask(answer.token, "strong"), deadline=Deadline.after(0.3, time.monotonic))
            with pytest.raises(PrimaryUnavailableError, match="does not show yet"):
                await reading.stock(sku_id, impatient)
            read = asyncio.create_task(reading.stock(sku_id, reading.ask(answer.token, "strong")))
            await reading.until(lambda: reading.monitor._waiters)
        finally:
            await wait_for_standby(admin, "")
            await commit
        assert on_hand(await read) == 3
    await admin.close()


async def wait_for_standby(admin: "asyncpg.Connection[asyncpg.Record]", name: str) -> None:
    """Has every commit wait for a standby of this name; for none by the empty one."""
    await admin.execute(f"alter system set synchronous_standby_names = '{name}'")
    await admin.execute("select pg_reload_conf()")
    async with asyncio.timeout(10):
        while await admin.fetchval("show synchronous_standby_names") != name:
            await asyncio.sleep(0.01)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often the monitor was asked to look at once, as `asked`, and the looks at any node, as `begun`."""
    counts: Counter[str] = Counter()
    hurry, observe = TopologyMonitor._hurry, Probe.observe

    def count_hurry(monitor: TopologyMonitor, whom: Whom) -> None:
        # With "replicas" it follows each look at the primary by itself.
        counts["asked"] += whom == "all"
        hurry(monitor, whom)

    async def count_look(probe: Probe, asked_at_s: float) -> Observation:
        counts["begun"] += 1
        return await observe(probe, asked_at_s)

    monkeypatch.setattr(TopologyMonitor, "_hurry", count_hurry)
    monkeypatch.setattr(Probe, "observe", count_look)
    return counts


async def test_a_forged_token_costs_no_probe(lagging: EmbeddedCluster, shop: Shop, looks: Counter[str]) -> None:
    """Sealed with another key, or changed on its way, it is refused before anybody is asked anything."""
    far = replace(await shop.token(), lsn=Lsn(2**62))
    genuine = TokenKeys(make_settings(lagging).token_keys).seal(far)
    forged = [TokenKeys((number.to_bytes(32, "big"),)).seal(far) for number in range(100)]
    forged += [genuine[:place] + ("A" if genuine[place] != "A" else "B") + genuine[place + 1 :] for place in range(51)]
    async with open_reading(make_settings(lagging)) as reading:

        async def read(text: str) -> None:
            ask, _ = reading.asker.read({"Atelier-Token": text}, {})
            await reading.stock(1, ask)

        looks.clear()
        for text in forged:
            with pytest.raises(InvalidTokenError):
                await read(text)
        assert looks["asked"] == 0
        with pytest.raises(HistoryLostError):
            await read(genuine)
        assert looks["asked"] == 1


async def test_a_hundred_tokens_far_ahead_share_their_looks(reading: Reading, shop: Shop, looks: Counter[str]) -> None:
    """Each is genuine, and has to be looked up: by all of them together."""
    token = replace(await shop.token(), lsn=Lsn(2**62))
    looks.clear()
    results = await asyncio.gather(*(reading.stock(1, reading.ask(token)) for _ in range(100)), return_exceptions=True)
    assert all(isinstance(result, HistoryLostError) for result in results)
    assert looks["asked"] == 100
    assert 0 < looks["begun"] <= 30


async def test_an_answer_of_another_server_start_satisfies_no_token(
    lagging: EmbeddedCluster, shop: Shop, pauses: Pauses
) -> None:
    """Behind the address of an observed replica another server answers, further back: the read goes elsewhere.

    So does a replica that was killed and started again, until it is looked at: it answers from further back than it
    had been. Here the monitor keeps its connection to the one that it has observed, so that the moment lasts.
    """
    _, sku_id = await shop.make_sku()
    async with AsyncExitStack() as stack:
        proxies = {
            name: await stack.enter_async_context(open_proxy("127.0.0.1", lagging.node(name).port))
            for name in ("pg2", "pg3")
        }
        settings = with_ports(make_settings(lagging), {name: proxy.port for name, proxy in proxies.items()})
        reading = await stack.enter_async_context(open_reading(settings))
        await reading.until_replayed(await shop.token())
        await pauses.pause("pg3")
        token = await shop.set_stock(sku_id, 8)
        await reading.until(lambda: router.covers(reading.monitor.snapshot, node_of(reading, "pg2"), token))
        assert not router.covers(reading.monitor.snapshot, node_of(reading, "pg3"), token)
        # New connections are led to the other server; the monitor's stays where it is.
        proxies["pg2"]._upstream = ("127.0.0.1", lagging.node("pg3").port)
        answer = await reading.stock(sku_id, reading.ask(token, wait_ms=0))
        assert (on_hand(answer), answer.node) == (8, "pg1")
        assert proxies["pg2"].accepted > 1, "no read was sent there"


def node_of(reading: Reading, name: str) -> NodeState:
    """A node as it is known now."""
    node = reading.monitor.snapshot.node(name)
    assert node is not None
    return node


async def test_a_token_of_a_promotion_that_nobody_here_knows_is_not_lost(pair: EmbeddedCluster) -> None:
    """503 while the nodes are silent, and answered as soon as one of them tells of the new timeline."""
    async with AsyncExitStack() as stack:
        proxies = {
            name: await stack.enter_async_context(open_proxy("127.0.0.1", pair.node(name).port))
            for name in ("pg1", "pg2")
        }
        settings = with_ports(make_settings(pair), {name: proxy.port for name, proxy in proxies.items()})
        reading = await stack.enter_async_context(open_reading(settings))
        async with open_shop(pair) as shop:
            _, sku_id = await shop.make_sku(1)
            await reading.until_replayed(await shop.token())
        for proxy in proxies.values():
            proxy.hang()
        await asyncio.to_thread(pair.kill, "pg1")
        await asyncio.to_thread(pair.promote, "pg2")
        async with open_shop(pair, node="pg2") as shop:
            token = await shop.set_stock(sku_id, 2)
        assert token.timeline == 2
        assert reading.monitor.snapshot.judge(token) is Standing.UNKNOWN
        ask = reading.ask(token)
        with pytest.raises(PrimaryUnavailableError):
            await reading.stock(sku_id, ask)
        assert ask.deadline.remaining_s() > 1
        read = asyncio.create_task(reading.stock(sku_id, reading.ask(token)))
        await reading.until(lambda: reading.monitor._waiters)
        proxies["pg2"].heal()
        answer = await read
        assert (on_hand(answer), answer.node) == (2, "pg2")
