"""Reads while nodes refuse, hang, dawdle, cut connections and cancel statements: through proxies that do so."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import NoReplicaError
from atelier.reads.executor import Answer
from atelier.reads.position import POSITION
from atelier.reads.queries import Statement
from atelier.topology import monitor as monitor_module
from atelier.topology.sources import NodesFile
from tests.fixtures.proxied import NODES, REPLICAS, make_visible_product, open_behind_proxies, run
from tests.fixtures.reading import Reading, Shop, make_settings, open_reading, open_shop
from tests.fixtures.tcp_proxy import open_proxy
from tests.support import role_dsn

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


@pytest.fixture
async def shop(cluster: EmbeddedCluster) -> AsyncIterator[Shop]:
    """Writes to the shared cluster's primary."""
    async with open_shop(cluster) as opened:
        yield opened


async def read_many(
    reading: Reading, product_id: int, *, clients: int = 20, each: int = 20
) -> tuple[Counter[str], list[float]]:
    """Reads from many clients at once: who answered how often, and how long each took. Any error fails the test."""
    nodes: Counter[str] = Counter()
    took_s: list[float] = []

    async def client() -> None:
        for _ in range(each):
            began_s = time.perf_counter()
            answer = await reading.product(product_id)
            took_s.append(time.perf_counter() - began_s)
            assert answer.rows[0]["body"] is not None
            nodes[answer.node] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return nodes, took_s


async def test_reads_are_spread_over_both_replicas(cluster: EmbeddedCluster, shop: Shop) -> None:
    """None comes from the primary. Where neither has more to do they take turns; of many at once each gets half."""
    async with open_reading(make_settings(cluster)) as reading:
        await reading.until_roles(pg2="replica", pg3="replica")
        product_id = await make_visible_product(reading, shop)
        alone, _ = await read_many(reading, product_id, clients=1)
        assert set(alone) == REPLICAS
        assert min(alone.values()) >= 8  # ten; a read that was tried again has taken a turn more
        crowd, _ = await read_many(reading, product_id, clients=40, each=1)
        assert set(crowd) == REPLICAS
        assert min(crowd.values()) >= 15  # all forty are on their way before the first is back; then the same holds
        # What follows goes to whoever is faster: no share of it is promised.
        assert set((await read_many(reading, product_id))[0]) == REPLICAS


async def test_a_refusing_replica_fails_no_read_and_comes_back(cluster: EmbeddedCluster, shop: Shop) -> None:
    """Its sibling answers meanwhile."""
    async with open_behind_proxies(cluster) as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        await read_many(reading, product_id)
        await proxies["pg2"].refuse()
        nodes, _ = await read_many(reading, product_id)
        assert nodes["pg3"] >= 380
        assert nodes["pg1"] == 0
        await proxies["pg2"].listen()
        await reading.until_roles(pg2="replica")
        async with asyncio.timeout(10):
            while not (await read_many(reading, product_id))[0]["pg2"]:
                pass


async def test_a_hanging_replica_costs_a_few_reads_one_timeout(cluster: EmbeddedCluster, shop: Shop) -> None:
    """Twenty clients: those that are on it when it hangs wait for one timeout, all others never notice."""
    async with open_behind_proxies(cluster) as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        await read_many(reading, product_id)
        proxies["pg2"].hang()
        nodes, took_s = await read_many(reading, product_id, each=100)
        slow = [one for one in took_s if one > 0.4]
        assert len(slow) <= 25
        assert max(took_s) < 2.5
        assert nodes["pg1"] == 0
        proxies["pg2"].heal()
        await reading.until_roles(pg2="replica")


