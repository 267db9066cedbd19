"""Commands over a cluster that the tests may break: a quorum that does not answer, a primary that is gone."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import OutcomeUnknownError, OverloadedError, PrimaryUnavailableError
from atelier.problems import ProblemError
from atelier.writes.policy import WritePolicy
from atelier.writes.primary import PrimaryGateway, count_awaited
from atelier.writes.service import WriteService
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Outcome
from tests.commands.conftest import new_key
from tests.commands.writing import (
    ACTOR,
    Proxy,
    adjustment,
    make_order,
    open_gateway,
    open_proxy,
    open_writes,
    settings_of,
)
from tests.support import role_dsn, running_cluster, running_service, wait_until_commits_wait

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

QUORUM = WritePolicy(quorum=1)


@pytest.fixture(scope="module")
def own(soak_round: int) -> Iterator[EmbeddedCluster]:
    """A cluster of this module's own, whose primary waits for one of its two standbys."""
    with running_cluster() as cluster:
        asyncio.run(configure(cluster, "ANY 1 (pg2, pg3)"))
        yield cluster


async def configure(cluster: EmbeddedCluster, standbys: str, durability: str = "on") -> None:
    """Sets which standbys a commit waits for, and for what of them, on every node alike; new sessions have it then."""
    if standbys:
        # From one name to others there is no moment at which a commit waits for none.
        await set_standbys(cluster, cluster.primary.name, "nobody", durability)
        await wait_until_commits_wait(cluster.superuser_dsn(cluster.primary.name))
    for node in cluster.nodes:
        await set_standbys(cluster, node, standbys, durability)


async def set_standbys(cluster: EmbeddedCluster, node: str, standbys: str, durability: str) -> None:
    """Sets it on one node, and waits until new sessions have it."""
    admin = await asyncpg.connect(cluster.superuser_dsn(node))
    await admin.execute(f"alter system set synchronous_standby_names = '{standbys}'")
    await admin.execute(f"alter system set synchronous_commit = '{durability}'")
    await admin.execute("select pg_reload_conf()")
    wanted = [standbys, durability]
    async with asyncio.timeout(10):
        while await show(cluster, node) != wanted:
            await asyncio.sleep(0.01)
    await admin.close()


async def show(cluster: EmbeddedCluster, node: str) -> list[str]:
    """What a new session on a node has."""
    admin = await asyncpg.connect(cluster.superuser_dsn(node))
    values = [await admin.fetchval(f"show synchronous_{name}") for name in ("standby_names", "commit")]
    await admin.close()
    return values


