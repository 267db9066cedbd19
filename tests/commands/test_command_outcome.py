"""What becomes of a command whose connection breaks, at every moment of its life, and what the client is told."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import OutcomeUnknownError, OverloadedError, PrimaryUnavailableError
from atelier.problems import ProblemError
from atelier.writes import dispatch
from atelier.writes.commands import AdjustStock
from atelier.writes.dispatch import Dispatcher
from atelier.writes.envelope import Receipt
from atelier.writes.failures import ConflictError, ConnectionLostError, DataRefusedError, translate
from atelier.writes.idempotency import InFlight, claim_keys
from atelier.writes.inventory import change_stock
from atelier.writes.primary import PrimaryGateway
from atelier.writes.service import WriteService
from atelier.writes.unit_of_work import UnitOfWork
from tests.commands.conftest import Shop, new_key, wait_until_blocked
from tests.commands.writing import (
    Proxy,
    adjustment,
    make_order,
    open_gateway,
    open_proxy,
    open_writes,
    settings_of,
)
from tests.support import find_free_port, role_dsn

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


@pytest.fixture
async def proxy(cluster: EmbeddedCluster) -> AsyncIterator[Proxy]:
    """A proxy in front of the primary."""
    async with open_proxy(cluster.primary.port) as opened:
        yield opened


@pytest.fixture
async def writes(cluster: EmbeddedCluster, proxy: Proxy) -> AsyncIterator[WriteService]:
    """The writing side, behind the proxy; what the proxy does to "the next COMMIT" it does to a command's."""
    nodes = f"{cluster.primary.name}=127.0.0.1:{proxy.port}"
    async with open_writes(settings_of(cluster, ATELIER_NODES=nodes), has_chores=False) as service:
        yield service


def once(verdict: str):
    """Says something to the first COMMIT, and "pass" to those after it."""
    verdicts = [verdict]
    return lambda: verdicts.pop() if verdicts else "pass"


async def on_hand(database: asyncpg.Connection, sku_id: int) -> tuple[int, int]:
    """What is on hand, and what the ledger says is."""
    row = await database.fetchrow(
        "select on_hand, (select sum(delta) from stock_movement as m where m.sku_id = s.sku_id) as ledger "
        "from stock as s where sku_id = $1",
        sku_id,
    )
    return row["on_hand"], row["ledger"]


@pytest.mark.parametrize("moment", ["cut-before", "cut-after"])
async def test_commit_whose_connection_broke_is_settled_by_its_key(
    shop: Shop, database: asyncpg.Connection, proxy: Proxy, writes: WriteService, moment: str
) -> None:
    """Never happened: it is done now. Done already: its own answer is found. Either way once, and no error."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    proxy.on_commit, before = once(moment), proxy.commits
    order = make_order(adjustment((sku_id, 10)))
    receipt = await writes.submit(order)
    assert (receipt.outcome.status, receipt.is_replay) == (200, False)
    assert await on_hand(database, sku_id) == (16, 16)
    assert proxy.commits > before
    assert order.notes["attempts"] > 1


@pytest.mark.parametrize("moment", ["cut-before", "cut-after"])
async def test_lost_commit_is_settled_for_each_order_of_its_batch(
    shop: Shop, database: asyncpg.Connection, proxy: Proxy, writes: WriteService, moment: str
) -> None:
    """One key twice, and a replay, beside others: done once, and the replay is as it was, long before the end.

    The second under the one key was in no commit. It is a replay where the first has been done, else in flight with it.
    """
    [sku_id] = await shop.stocked(5)
    earlier, key = make_order(adjustment((sku_id, 1))), new_key()
    await writes.submit(earlier)
    orders = [
        make_order(adjustment((sku_id, 10)), key=key),
        make_order(adjustment((sku_id, 10)), key=key),
        make_order(adjustment((sku_id, 100))),
        make_order(earlier.command, key=earlier.key),
    ]
    proxy.on_commit, before = once(moment), proxy.commits
    results = await writes.dispatcher.carry_out(orders)
    second = "idempotency-in-flight" if moment == "cut-before" else (200, True)
    assert list(map(told, results)) == [(200, False), second, (200, False), (200, True)]
    assert proxy.commits > before
    assert await on_hand(database, sku_id) == (116, 116)


async def test_only_who_was_in_the_lost_commit_waits_for_it(
    shop: Shop, proxy: Proxy, writes: WriteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server still holds its keys when they are asked for: the others are told so at once."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    key, asked = new_key(), []

    async def claim(uow: UnitOfWork, orders):
        asked.append(len(orders))
        return [InFlight() for _ in orders] if len(asked) == 2 else await claim_keys(uow, orders)

    monkeypatch.setattr(dispatch, "claim_keys", claim)
    proxy.on_commit = once("cut-after")
    orders = [make_order(adjustment((sku_id, delta)), key=key) for delta in (10, 10)]
    results = await writes.dispatcher.carry_out([*orders, make_order(adjustment((sku_id, 100)))])
    assert list(map(told, results)) == [(200, False), "idempotency-in-flight", (200, False)]
    assert asked == [3, 3, 2]


@asynccontextmanager
async def commits_that_take_long(cluster: EmbeddedCluster) -> AsyncIterator[None]:
    """Holds the lock that every COMMIT takes last, so that those that are sent are under way until this ends."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(6386796, 2)")
            yield
    finally:
        await connection.close()