async def test_a_silent_probe_takes_a_node_out_before_any_read_does(cluster: EmbeddedCluster, shop: Shop) -> None:
    """The monitor's probe is under way for long: no read is spent on finding out."""
    async with open_behind_proxies(cluster) as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        proxies["pg2"].hang()
        async with asyncio.timeout(5):
            while not reading.pools.loads(reading.monitor.snapshot, reading.monitor)["pg2"].ejected:
                await asyncio.sleep(0.005)
        assert reading.monitor.unanswered_ms("pg2") > 150
        node = reading.monitor.snapshot.node("pg2")
        assert node is not None
        assert node.is_fresh(time.monotonic())
        nodes, took_s = await read_many(reading, product_id, clients=5)
        assert set(nodes) == {"pg3"}
        assert max(took_s) < 0.5


async def test_connections_cut_in_the_middle_of_an_answer_fail_no_read(cluster: EmbeddedCluster, shop: Shop) -> None:
    """After ever other numbers of bytes, on either replica; reads go on until one is cut."""
    async with open_behind_proxies(cluster, ATELIER_EJECTION_MS="10") as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        for cut_after in (1, 7, 100, 333):
            cuts = sum(proxies[name].cuts for name in REPLICAS)
            for name in sorted(REPLICAS):
                proxies[name].cut_after(cut_after)
            async with asyncio.timeout(10):
                while sum(proxies[name].cuts for name in REPLICAS) == cuts:
                    await read_many(reading, product_id, clients=5, each=6)