async def make_sku(cluster: EmbeddedCluster) -> int:
    """A SKU with nothing on hand."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    sku_id = await connection.fetchval(
        """
        with p as (insert into product (name, slogan, description, category, default_price)
                   values ('Hat', '', '', '', 1) returning id),
             s as (insert into style (product_id, name, original_price, is_default)
                   select id, 'Red', 1, true from p returning id)
        insert into sku (style_id, size) select id, 'M' from s returning id
        """
    )
    await connection.execute("insert into stock (sku_id, on_hand) values ($1, 0)", sku_id)
    await connection.close()
    return sku_id


async def settle(service: WriteService, sku_id: int, key: str) -> bool:
    """Sends a command again until its outcome is told; gives whether that was a replay."""
    async with asyncio.timeout(60):
        while True:
            try:
                return (await service.submit(make_order(adjustment((sku_id, 1)), key=key, within_s=2))).is_replay
            except (OutcomeUnknownError, OverloadedError, PrimaryUnavailableError, ProblemError):
                await asyncio.sleep(0.05)


async def test_commit_without_its_quorum_is_unknown_and_found_later(own: EmbeddedCluster) -> None:
    """Both standbys frozen: no success is told, neither by the command nor by the resolver, until one is back."""
    sku_id, key = await make_sku(own), new_key()
    async with open_writes(settings_of(own), QUORUM) as service:
        await service.submit(make_order(adjustment((sku_id, 1))))
        freeze(own)
        try:
            forget_the_standbys(service.gateway)
            with pytest.raises(OutcomeUnknownError):
                await service.submit(make_order(adjustment((sku_id, 1)), key=key, within_s=1.0))
            with pytest.raises(ProblemError, match="still running"):
                await service.resolve(ACTOR.name, key, service.deadline())
        finally:
            thaw(own)
        await settle(service, sku_id, key)
        last = await service.submit(make_order(adjustment((sku_id, 1))))
        assert b'"on_hand":3' in last.outcome.body


async def test_replayed_answer_waits_for_the_quorum_too(own: EmbeddedCluster) -> None:
    """A key row that is found proves a local commit only. The control without a quorum answers at once."""
    sku_id, key = await make_sku(own), new_key()
    async with open_writes(settings_of(own), QUORUM) as service, open_writes(settings_of(own)) as control:
        await service.submit(make_order(adjustment((sku_id, 1)), key=key))
        other = new_key()
        await control.submit(make_order(adjustment((sku_id, 1)), key=other))
        freeze(own)
        try:
            forget_the_standbys(service.gateway)
            with pytest.raises(OutcomeUnknownError):
                await service.submit(make_order(adjustment((sku_id, 1)), key=key, within_s=1.0))
            found = await control.submit(make_order(adjustment((sku_id, 1)), key=other, within_s=1.0))
            assert found.is_replay
        finally:
            thaw(own)
        assert await settle(service, sku_id, key)


async def test_command_whose_quorum_is_known_to_be_away_is_refused_before_anything_is_done(
    own: EmbeddedCluster,
) -> None:
    """503 that tells why, and the key stays free: a commit could not be answered anyway. Then they are back."""
    sku_id, key = await make_sku(own), new_key()
    async with open_writes(settings_of(own), QUORUM, has_chores=False) as service:
        await service.submit(make_order(adjustment((sku_id, 1))))
        freeze(own)
        try:
            async with asyncio.timeout(30):
                while service.gateway._can_commit(service.gateway.snapshot):
                    await asyncio.sleep(0.01)
            with pytest.raises(PrimaryUnavailableError, match="fewer than 1 standbys stream"):
                await service.submit(make_order(adjustment((sku_id, 1)), key=key))
            database = await asyncpg.connect(role_dsn(own, "writer"))
            assert not await database.fetchval("select count(*) from command_key where key = $1", key)
            await database.close()
        finally:
            thaw(own)
        assert not await settle(service, sku_id, key)


async def test_commit_that_waits_for_its_quorum_is_not_cancelled_with_who_waits_for_it(own: EmbeddedCluster) -> None:
    """As a chore is at the end of a process: the server is told nothing, waits on, and the commit holds."""
    sku_id = await make_sku(own)
    admin = await asyncpg.connect(own.superuser_dsn(own.primary.name))
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and pid = $1"
    lives = "select count(*) from pg_stat_activity where pid = $1"
    async with open_writes(settings_of(own), QUORUM, has_chores=False) as service:
        freeze(own)
        try:
            forget_the_standbys(service.gateway)
            writing: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def change() -> None:
                async with UnitOfWork(service.gateway, Deadline.after(30, time.monotonic)) as uow:
                    await uow.execute(text("update stock set on_hand = 7 where sku_id = :id"), {"id": sku_id})
                    [row] = await uow.execute(text("select pg_backend_pid() as pid"))
                    writing.set_result(row.pid)
                    await uow.commit()

            changing = asyncio.create_task(change())
            pid = await writing
            await until_async(lambda: admin.fetchval(waits, pid), 1)
            changing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await changing
            assert await admin.fetchval(waits, pid) == 1
        finally:
            thaw(own)
        await until_async(lambda: admin.fetchval(lives, pid), 0)
    database = await asyncpg.connect(role_dsn(own, "writer"))
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 7
    await database.close()
    await admin.close()


async def test_token_under_a_quorum_names_what_that_many_standbys_have_flushed(own: EmbeddedCluster) -> None:
    """One of two standbys: the further one; two: the other one. Never what the primary alone has."""
    sku_id = await make_sku(own)
    admin = await asyncpg.connect(own.superuser_dsn(own.primary.name), database="atelier")
    flushed = "select flush_lsn from pg_stat_replication where application_name = $1"

    async def write() -> int:
        await admin.execute("set synchronous_commit = local")
        await admin.execute("update atelier.stock set on_hand = on_hand + 1 where sku_id = $1", sku_id)
        return await admin.fetchval("select pg_current_wal_flush_lsn()")

    try:
        own.freeze("pg3")
        reached = await write()
        async with asyncio.timeout(15):
            while await admin.fetchval(flushed, "pg2") < reached:
                await asyncio.sleep(0.01)
        own.freeze("pg2")
        told = [await write()]
        async with open_gateway(settings_of(own)) as gateway:
            forget_the_standbys(gateway)
            for gateway.quorum in (1, 2):  # only now: this primary waits for one, and would be refused with two
                async with UnitOfWork(gateway, Deadline.after(10, time.monotonic)) as uow:
                    told.append((await uow.position()).lsn.bytes)
            gateway.quorum = 3
            async with UnitOfWork(gateway, Deadline.after(10, time.monotonic)) as uow:
                with pytest.raises(OutcomeUnknownError):
                    await uow.position()
        assert told[1:] == [await admin.fetchval(flushed, name) for name in ("pg2", "pg3")]
        assert told[0] > told[1] >= reached > told[2]
    finally:
        thaw(own)
        await admin.close()


async def test_resolved_outcome_waits_for_the_quorum_too(own: EmbeddedCluster) -> None:
    """A row whose key nobody holds any more proves a local commit only. The control without a quorum tells at once."""
    sku_id, key = await make_sku(own), new_key()
    async with open_writes(settings_of(own), QUORUM) as service, open_writes(settings_of(own)) as control:
        await service.submit(make_order(adjustment((sku_id, 1)), key=key))
        await control.resolve(ACTOR.name, key, control.deadline())
        freeze(own)
        try:
            found = await control.resolve(ACTOR.name, key, control.deadline())
            assert (found.outcome.status, found.is_replay) == (200, True)
            forget_the_standbys(service.gateway)
            with pytest.raises(OutcomeUnknownError):
                await service.dispatcher.resolve(ACTOR.name, key, Deadline.after(1.0, time.monotonic))
        finally:
            thaw(own)
        async with asyncio.timeout(20):
            while (again := await resolved(service, key)) is None:
                await asyncio.sleep(0.05)
        assert again == found.outcome


async def resolved(service: WriteService, key: str) -> Outcome | None:
    """An outcome, once the resolver tells it."""
    try:
        return (await service.resolve(ACTOR.name, key, service.deadline())).outcome
    except (OutcomeUnknownError, OverloadedError, PrimaryUnavailableError, ProblemError):
        return None


def forget_the_standbys(gateway: PrimaryGateway) -> None:
    """Makes a service ask the primary although it may know already that nobody could confirm a commit."""
    gateway._can_commit = lambda snapshot: snapshot.primary is not None


async def test_commit_whose_wait_for_the_quorum_was_cancelled_is_no_success(own: EmbeddedCluster) -> None:
    """The server reports success with no more than a WARNING: the commit is here, and perhaps nowhere else."""
    sku_id, key = await make_sku(own), new_key()
    admin = await asyncpg.connect(own.superuser_dsn(own.primary.name))
    waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep' and application_name = 'atelier-writes'"
    async with open_writes(settings_of(own), QUORUM) as service:
        await service.submit(make_order(adjustment((sku_id, 1))))
        freeze(own)
        try:
            submitting = asyncio.create_task(service.submit(make_order(adjustment((sku_id, 1)), key=key)))
            async with asyncio.timeout(10):
                while not submitting.done():
                    for row in await admin.fetch(waiting):
                        await admin.execute("select pg_cancel_backend($1)", row["pid"])
                    await asyncio.sleep(0.05)
            with pytest.raises(OutcomeUnknownError):
                await submitting
        finally:
            thaw(own)
        assert await settle(service, sku_id, key)
    await admin.close()


@pytest.mark.parametrize(
    ("quorum", "standbys", "durability"),
    [
        (1, "", "on"),
        (2, "ANY 1 (pg2, pg3)", "on"),
        (2, "pg2, pg3", "on"),
        (1, "ANY 1 (pg2, pg3)", "local"),
        (1, "ANY 1 (pg2, pg3)", "remote_write"),
    ],
)
async def test_primary_that_waits_for_too_few_or_too_little_carries_no_quorum_commands(
    own: EmbeddedCluster, quorum: int, standbys: str, durability: str
) -> None:
    """Checked on the connection, because a promoted node may have been set up otherwise."""
    sku_id = await make_sku(own)
    await configure(own, standbys, durability)
    try:
        async with open_writes(settings_of(own), WritePolicy(quorum=quorum), has_chores=False) as service:
            with pytest.raises(PrimaryUnavailableError, match=f"wait for {quorum} of its standbys"):
                await service.submit(make_order(adjustment((sku_id, 1)), within_s=3.0))
    finally:
        await configure(own, "ANY 1 (pg2, pg3)")


async def test_primary_that_acknowledges_what_a_crash_would_lose_carries_no_commands(own: EmbeddedCluster) -> None:
    """With or without a quorum: of `synchronous_commit = off` nobody may learn that his command is done."""
    sku_id = await make_sku(own)
    await configure(own, "", "off")
    try:
        async with open_writes(settings_of(own), has_chores=False) as service:
            with pytest.raises(PrimaryUnavailableError, match="a crash would lose"):
                await service.submit(make_order(adjustment((sku_id, 1)), within_s=3.0))
    finally:
        await configure(own, "ANY 1 (pg2, pg3)")


def test_service_carries_no_commands_where_the_quorum_of_its_settings_is_not_kept(own: EmbeddedCluster) -> None:
    """`ATELIER_QUORUM`, as an operator sets it, and a primary that waits for nobody; then for one, and all is well."""
    body = {"reason": "count", "lines": [{"sku_id": asyncio.run(make_sku(own)), "delta": 1}]}
    asyncio.run(configure(own, ""))
    try:
        with running_service(own, settings={"ATELIER_QUORUM": "1"}) as service:
            headers = {"Authorization": f"Bearer {service.key}", "Idempotency-Key": new_key()}
            send = partial(httpx.post, f"{service.url}/inventory/adjustments", json=body, headers=headers, timeout=30)
            refused = send()
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/primary-unavailable")
            asyncio.run(configure(own, "ANY 1 (pg2, pg3)"))
            done = send()
            assert (done.status_code, done.headers.get("Idempotency-Replayed")) == (200, None), done.text
    finally:
        asyncio.run(configure(own, "ANY 1 (pg2, pg3)"))


async def test_primary_that_waits_for_enough_carries_quorum_commands(own: EmbeddedCluster) -> None:
    """The control: two of two, and until they have replayed it, is more than enough."""
    sku_id = await make_sku(own)
    await configure(own, "FIRST 2 (pg2, pg3)", "remote_apply")
    try:
        async with open_writes(settings_of(own), WritePolicy(quorum=2), has_chores=False) as service:
            receipt = await service.submit(make_order(adjustment((sku_id, 1))))
            assert receipt.outcome.status == 200
    finally:
        await configure(own, "ANY 1 (pg2, pg3)")


@pytest.mark.parametrize(
    ("names", "awaited"),
    [
        ("", 0), (" ", 0), ("*", 1), ("pg2, pg3", 1), ("FIRST 2 (pg2, pg3)", 2), ("any 3 (*)", 3), ("2 (pg2, pg3)", 2),
        (" ANY  2( pg2,pg3 )", 2), ('ANY 1 ("pg-2","3 (x)")', 1), ('"2 (a)"', 1), ("first, any", 1),
    ],
)  # fmt: skip
def test_standbys_that_a_commit_waits_for_are_read_from_the_setting(names: str, awaited: int) -> None:
    """All forms that the server knows."""
    assert count_awaited(names) == awaited


async def test_commands_go_on_when_a_primary_that_was_read_only_takes_writes_again(own: EmbeddedCluster) -> None:
    """25006 under open connections: refused as "no primary", never kept in the pool, and done once when it is over."""
    sku_id = await make_sku(own)
    keys = [new_key() for _ in range(10)]
    async with open_writes(settings_of(own), QUORUM) as service:
        await service.submit(make_order(adjustment((sku_id, 1))))
        sessions = await list_sessions(own)
        await set_read_only(own, read_only=True)
        try:
            order = make_order(adjustment((sku_id, 1)), key=keys[0], within_s=1.0)
            with pytest.raises((PrimaryUnavailableError, OutcomeUnknownError)):
                await service.submit(order)
            assert order.notes["attempts"] > 1
            sending = [asyncio.create_task(settle(service, sku_id, key)) for key in keys]
        finally:
            await set_read_only(own, read_only=False)
        assert await asyncio.gather(*sending) == [False] * 10
        async with asyncio.timeout(10):
            while sessions & await list_sessions(own):
                await asyncio.sleep(0.05)
    connection = await asyncpg.connect(role_dsn(own, "writer"))
    assert await connection.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 11
    await connection.close()


async def set_read_only(cluster: EmbeddedCluster, *, read_only: bool) -> None:
    """Makes every transaction on the primary read-only, as on one that is being taken down, and waits until it is."""
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name))
    value = "on" if read_only else "off"
    await admin.execute(f"alter system set default_transaction_read_only = {value}")
    await admin.execute("select pg_reload_conf()")
    async with asyncio.timeout(10):
        while await admin.fetchval("show default_transaction_read_only") != value:
            await asyncio.sleep(0.01)
    await admin.close()


async def list_sessions(cluster: EmbeddedCluster) -> set[int]:
    """The server processes of the writing side's connections."""
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name))
    rows = await admin.fetch("select pid from pg_stat_activity where application_name = 'atelier-writes'")
    await admin.close()
    return {row["pid"] for row in rows}


