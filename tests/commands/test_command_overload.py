"""More commands than can be carried out, and conflicts among those that are: bounded, told at once, tried again."""

import asyncio
import time
from collections.abc import Sequence

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import OverloadedError, PrimaryUnavailableError
from atelier.problems import ProblemError
from atelier.writes.commands import AdjustStock, CreateProduct, NewProduct
from atelier.writes.dispatch import Dispatcher
from atelier.writes.envelope import Envelope, Receipt
from atelier.writes.failures import ConflictError, ConnectionLostError
from atelier.writes.gate import Gate
from atelier.writes.inventory import change_stock
from atelier.writes.policy import WritePolicy
from atelier.writes.service import weigh
from atelier.writes.unit_of_work import UnitOfWork
from tests.commands.conftest import Shop, new_key, product, wait_until_blocked
from tests.commands.writing import adjustment, make_order, open_gateway, open_writes, settings_of

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


async def test_commands_beyond_the_bounded_queue_are_refused_at_once_over_http(
    shop: Shop, database: asyncpg.Connection
) -> None:
    """All lanes stand before a lock and two hundred wait: the others get 503 with Retry-After, long before the lock."""
    policy = WritePolicy()
    made = await shop.post("/products", product())
    path = f"/products/{made.json()['id']}"
    many = httpx.AsyncClient(
        base_url=shop.http.base_url, headers=shop.http.headers, timeout=30, limits=httpx.Limits(max_connections=None)
    )
    async with many:
        shop, locking = Shop(many), database.transaction()
        await locking.start()
        await database.execute("select from product where id = $1 for update", made.json()["id"])
        sending = [
            asyncio.create_task(shop.send("PATCH", path, {"slogan": "x"})) for _ in range(policy.catalogue_lanes)
        ]
        await wait_until_blocked(database, sessions=policy.catalogue_lanes)
        # Only now: all that wait for one look-up of their key come at once, and before the lanes have begun with any.
        sending += [
            asyncio.create_task(shop.send("PATCH", path, {"slogan": "x"})) for _ in range(policy.catalogue_queue_limit)
        ]
        await wait_until_waiting(shop, policy.catalogue_queue_limit)
        keys = [new_key() for _ in range(8)]
        answers = await asyncio.gather(*(hurried(shop, path, key) for key in keys))
        assert not any(task.done() for task in sending)
        for answer in answers:
            assert answer is not None, "one found a place"
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/overloaded")
            assert int(answer.headers["Retry-After"]) >= 1
        await locking.rollback()
        answers = await asyncio.gather(*sending)
        later = await asyncio.gather(*(hurried(shop, path, key) for key in keys))
    assert {answer.status_code for answer in answers} == {200}
    # What was refused is no outcome: their keys were free.
    assert {(answer.status_code, "Idempotency-Replayed" in answer.headers) for answer in later} == {(200, False)}


async def wait_until_waiting(shop: Shop, commands: int) -> None:
    """Waits until so many catalogue commands wait in the service."""
    line = f'atelier_commands_waiting{{queue="catalogue"}} {float(commands)}'
    async with asyncio.timeout(10):
        while line not in (await shop.http.get("/metrics")).text:
            await asyncio.sleep(0.02)


async def hurried(shop: Shop, path: str, key: str):
    """An answer that came long before the lock is let go, or None."""
    try:
        async with asyncio.timeout(2):
            return await shop.send("PATCH", path, {"slogan": "y"}, Idempotency_Key=key)
    except TimeoutError:
        return None