async def test_a_slow_replica_is_left_alone(cluster: EmbeddedCluster, shop: Shop) -> None:
    """Its answers are right, and its siblings' are fifty times faster."""
    async with open_behind_proxies(cluster, ATELIER_STALLED_MS="5000") as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        await read_many(reading, product_id)
        proxies["pg2"].delay(0.15)
        await read_many(reading, product_id, clients=4, each=60)
        assert reading.executor.ejected_until_s("pg2") is not None
        nodes, took_s = await read_many(reading, product_id, clients=4, each=10)
        assert nodes["pg2"] <= 1
        assert sorted(took_s)[len(took_s) // 2] < 0.1


async def test_the_last_node_is_asked_though_it_is_ejected(cluster: EmbeddedCluster, shop: Shop) -> None:
    """All fail, and are ejected; one comes back, and answers at once."""
    async with open_behind_proxies(cluster, ATELIER_EJECTION_MS="60000", ATELIER_LONGEST_EJECTION_MS="60000") as (
        reading,
        proxies,
    ):
        product_id = await make_visible_product(reading, shop)
        await reading.product(product_id)
        for proxy in proxies.values():
            await proxy.refuse()
        for _ in range(5):
            with pytest.raises(NoReplicaError):
                await reading.product(product_id)
        await proxies["pg3"].listen()
        await reading.until_roles(pg3="replica")
        assert reading.executor.ejected_until_s("pg3") is not None
        assert (await reading.product(product_id)).node == "pg3"


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_killed_or_cancelled_statement_is_tried_elsewhere(
    cluster: EmbeddedCluster, shop: Shop, function: str
) -> None:
    """The read takes its time on one replica, and is cut short there."""
    async with open_reading(make_settings(cluster)) as reading:
        await reading.until_roles(pg2="replica", pg3="replica")
        read = asyncio.create_task(run(reading, SLEEPY, 1))
        admins = [await asyncpg.connect(cluster.superuser_dsn(name)) for name in sorted(REPLICAS)]
        victim = "select {}(pid) from pg_stat_activity where usename = 'reader' and query like '%pg_sleep(0.6)%'"
        async with asyncio.timeout(5):
            while not any([await admin.fetchval(victim.format(function)) for admin in admins]):
                await asyncio.sleep(0.01)
        answer = await read
        assert answer.rows[0]["id"] == 1
        for admin in admins:
            await admin.close()


SLEEPY = Statement(
    "sleepy",
    f"select asked.id, nap.*, position.* from {POSITION} cross join unnest($1::bigint[]) as asked (id) "
    "cross join (select count(*) from product) as counted cross join lateral (select pg_sleep(0.6)) as nap",
)
SLEEPIER = Statement("sleepier", SLEEPY.sql.replace("0.6", "2.5"))


async def test_a_conflict_with_replay_is_tried_elsewhere(cluster: EmbeddedCluster, shop: Shop) -> None:
    """A lock that replay has to take cancels the statement in its way (40001); the client gets its answer."""
    changes = {"ATELIER_STATEMENT_MS": "4000", "ATELIER_STALLED_MS": "5000", "ATELIER_REQUEST_MS": "15000"}
    async with open_reading(make_settings(cluster, changes)) as reading:
        await reading.until_roles(pg2="replica", pg3="replica")
        reads = [asyncio.create_task(run(reading, SLEEPIER, key)) for key in (1, 2)]
        await reading.until(lambda: all(reading.executor.in_flight(name) for name in REPLICAS))
        admin = await asyncpg.connect(cluster.superuser_dsn("pg1"))
        async with asyncio.timeout(5):
            while await count_sleepers(cluster) < 2:
                await asyncio.sleep(0.01)
        async with admin.transaction():
            await admin.execute("lock table atelier.product in access exclusive mode")
        answers = await asyncio.gather(*reads)
        await admin.close()
        assert [answer.rows[0]["id"] for answer in answers] == [1, 2]
        assert await count_conflicts(cluster) >= 1


async def count_sleepers(cluster: EmbeddedCluster) -> int:
    """Statements that sleep on a replica now."""
    return await sum_over_replicas(
        cluster, "select count(*) from pg_stat_activity where query like '%pg_sleep(2.5)%nap'"
    )


async def count_conflicts(cluster: EmbeddedCluster) -> int:
    """Statements that replay has cancelled."""
    return await sum_over_replicas(cluster, "select coalesce(sum(confl_lock), 0) from pg_stat_database_conflicts")


async def sum_over_replicas(cluster: EmbeddedCluster, query: str) -> int:
    """One number, asked of each replica."""
    total = 0
    for name in sorted(REPLICAS):
        admin = await asyncpg.connect(cluster.superuser_dsn(name))
        total += int(await admin.fetchval(query))
        await admin.close()
    return total


async def test_reads_on_the_primary_are_capped_and_the_rest_is_refused_at_once(
    cluster: EmbeddedCluster, shop: Shop
) -> None:
    """With all replicas gone: two connections work, four reads wait, all others hear so within moments."""
    changes = {
        "ATELIER_PRIMARY_READ_CONNECTIONS": "2",
        "ATELIER_PRIMARY_READ_WAITING": "4",
        "ATELIER_MERGED_READS": "1",
    }
    async with open_behind_proxies(cluster, **changes) as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        for name in REPLICAS:
            await proxies[name].refuse()
        await reading.until_roles(pg1="primary", pg2="unknown", pg3="unknown")
        assert (await reading.product(product_id)).node == "pg1"
        proxies["pg1"].delay(0.1)
        began_s = time.perf_counter()
        results = await asyncio.gather(*(reading.product(product_id) for _ in range(60)), return_exceptions=True)
        refused = [one for one in results if isinstance(one, NoReplicaError)]
        answered = [one for one in results if isinstance(one, Answer)]
        assert len(refused) + len(answered) == 60
        assert 5 <= len(answered) <= 12
        assert time.perf_counter() - began_s < 2
        assert reading.pools.connections("pg1")["open"] <= 2
        proxies["pg1"].heal()
        assert (await reading.product(product_id)).node == "pg1"


async def test_ejected_replicas_answer_when_the_primary_takes_no_more(cluster: EmbeddedCluster, shop: Shop) -> None:
    """A process that got no processor for a moment takes all replicas for silent: nobody is refused for that."""
    changes = {
        "ATELIER_PRIMARY_READ_CONNECTIONS": "1",
        "ATELIER_PRIMARY_READ_WAITING": "1",
        "ATELIER_MERGED_READS": "1",
    }
    async with open_reading(make_settings(cluster, changes)) as reading:
        product_id = await make_visible_product(reading, shop)
        for name in REPLICAS:
            observed = reading.monitor.snapshot.node(name).observation
            reading.pools.health.begin(name, observed.started_at)
            assert reading.pools.health.fail(name)
        answers = await asyncio.gather(*(reading.product(product_id) for _ in range(30)))
        assert {answer.node for answer in answers} > {"pg1"}
        assert {answer.reason for answer in answers if answer.node in REPLICAS} <= {"ejected-replica", "replica"}


async def test_over_the_cap_the_least_stale_replica_answers_where_the_settings_say_so(
    cluster: EmbeddedCluster, shop: Shop
) -> None:
    """Marked: by the reason, and by the lag that the answer names."""
    changes = {
        "ATELIER_PRIMARY_READ_CONNECTIONS": "1",
        "ATELIER_PRIMARY_READ_WAITING": "1",
        "ATELIER_MERGED_READS": "1",
        "ATELIER_MAX_LAG_MS": "0",
        "ATELIER_WHEN_PRIMARY_FULL": "stalest",
    }
    async with open_reading(make_settings(cluster, changes)) as reading:
        product_id = await make_visible_product(reading, shop)
        answers = await asyncio.gather(*(reading.product(product_id) for _ in range(30)))
        stale = [answer for answer in answers if answer.node in REPLICAS]
        assert stale
        assert all(answer.reason == "stale-replica" and answer.lag_ms for answer in stale)
        assert any(answer.node == "pg1" for answer in answers)


async def test_a_stale_replica_that_fails_leaves_it_to_the_other_and_blames_nobody_else(
    cluster: EmbeddedCluster, shop: Shop
) -> None:
    """The primary, which had no room, is neither ejected for it nor taken for gone."""
    changes = {
        "ATELIER_PRIMARY_READ_CONNECTIONS": "1",
        "ATELIER_PRIMARY_READ_WAITING": "1",
        "ATELIER_MERGED_READS": "1",
        "ATELIER_MAX_LAG_MS": "0",
        "ATELIER_WHEN_PRIMARY_FULL": "stalest",
    }
    async with open_behind_proxies(cluster, **changes) as (reading, proxies):
        product_id = await make_visible_product(reading, shop)
        assert (await reading.product(product_id)).node == "pg1"
        proxies["pg2"].cut_when_client_sends(b"feature", deliver=False, times=10_000)
        answers = await asyncio.gather(*(reading.product(product_id) for _ in range(30)))
        assert {answer.node for answer in answers} == {"pg1", "pg3"}
        assert {answer.reason for answer in answers if answer.node == "pg3"} == {"stale-replica"}
        assert proxies["pg2"].cuts >= 1
        assert reading.executor.ejected_until_s("pg2") is not None
        assert reading.executor.ejected_until_s("pg1") is None


async def test_the_last_try_is_the_primarys(cluster: EmbeddedCluster, shop: Shop) -> None:
    """Three replicas that are well to all looks, and cut every read: a sibling is tried once, no more."""
    async with AsyncExitStack() as stack:
        servers = {"pg1": "pg1", "pg2": "pg2", "pg3": "pg3", "pg4": "pg3"}
        proxies = {
            name: await stack.enter_async_context(open_proxy("127.0.0.1", cluster.node(server).port))
            for name, server in servers.items()
        }
        nodes = ",".join(f"{name}=127.0.0.1:{proxy.port}" for name, proxy in proxies.items())
        reading = await stack.enter_async_context(open_reading(make_settings(cluster, {"ATELIER_NODES": nodes})))
        await reading.until_roles(pg1="primary", pg2="replica", pg3="replica", pg4="replica")
        product_id = await make_visible_product(reading, shop)
        for name in ("pg2", "pg3", "pg4"):
            proxies[name].cut_when_client_sends(b"feature", deliver=False, times=10_000)
        answer = await reading.product(product_id)
        assert (answer.node, answer.reason) == ("pg1", "replicas-failed")
        assert sum(proxies[name].cuts for name in servers) == 2


async def test_a_lone_read_is_not_delayed(cluster: EmbeddedCluster, shop: Shop) -> None:
    """It runs at once: nothing of its time is waiting."""
    async with open_reading(make_settings(cluster)) as reading:
        product_id = await make_visible_product(reading, shop)
        await read_many(reading, product_id)
        answers = [await reading.product(product_id) for _ in range(50)]
        waits = sorted(answer.timings.wait_ms for answer in answers)
        assert waits[25] < 1


async def test_a_migration_under_a_prepared_read_is_not_seen_by_clients(cluster: EmbeddedCluster) -> None:
    """The result type of a statement changes: it is prepared anew."""
    owner = await asyncpg.connect(role_dsn(cluster, "migrator"))
    await owner.execute("create table atelier.widening (id bigint, a int); grant select on atelier.widening to reader")
    await owner.execute("insert into atelier.widening values (1, 2)")
    statement = Statement(
        "widening", f"select widening.*, position.* from {POSITION} cross join widening where id = any($1)"
    )
    try:
        async with open_reading(make_settings(cluster)) as reading:
            await reading.until_roles(pg2="replica", pg3="replica")
            await wait_for_column(cluster, "a")
            for _ in range(6):
                assert (await run(reading, statement, 1)).rows[0]["a"] == 2
            await owner.execute("alter table atelier.widening add b text default 'new'")
            await wait_for_column(cluster, "b")
            for _ in range(6):
                assert (await run(reading, statement, 1)).rows[0]["b"] == "new"
    finally:
        await owner.execute("drop table atelier.widening")
        await owner.close()


async def wait_for_column(cluster: EmbeddedCluster, column: str) -> None:
    """Waits until all replicas have a column of the test's table."""
    query = (
        f"select count(*) from pg_attribute where attrelid = to_regclass('atelier.widening') and attname = '{column}'"
    )
    async with asyncio.timeout(10):
        for name in sorted(REPLICAS):
            admin = await asyncpg.connect(cluster.superuser_dsn(name), timeout=5)
            while not await admin.fetchval(query):
                await asyncio.sleep(0.01)
            await admin.close()


async def test_nodes_join_and_leave_while_it_runs(
    cluster: EmbeddedCluster, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read again; a list that makes no sense, or is no text, is told of, and changes nothing."""
    told: list[str] = []
    monkeypatch.setattr(monitor_module.log, "warning", lambda event, **_: told.append(event))
    listed = {name: f"{name}=127.0.0.1:{cluster.node(name).port}" for name in NODES}
    path = tmp_path / "nodes"
    path.write_text(f"{listed['pg1']},{listed['pg2']}\n")
    settings = make_settings(cluster)
    async with open_reading(settings, NodesFile(path)) as reading:
        product_id = await make_visible_product(reading, shop)
        assert set((await read_many(reading, product_id))[0]) == {"pg2"}
        path.write_text("\n".join(listed.values()))
        reading.monitor.relist_soon()
        await reading.until_roles(pg3="replica")
        assert set((await read_many(reading, product_id))[0]) == REPLICAS
        for nonsense in (b"pg1=nonsense", b"pg1=\xff\xfe:1", b""):
            told.clear()
            path.write_bytes(nonsense)
            reading.monitor.relist_soon()
            await reading.until(lambda: "node_list_unreadable" in told)
            assert set((await read_many(reading, product_id))[0]) == REPLICAS
        path.write_text(f"{listed['pg1']},{listed['pg3']}")
        reading.monitor.relist_soon()
        await reading.until(lambda: reading.monitor.snapshot.node("pg2") is None)
        assert set((await read_many(reading, product_id))[0]) == {"pg3"}
        assert reading.pools.connections("pg2") == {"open": 0, "busy": 0}