async def test_commands_go_on_after_a_failover_without_a_restart(own: EmbeddedCluster) -> None:
    """The primary is killed in the middle of commits and a standby promoted: every key has one effect."""
    await configure(own, "ANY 1 (*)")
    sku_id = await make_sku(own)
    keys = [new_key() for _ in range(60)]
    async with open_behind_proxy(own) as (proxy, service):
        await service.submit(make_order(adjustment((sku_id, 1))))
        proxy.on_commit, before = lambda: "hold", proxy.commits
        sending = [asyncio.create_task(settle(service, sku_id, key)) for key in keys[:30]]
        await until(lambda: proxy.commits > before)
        await asyncio.to_thread(own.kill, "pg1")
        proxy.cut_all()
        await asyncio.to_thread(own.promote, "pg2")
        await asyncio.gather(*sending)
        await asyncio.gather(*(settle(service, sku_id, key) for key in keys[30:]))
    connection = await asyncpg.connect(role_dsn(own, "writer"))
    rows = await connection.fetch(
        "select command_key, count(*) as times from stock_movement where sku_id = $1 group by command_key", sku_id
    )
    assert {row["times"] for row in rows} == {1}
    assert {row["command_key"] for row in rows} >= set(keys)
    assert await connection.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 61
    await connection.close()