async def test_lost_commit_that_is_still_under_way_is_waited_for(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster, proxy: Proxy, writes: WriteService
) -> None:
    """Its connection is cut and the primary lives: the key is held by it, and found or free when it has ended."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    order = make_order(adjustment((sku_id, 10)))
    async with commits_that_take_long(cluster):
        proxy.on_commit = once("cut-after")
        submitting = asyncio.create_task(writes.submit(order))
        async with asyncio.timeout(5):
            while order.notes.get("attempts", 0) < 3:
                await asyncio.sleep(0.01)
        assert not submitting.done()
    receipt = await submitting
    assert (receipt.outcome.status, receipt.is_replay) == (200, False)
    assert await on_hand(database, sku_id) == (16, 16)


async def test_answer_that_was_found_stays_when_the_primary_is_lost_for_others(
    shop: Shop,
    cluster: EmbeddedCluster,
    proxy: Proxy,
    writes: WriteService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One commit is still under way when there is no primary any more: unknown, and its neighbour's replay is one."""
    [sku_id] = await shop.stocked(5)
    earlier = make_order(adjustment((sku_id, 1)))
    await writes.submit(earlier)
    tries = []

    async def wait(_deadline: Deadline) -> None:
        tries.append("again")
        if len(tries) == 2:
            raise PrimaryUnavailableError

    monkeypatch.setattr(writes.gateway, "wait_for_another_try", wait)
    orders = [make_order(adjustment((sku_id, 10))), make_order(earlier.command, key=earlier.key)]
    async with commits_that_take_long(cluster):
        proxy.on_commit = once("cut-after")
        results = await writes.dispatcher.carry_out(orders)
    assert list(map(told, results)) == ["OutcomeUnknownError", (200, True)]