async def test_full_stock_queue_refuses_at_once_and_finishes_what_it_took(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """The same for inventory commands, in the process: what was refused has no effect, what was taken has one."""
    [sku_id] = await shop.stocked(0)
    policy = WritePolicy(lanes=1, largest_batch=1, queue_limit=5)
    async with open_writes(settings_of(cluster), policy) as service:
        async with database.transaction():
            await database.execute("select from stock where sku_id = $1 for update", sku_id)
            taken = [asyncio.create_task(service.submit(make_order(adjustment((sku_id, 1)))))]
            await wait_until_blocked(database)
            taken += [asyncio.create_task(service.submit(make_order(adjustment((sku_id, 1))))) for _ in range(5)]
            await asyncio.sleep(0)
            began_s = time.monotonic()
            for _ in range(20):
                with pytest.raises(OverloadedError):
                    await service.submit(make_order(adjustment((sku_id, 1))))
            assert time.monotonic() - began_s < 0.5
        receipts = await asyncio.gather(*taken)
    assert {receipt.outcome.status for receipt in receipts} == {200}
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 6


async def test_flood_of_made_up_keys_holds_up_no_command(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """While the look-ups of a thousand prefixes stand before a lock, most are refused; a known key goes on, quickly."""
    [sku_id] = await shop.stocked(0)
    known = shop.http.headers["Authorization"].split("_")[1]
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    async with open_writes(settings_of(cluster), has_chores=False) as service:
        assert await service.look_up_key(known) is not None
        await service.submit(make_order(adjustment((sku_id, 1))))
        async with admin.transaction():
            await admin.execute("lock table atelier.api_key in access exclusive mode")
            flood = [asyncio.create_task(service.look_up_key(f"{n:08}")) for n in range(1_000)]
            asking = asyncio.create_task(service.look_up_key(known))
            await wait_until_blocked(admin, sessions=2)
            async with asyncio.timeout(2):
                receipt = await service.submit(make_order(adjustment((sku_id, 1))))
        record = await asking
        answers = await asyncio.gather(*flood, return_exceptions=True)
    await admin.close()
    assert (receipt.outcome.status, record.prefix) == (200, known)
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert 800 < len(refused) < 1_000
    assert {answer for answer in answers if not isinstance(answer, OverloadedError)} == {None}


async def test_flood_of_questions_for_outcomes_holds_up_no_command(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """The resolver has connections of its own, and few wait for them."""
    [sku_id] = await shop.stocked(0)
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    async with open_writes(settings_of(cluster), has_chores=False) as service:
        await service.submit(make_order(adjustment((sku_id, 1))))
        async with admin.transaction():
            await admin.execute("lock table atelier.command_key in access exclusive mode")
            flood = [asyncio.create_task(service.resolve("nobody", f"key-{n}", service.deadline())) for n in range(500)]
            await wait_until_blocked(admin, sessions=2)
            # A command would stand before the same lock with its key: what it must get soon is a connection.
            async with asyncio.timeout(2), UnitOfWork(service.gateway, service.deadline()) as uow:
                await uow.execute(text("select 1"))
        answers = await asyncio.gather(*flood, return_exceptions=True)
    await admin.close()
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert 400 < len(refused) < 500
    assert {answer.type.status for answer in answers if isinstance(answer, ProblemError)} == {404}


async def test_full_gate_refuses_at_once_and_a_late_turn_is_none() -> None:
    """One inside, one waits, the third is refused; who waited too long asks nothing, and leaves the place free."""
    gate, release = Gate(1, waiting=1), asyncio.Event()

    async def pass_through(within_s: float) -> str:
        async with gate.enter(Deadline.after(within_s, time.monotonic)):
            await release.wait()
            return "asked"

    inside = asyncio.create_task(pass_through(10))
    late = asyncio.create_task(pass_through(0.05))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await pass_through(10)
    with pytest.raises(OverloadedError):
        await late
    release.set()
    assert [await inside, await pass_through(10)] == ["asked", "asked"]


async def test_command_of_many_lines_waits_behind_those_of_few(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Bulk came first and is carried out last."""
    [sku_id, *many] = await shop.stocked(*[0] * 21)
    bulk, quick = adjustment(*((one, 1) for one in many)), adjustment((sku_id, 1))
    assert (weigh(bulk), weigh(quick)) == (WritePolicy().bulk_weight, 1)
    assert weigh(CreateProduct(NewProduct("n", "", "", "", "1"))) == 1
    order: list[str] = []

    async def send(name: str, command: AdjustStock) -> None:
        await service.submit(make_order(command))
        order.append(name)

    async with open_writes(settings_of(cluster), WritePolicy(lanes=1, largest_batch=1)) as service:
        async with database.transaction():
            await database.execute("select from stock where sku_id = $1 for update", sku_id)
            tasks = [asyncio.create_task(send("first", quick))]
            await wait_until_blocked(database)
            tasks += [asyncio.create_task(send("bulk", bulk)) for _ in range(2)]
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(send("quick", quick)) for _ in range(3)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert order == ["first", "quick", "quick", "quick", "bulk", "bulk"]


async def test_conflict_is_tried_again_after_a_random_pause(shop: Shop, cluster: EmbeddedCluster) -> None:
    """Twice a deadlock, then done: one receipt, three attempts, and the dice thrown for each pause."""
    [sku_id] = await shop.stocked(0)
    thrown: list[float] = []

    def throw() -> float:
        thrown.append(0.5)
        return 0.5

    async def stubborn(orders: Sequence[Envelope], uow: UnitOfWork):
        if len(thrown) < 2:
            raise ConflictError
        return await change_stock(orders, uow)

    order = make_order(adjustment((sku_id, 1)))
    async with open_gateway(settings_of(cluster)) as gateway:
        [receipt] = await Dispatcher(gateway, {AdjustStock: stubborn}, random=throw).carry_out([order])
    assert isinstance(receipt, Receipt)
    assert (receipt.outcome.status, order.notes["attempts"], len(thrown)) == (200, 3, 2)


async def test_conflicts_without_end_are_given_up_at_the_deadline(shop: Shop, cluster: EmbeddedCluster) -> None:
    """Overloaded, within the time that the client gave; nothing was done."""
    [sku_id] = await shop.stocked(0)

    async def never(_orders: Sequence[Envelope], _uow: UnitOfWork):
        raise ConflictError

    async with open_gateway(settings_of(cluster)) as gateway:
        began_s = time.monotonic()
        order = make_order(adjustment((sku_id, 1)), within_s=0.5)
        [result] = await Dispatcher(gateway, {AdjustStock: never}, random=lambda: 1.0).carry_out([order])
    assert isinstance(result, OverloadedError)
    assert time.monotonic() - began_s < 2
    assert order.notes["attempts"] > 3


@pytest.mark.parametrize(
    ("happened", "told"),
    [([], OverloadedError), ([ConnectionLostError], PrimaryUnavailableError)],
    ids=["busy", "lost"],
)
async def test_time_that_a_lost_primary_took_is_not_told_as_overload(
    shop: Shop, cluster: EmbeddedCluster, happened: list[type[Exception]], told: type[Exception]
) -> None:
    """The deadline comes in the middle of a statement: of a busy primary, or of one that was lost a moment before."""
    [sku_id] = await shop.stocked(0)
    left = list(happened)

    async def slow(_orders: Sequence[Envelope], uow: UnitOfWork):
        if left:
            raise left.pop()
        await uow.execute(text("select pg_sleep(5)"))

    async with open_gateway(settings_of(cluster)) as gateway:
        order = make_order(adjustment((sku_id, 1)), within_s=0.5)
        [result] = await Dispatcher(gateway, {AdjustStock: slow}, random=lambda: 1.0).carry_out([order])
    assert type(result) is told
    assert order.notes["attempts"] == 1 + len(happened)