@pytest.mark.parametrize("has_reached_a_standby", [True, False])
async def test_command_whose_commit_a_failover_interrupts_is_settled_in_the_same_call(
    fresh: EmbeddedCluster, *, has_reached_a_standby: bool
) -> None:
    """It was waiting for its answer when the primary died: found on the new one, or done there. Once, and no replay."""
    sku_id, key = await make_sku(fresh), new_key()
    async with open_behind_proxy(fresh) as (proxy, service):
        await service.submit(make_order(adjustment((sku_id, 1))))
        forget_the_standbys(service.gateway)
        if not has_reached_a_standby:
            await asyncio.to_thread(stop_standbys, fresh)
        proxy.on_commit = lambda: "hold"
        order = make_order(adjustment((sku_id, 10)), key=key, within_s=100.0)
        submitting = asyncio.create_task(service.submit(order))
        if has_reached_a_standby:
            await until_async(lambda: count_movements(fresh, "pg2", key), 1)
        else:
            await until_async(lambda: count_waiting_commits(fresh), 1)
        assert not submitting.done()
        await asyncio.to_thread(fresh.kill, "pg1")
        proxy.cut_all()
        if not has_reached_a_standby:
            await asyncio.to_thread(start_standbys, fresh)
        assert await count_movements(fresh, "pg2", key) == int(has_reached_a_standby)
        await asyncio.to_thread(fresh.promote, "pg2")
        receipt = await submitting
    assert (receipt.outcome.status, receipt.is_replay) == (200, False)
    assert order.notes["attempts"] > 1
    assert await count_movements(fresh, "pg2", key) == 1
    assert b'"on_hand":11' in receipt.outcome.body