async def test_slip_after_a_lost_commit_is_outcome_unknown(
    shop: Shop, proxy: Proxy, writes: WriteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command may have been done: nothing less than that is true."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    asked = []

    async def claim(uow: UnitOfWork, orders):
        asked.append(len(orders))
        if len(asked) > 1:
            raise LookupError("slipped")
        return await claim_keys(uow, orders)

    monkeypatch.setattr(dispatch, "claim_keys", claim)
    proxy.on_commit = once("cut-after")
    results = await writes.dispatcher.carry_out([make_order(adjustment((sku_id, 10)))])
    assert (list(map(told, results)), asked) == (["OutcomeUnknownError"], [1, 1])


def told(result: Receipt | Exception) -> tuple[int, bool] | str:
    """What a client is told: status and whether it is a replay, or the name of the problem."""
    if isinstance(result, ProblemError):
        return result.body("/").partition(b"/problems/")[2].partition(b'"')[0].decode()
    return (result.outcome.status, result.is_replay) if isinstance(result, Receipt) else type(result).__name__


async def test_slip_over_one_command_costs_none_of_its_neighbours(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """What nobody foresaw, before the commit: each is carried out by itself, one fails, and the log tells of it."""
    [sku_id] = await shop.stocked(0)
    orders = [make_order(adjustment((sku_id, 1))) for _ in range(5)]

    async def slip(batch, uow: UnitOfWork):
        verdicts = await change_stock(batch, uow)
        if orders[2] in batch:
            raise LookupError("slipped")
        return verdicts

    async with open_gateway(settings_of(cluster)) as gateway:
        with capture_logs() as lines:
            results = await Dispatcher(gateway, {AdjustStock: slip}, random=lambda: 0.5).carry_out(orders)
    assert list(map(told, results)) == [(200, False)] * 2 + ["LookupError"] + [(200, False)] * 2
    assert await on_hand(database, sku_id) == (4, 4)
    assert [line["commands"] for line in lines if line["event"] == "batch_broken"] == [5, 1]


async def test_command_whose_connection_broke_before_the_commit_is_done_again(
    shop: Shop, database: asyncpg.Connection, proxy: Proxy, writes: WriteService
) -> None:
    """The transaction was rolled back, so trying again is safe."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    async with database.transaction():
        await database.execute("select from stock where sku_id = $1 for update", sku_id)
        submitting = asyncio.create_task(writes.submit(make_order(adjustment((sku_id, 10)))))
        await wait_until_blocked(database)
        proxy.cut_all()
    assert (await submitting).outcome.status == 200
    assert await on_hand(database, sku_id) == (16, 16)


async def test_commit_without_an_answer_in_time_is_outcome_unknown(
    shop: Shop, database: asyncpg.Connection, proxy: Proxy, writes: WriteService
) -> None:
    """At the deadline the client is told the truth; the same key finds the first effect afterwards."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    proxy.on_commit = once("hold")
    order = make_order(adjustment((sku_id, 10)), key=f"held-{sku_id}", within_s=0.5)
    with pytest.raises(OutcomeUnknownError):
        await writes.submit(order)
    proxy.release.set()
    again = await writes.submit(make_order(adjustment((sku_id, 10)), key=f"held-{sku_id}"))
    assert (again.outcome.status, again.is_replay) == (200, True)
    assert await on_hand(database, sku_id) == (16, 16)


async def test_client_that_leaves_during_the_commit_cancels_nothing(
    shop: Shop, database: asyncpg.Connection, proxy: Proxy, writes: WriteService
) -> None:
    """The commit is nobody's to cancel once it was sent."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    proxy.on_commit, before = once("hold"), proxy.commits
    order = make_order(adjustment((sku_id, 10)))
    submitting = asyncio.create_task(writes.submit(order))
    while proxy.commits == before:
        await asyncio.sleep(0.01)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    proxy.release.set()
    again = await writes.submit(make_order(adjustment((sku_id, 10)), key=order.key))
    assert again.is_replay
    assert await on_hand(database, sku_id) == (16, 16)


async def test_sessions_ended_by_the_server_cost_no_command(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """57P01 in the middle of a load: the connections are made anew, and every command is done once."""
    [sku_id] = await shop.stocked(0)
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'atelier-writes'"

    async def end_sessions() -> None:
        for _ in range(10):
            await admin.fetchval(ended)
            await asyncio.sleep(0.05)

    async def send() -> None:
        for _ in range(10):
            assert (await writes.submit(make_order(adjustment((sku_id, 1))))).outcome.status == 200

    async with open_writes(settings_of(cluster)) as writes:
        await asyncio.gather(end_sessions(), *(send() for _ in range(20)))
    await admin.close()
    assert await on_hand(database, sku_id) == (200, 200)


async def test_look_ups_survive_sessions_that_the_server_has_ended(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster, writes: WriteService
) -> None:
    """A key, an outcome: asked over a connection that is dead already, and answered over another one."""
    [sku_id] = await shop.stocked(0)
    order = make_order(adjustment((sku_id, 1)))
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    await writes.submit(order)
    for look_up in (
        lambda: writes.look_up_key("nobody"),
        lambda: writes.resolve(order.actor.name, order.key, writes.deadline()),
        lambda: shop.http.get("/commands/nothing"),
    ):
        await look_up()
        await admin.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'atelier-writes'"
        )
        answer = await look_up()
        assert getattr(answer, "status_code", 404) == 404
    await admin.close()


async def test_commits_that_never_arrive_end_in_outcome_unknown(
    shop: Shop, database: asyncpg.Connection, proxy: Proxy, writes: WriteService
) -> None:
    """Tried again until the deadline; then nothing less than "unknown" is true."""
    [sku_id] = await shop.stocked(5)
    await writes.submit(make_order(adjustment((sku_id, 1))))
    proxy.on_commit = lambda: "cut-before"
    with pytest.raises(OutcomeUnknownError):
        await writes.submit(make_order(adjustment((sku_id, 10)), within_s=0.7))
    assert await on_hand(database, sku_id) == (6, 6)


async def test_primary_that_is_away_is_told_at_the_deadline(cluster: EmbeddedCluster) -> None:
    """No command waits for ever: 503, and nothing was done."""
    nodes = f"{cluster.primary.name}=127.0.0.1:{find_free_port()}"
    async with open_writes(settings_of(cluster, ATELIER_NODES=nodes)) as away:
        with pytest.raises((PrimaryUnavailableError, OutcomeUnknownError)) as caught:
            await away.submit(make_order(adjustment((1, 1)), within_s=0.5))
        closing_s = time.monotonic()
    assert caught.type in (PrimaryUnavailableError, OutcomeUnknownError)
    assert time.monotonic() - closing_s < 5, "what waits for a primary held up the end of the process"


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_conflict_with_another_transaction_may_be_tried_again(code: str) -> None:
    """The server has rolled it back."""
    error = asyncpg.PostgresError("")
    error.sqlstate = code
    assert isinstance(translate(error), ConflictError)


async def test_client_that_hangs_up_leaves_a_whole_command_behind(shop: Shop, database: asyncpg.Connection) -> None:
    """Over a real connection, cut while the command waits: it is carried out once, and its key tells so."""
    [sku_id] = await shop.stocked(5)
    key = new_key()
    async with database.transaction():
        await database.execute("select from stock where sku_id = $1 for update", sku_id)
        async with httpx.AsyncClient(base_url=shop.http.base_url, headers=shop.http.headers) as leaving:
            sending = asyncio.create_task(Shop(leaving).adjust(sku_id, 10, Idempotency_Key=key))
            await wait_until_blocked(database)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    async with asyncio.timeout(15):
        while (found := await shop.http.get(f"/commands/{key}")).status_code != 200:
            await asyncio.sleep(0.02)
    assert found.json()["status"] == 200
    assert await on_hand(database, sku_id) == (15, 15)


async def test_connection_that_is_gone_before_the_commit_has_done_nothing(
    cluster: EmbeddedCluster, shop: Shop, database: asyncpg.Connection
) -> None:
    """It is told as such, not as a slip of the driver: the command is tried again elsewhere."""
    [sku_id] = await shop.stocked(5)
    async with open_gateway(settings_of(cluster)) as gateway, open_unit(gateway) as uow:
        await uow.execute(text("update stock set on_hand = 99 where sku_id = :id"), {"id": sku_id})
        await cut(uow)
        with pytest.raises(ConnectionLostError):
            await uow.commit()
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 5


async def test_connection_that_is_gone_while_an_answer_waits_for_the_quorum_has_done_nothing(
    cluster: EmbeddedCluster,
) -> None:
    """A replayed answer is given later, and never as an error of the service."""
    async with open_gateway(settings_of(cluster)) as gateway, open_unit(gateway) as uow:
        await uow.execute(text("select 1"))
        gateway.quorum = 1  # only now: this primary is not set up for one, and would have been refused
        await cut(uow)
        with pytest.raises(ConnectionLostError):
            await uow.wait_for_quorum()


@pytest.mark.parametrize(
    "code",
    ["25006", "57P01", "57P02", "57P03", "08000", "08001", "08003", "08006", "57P04", "58030", "XX001", "55000"],
)
def test_server_that_cannot_work_any_more_is_a_lost_one(code: str) -> None:
    """Whatever it says in detail: no request of a client is a reason for a 500."""
    error = asyncpg.PostgresError("")
    error.sqlstate = code
    assert isinstance(translate(error), ConnectionLostError)


@pytest.mark.parametrize("code", ["22021", "23514", "54000"])
def test_data_that_the_server_takes_from_nobody_is_no_reason_to_try_again(code: str) -> None:
    """A bad character, a constraint, a limit: the order it came with is refused, its neighbours are not."""
    error = asyncpg.PostgresError("")
    error.sqlstate = code
    assert isinstance(translate(error), DataRefusedError)


@pytest.mark.parametrize("code", ["53000", "53100", "53200", "53300", "53400"])
def test_server_that_has_run_out_of_something_is_overloaded(code: str) -> None:
    """Memory, disk, connections: 503 with Retry-After for all it concerns, and nothing was done."""
    error = asyncpg.PostgresError("")
    error.sqlstate = code
    assert isinstance(translate(error), OverloadedError)


async def test_no_connection_outlives_its_generation(cluster: EmbeddedCluster, database: asyncpg.Connection) -> None:
    """Idle ones are cut at once; one in a transaction may commit, and is closed when it is given back."""
    async with open_gateway(settings_of(cluster), connections=3) as gateway:
        units = [open_unit(gateway) for _ in range(3)]
        pids = []
        for uow in units:
            await uow.__aenter__()
            pids += [row.pid for row in await uow.execute(text("select pg_backend_pid() as pid"))]
        await units[0].__aexit__(None, None, None)
        gateway.end_generation(units[0].generation)
        await wait_until_ended(database, pids[:1])
        await units[1].commit()
        for uow in units[1:]:
            await uow.__aexit__(None, None, None)
        await wait_until_ended(database, pids)
        async with open_unit(gateway) as uow:
            [row] = await uow.execute(text("select pg_backend_pid() as pid"))
        assert row.pid not in pids
    await wait_until_ended(database, [row.pid])


async def test_who_waits_for_a_connection_does_not_wait_for_one_of_the_past(cluster: EmbeddedCluster) -> None:
    """The only connection is given back to a generation that has ended: the next in line gets another, at once."""
    async with open_gateway(settings_of(cluster)) as gateway:
        async with open_unit(gateway) as uow:
            [first] = await uow.execute(text("select pg_backend_pid() as pid"))
            waiting = asyncio.create_task(ask_pid(gateway))
            for _ in range(100):
                await asyncio.sleep(0)  # until it stands in line
            gateway.end_generation(uow.generation)
        async with asyncio.timeout(3):
            assert await waiting != first.pid


async def ask_pid(gateway: PrimaryGateway) -> int:
    """The server process of some connection."""
    async with open_unit(gateway) as uow:
        [row] = await uow.execute(text("select pg_backend_pid() as pid"))
        return row.pid


async def wait_until_ended(database: asyncpg.Connection, pids: list[int]) -> None:
    """Waits until the server has none of these sessions any more."""
    async with asyncio.timeout(10):
        while await database.fetchval("select count(*) from pg_stat_activity where pid = any($1)", pids):
            await asyncio.sleep(0.01)


def open_unit(gateway: PrimaryGateway) -> UnitOfWork:
    """One transaction, with time enough."""
    return UnitOfWork(gateway, Deadline.after(10, time.monotonic))


async def cut(uow: UnitOfWork) -> None:
    """Cuts the connection under a unit of work, and waits until the driver knows."""
    driver = await uow._driver()
    driver.terminate()
    async with asyncio.timeout(5):
        while not driver.is_closed():
            await asyncio.sleep(0)