@pytest.fixture
def fresh() -> Iterator[EmbeddedCluster]:
    """A cluster of the test's own, whose primary waits for any one of its standbys, whoever that is."""
    with running_cluster() as cluster:
        asyncio.run(configure(cluster, "ANY 1 (*)"))
        yield cluster


@asynccontextmanager
async def open_behind_proxy(cluster: EmbeddedCluster) -> AsyncIterator[tuple[Proxy, WriteService]]:
    """The writing side, which reaches the first primary through a proxy; every COMMIT is some command's."""
    async with open_proxy(cluster.primary.port) as proxy:
        ports = {name: node.port for name, node in cluster.nodes.items()} | {cluster.primary.name: proxy.port}
        nodes = ",".join(f"{name}=127.0.0.1:{port}" for name, port in ports.items())
        async with open_writes(settings_of(cluster, ATELIER_NODES=nodes), QUORUM, has_chores=False) as service:
            yield proxy, service


def stop_standbys(cluster: EmbeddedCluster) -> None:
    """Nothing that is committed from now on is anywhere but on the primary."""
    for name in ("pg2", "pg3"):
        cluster.stop_node(name)


def start_standbys(cluster: EmbeddedCluster) -> None:
    """They come back without a primary."""
    for name in ("pg2", "pg3"):
        cluster.start_node(name)


async def count_movements(cluster: EmbeddedCluster, node: str, key: str) -> int:
    """The effects of a command that a node shows."""
    connection = await asyncpg.connect(role_dsn(cluster, "reader", node=node))
    count = await connection.fetchval("select count(*) from stock_movement where command_key = $1", key)
    await connection.close()
    return count


async def count_waiting_commits(cluster: EmbeddedCluster) -> int:
    """The commits of the writing side that are on the primary's disk and wait for a standby."""
    admin = await asyncpg.connect(cluster.superuser_dsn("pg1"))
    waiting = "wait_event = 'SyncRep' and application_name = 'atelier-writes'"
    count = await admin.fetchval(f"select count(*) from pg_stat_activity where {waiting}")
    await admin.close()
    return count


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something came true."""
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


async def until_async(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Waits until something counts so many."""
    async with asyncio.timeout(15):
        while await count() != wanted:
            await asyncio.sleep(0.01)


def freeze(cluster: EmbeddedCluster) -> None:
    """Stops both standbys where they are."""
    for name in ("pg2", "pg3"):
        cluster.freeze(name)


def thaw(cluster: EmbeddedCluster) -> None:
    """Lets them go on."""
    for name in ("pg2", "pg3"):
        cluster.thaw(name)
