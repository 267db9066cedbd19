"""Many at once on the same few SKUs: nothing oversold, nothing twice, no deadlock. With controls that break a rule."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import count

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.problems import ProblemError
from atelier.writes import dispatch, inventory
from atelier.writes.commands import (
    ConfirmReservation,
    Count,
    CountStock,
    CreateSku,
    DeleteProduct,
    DeleteSku,
    DeleteStyle,
    PatchProduct,
    PatchStyle,
    ProductPatch,
    ReleaseReservation,
    ReplaceRelated,
    Reservation,
    ReservationLine,
    ReserveStock,
    Sku,
    StylePatch,
    VersionMatch,
)
from atelier.writes.envelope import Receipt
from atelier.writes.idempotency import Unclaimed
from atelier.writes.policy import WritePolicy
from atelier.writes.service import WriteService
from tests.commands.conftest import Shop, broken_shelves, new_key, product, style, wait_until_blocked
from tests.commands.writing import adjustment, make_order, open_writes, settings_of
from tests.support import role_dsn

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

# Products that are sold and deleted at the same time.
_AT_ONCE = 3
# Small batches and several lanes, so that transactions really meet.
CROWDED = WritePolicy(lanes=4, largest_batch=3, sweep_interval_s=0.01)


@pytest.fixture
async def writes(cluster: EmbeddedCluster) -> AsyncIterator[WriteService]:
    """The writing side of one process."""
    async with open_writes(settings_of(cluster)) as service:
        yield service


def reserving(*lines: tuple[int, int], ttl_seconds: int = 300) -> ReserveStock:
    """A command that reserves: SKU and quantity of each line."""
    return ReserveStock(Reservation([ReservationLine(sku_id, quantity) for sku_id, quantity in lines], ttl_seconds))


async def test_sixty_four_clients_sell_exactly_what_there_is(shop: Shop, database: asyncpg.Connection) -> None:
    """1,000 units, 1,280 attempts over HTTP: exactly 1,000 sold, the rest refused, nothing left."""
    [sku_id] = await shop.stocked(1_000)

    async def buy() -> list[int]:
        return [(await shop.adjust(sku_id, -1)).status_code for _ in range(20)]

    codes = [code for bought in await asyncio.gather(*(buy() for _ in range(64))) for code in bought]
    assert (codes.count(200), codes.count(409)) == (1_000, 280)
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 0
    assert await broken_shelves(database, [sku_id]) == []


async def test_sixty_four_clients_reserve_and_confirm_exactly_what_there_is(
    shop: Shop, database: asyncpg.Connection
) -> None:
    """The same by way of reservations: 1,000 of 1,280 are made and confirmed, and the ledger has a sale for each."""
    [sku_id] = await shop.stocked(1_000)

    async def buy() -> list[int]:
        codes = []
        for _ in range(20):
            made = await shop.reserve((sku_id, 1))
            codes.append(made.status_code)
            if made.status_code == 201:
                codes.append((await shop.post(f"/reservations/{made.json()['reservation_id']}/confirm")).status_code)
        return codes

    codes = [code for bought in await asyncio.gather(*(buy() for _ in range(64))) for code in bought]
    assert (codes.count(201), codes.count(200), codes.count(409)) == (1_000, 1_000, 280)
    sold = "select count(*), sum(delta), count(distinct command_key) as keys from stock_movement where sku_id = $1"
    assert tuple(await database.fetchrow(f"{sold} and kind = 'sale'", sku_id)) == (1_000, -1_000, 1_000)
    shelf = await database.fetchrow("select on_hand, reserved from stock where sku_id = $1", sku_id)
    assert tuple(shelf) == (0, 0)
    assert await broken_shelves(database, [sku_id]) == []


@dataclass(frozen=True)
class Doomed:
    """A product that is changed while it is sold, and may be deleted, whole or in parts."""

    product_id: int
    styles: list[int]
    skus: list[int]


async def run_mix(
    services: Sequence[WriteService], skus: Sequence[int], *, seed: int, commands: int, doomed: Sequence[Doomed] = ()
) -> int:
    """Sends a mix with crossing lines to several writing processes at once; returns how many were done.

    Args:
        services: the processes.
        skus: what the commands are about.
        seed: of the mix.
        commands: how many.
        doomed: products that are changed and deleted meanwhile, each as soon as none of it is reserved.
    """
    dice, held, sent = random.Random(seed), list[int](), count()

    async def send() -> int:
        # All at a few products, one after the other: who removes one meets others on several of its shelves.
        begin = next(sent) * max(0, len(doomed) - _AT_ONCE) // commands
        among = doomed[begin : begin + _AT_ONCE]
        near = [sku_id for one in among for sku_id in one.skus] if among else skus
        command = _draw_product(dice, among) if among and dice.random() < 0.3 else _draw(dice, held, near)
        receipt = await dice.choice(services).submit(make_order(command, within_s=30))
        assert isinstance(receipt, Receipt)
        expected = {200, 201, 204, 404, 409} | ({400} if isinstance(command, ReplaceRelated) else set())
        assert receipt.outcome.status in expected, receipt.outcome.body
        if isinstance(command, ReserveStock) and receipt.outcome.status == 201:
            held.append(int(receipt.outcome.headers["Location"].rsplit("/", 1)[1]))
        return receipt.outcome.status in (200, 201, 204)

    async def send_many() -> int:
        return sum([await send() for _ in range(commands // 40)])

    return sum(await asyncio.gather(*(send_many() for _ in range(40))))


def _draw(dice: random.Random, held: list[int], skus: Sequence[int]):
    lines = [(sku_id, dice.randint(1, 3)) for sku_id in dice.sample(skus, dice.randint(2, 4))]
    kind = dice.random()
    if kind < 0.3 or not held:
        return reserving(*lines)
    if kind < 0.5:
        return adjustment(*((sku_id, dice.choice((-1, 1)) * quantity) for sku_id, quantity in lines))
    chosen = dice.choice(held)
    return ConfirmReservation(chosen) if kind < 0.75 else ReleaseReservation(chosen)


def _draw_product(dice: random.Random, doomed: Sequence[Doomed]):
    one, other = dice.sample(doomed, 2)
    style_id, sku_id, any_version = dice.choice(one.styles), dice.choice(one.skus), VersionMatch()
    kinds = {
        DeleteProduct: lambda: DeleteProduct(one.product_id, any_version),
        DeleteStyle: lambda: DeleteStyle(style_id, any_version),
        DeleteSku: lambda: DeleteSku(sku_id, any_version),
        CreateSku: lambda: CreateSku(style_id, Sku("XL", 5), any_version),
        PatchStyle: lambda: PatchStyle(style_id, StylePatch(is_default=True), any_version),
        PatchProduct: lambda: PatchProduct(one.product_id, ProductPatch(slogan="still here"), any_version),
        CountStock: lambda: CountStock(sku_id, Count(dice.randint(0, 200)), any_version),
        ReplaceRelated: lambda: ReplaceRelated(
            one.product_id, [other.product_id, one.product_id, other.product_id], any_version
        ),
    }
    [kind] = dice.choices(list(kinds), weights=[3, 3, 2, 3, 3, 2, 3, 4])
    return kinds[kind]()


def count_deadlocks(cluster: EmbeddedCluster) -> int:
    """As many as the primary has written into its log, before it told anybody; its statistics are a second late."""
    return cluster.primary.log.read_text(errors="replace").count("deadlock detected")


async def test_no_mix_of_commands_and_expiry_ever_deadlocks(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Two writers, eight lanes, crossing lines, sweepers that find work: the server counts no deadlock."""
    skus = await shop.stocked(*[500] * 8)
    before = count_deadlocks(cluster)
    async with open_writes(settings_of(cluster), CROWDED) as one, open_writes(settings_of(cluster), CROWDED) as two:
        expiring = asyncio.create_task(expire_some(database, skus))
        done = await run_mix([one, two], skus, seed=7, commands=1_200)
        expiring.cancel()
    assert done > 400
    assert count_deadlocks(cluster) == before
    assert await broken_shelves(database, skus) == []


async def test_no_mix_with_deleted_products_ever_deadlocks(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Products, styles and SKUs come and go, lists of others change, while all is reserved, counted and sold."""
    doomed = [await make_product(shop) for _ in range(32)]
    skus = [sku_id for one in doomed for sku_id in one.skus]
    for one, other in zip(doomed, doomed[1:] + doomed[:1], strict=True):
        related = await shop.send("PUT", f"/products/{one.product_id}/related", [other.product_id])
        assert related.status_code == 200
    before = count_deadlocks(cluster)
    async with open_writes(settings_of(cluster), CROWDED) as one, open_writes(settings_of(cluster), CROWDED) as two:
        expiring = asyncio.create_task(expire_some(database, skus, at_once=60))
        done = await run_mix([one, two], skus, seed=13, commands=1_600, doomed=doomed)
        expiring.cancel()
    assert done > 200
    assert count_deadlocks(cluster) == before
    made = await database.fetch(
        "select sku.id from sku join style on style.id = style_id where product_id = any($1)",
        [one.product_id for one in doomed],
    )
    assert await broken_shelves(database, [*skus, *(row["id"] for row in made)]) == []
    assert {row["id"] for row in made} - set(skus), "no SKU was ever added"
    for table, ids in (
        ("product", [one.product_id for one in doomed]),
        ("style", [style_id for one in doomed for style_id in one.styles]),
        ("sku", skus),
    ):
        left = await database.fetchval(f"select count(*) from {table} where id = any($1)", ids)
        assert left < len(ids), f"no {table} was ever deleted"
    orphans = "select count(*) from reservation_line join reservation using (reservation_id) where sku_id = any($1) "
    assert not await database.fetchval(
        orphans + "and state = 'pending' and sku_id not in (select sku_id from stock)", skus
    )


async def make_product(shop: Shop) -> Doomed:
    """A product of two styles with two SKUs each, and enough of each."""
    made = await shop.post("/products", product(styles=[style(200, 200), style(200, 200, **{"default?": False})]))
    assert made.status_code == 201, made.text
    styles = (await shop.read(f"/products/{made.json()['id']}/styles", made)).json()["results"]
    skus = [int(sku_id) for one in styles for sku_id in one["skus"]]
    return Doomed(made.json()["id"], [one["style_id"] for one in styles], skus)


def lock_unsorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock in any order."""
    sorted_lock = inventory.lock_shelves

    async def lock_shelves(uow, sku_ids):
        shelves = {}
        for sku_id in random.sample(sorted(sku_ids), len(sku_ids)):
            shelves |= await sorted_lock(uow, [sku_id])
        return shelves

    monkeypatch.setattr(inventory, "lock_shelves", lock_shelves)


def lock_stock_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock before the reservations that hold it; the sweeper goes by the order as it is."""
    in_order = inventory.lock_holds

    async def lock_holds(uow, ids):
        lines = await uow.execute(inventory._LINES, {"ids": sorted(ids)})
        await inventory.lock_shelves(uow, {line.sku_id for line in lines})
        return await in_order(uow, ids)

    monkeypatch.setattr(inventory, "lock_holds", lock_holds)


@pytest.mark.parametrize("break_order", [lock_unsorted, lock_stock_first])
async def test_control_locks_in_another_order_do_deadlock(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, break_order
) -> None:
    """The hunt above would catch a wrong order: the server counts deadlocks, and nothing is oversold all the same."""
    break_order(monkeypatch)
    skus = await shop.stocked(*[50_000] * 4)
    before = count_deadlocks(cluster)
    watching = await asyncpg.connect(role_dsn(cluster, "writer"))
    async with open_writes(settings_of(cluster), CROWDED) as one:
        expiring = asyncio.create_task(expire_some(database, skus))
        running = asyncio.create_task(run_mix([one], skus, seed=7, commands=100_000))
        try:
            async with asyncio.timeout(60):
                while count_deadlocks(cluster) == before:
                    assert not running.done(), "all of the mix was carried out without a deadlock"
                    await asyncio.sleep(0.1)
        finally:
            for task in (expiring, running):
                task.cancel()
            await asyncio.gather(expiring, running, return_exceptions=True)
    assert await broken_shelves(watching, skus) == []
    await watching.close()


async def expire_some(database: asyncpg.Connection, skus: Sequence[int], *, at_once: int = 3) -> None:
    """Makes pending reservations due, again and again."""
    while True:
        await database.execute(
            """
            update reservation set expires_at = clock_timestamp()
             where reservation_id in (
                select reservation_id from reservation join reservation_line using (reservation_id)
                 where state = 'pending' and sku_id = any($1) order by random() limit $2
                 for update of reservation skip locked)
            """,
            skus,
            at_once,
        )
        await asyncio.sleep(0.02)


async def test_two_writers_expire_every_reservation_once(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster, writes: WriteService
) -> None:
    """300 due at the same moment, on the same SKU: all given back within a second, none twice."""
    [sku_id] = await shop.stocked(300)
    receipts = await asyncio.gather(*(writes.submit(make_order(reserving((sku_id, 1)))) for _ in range(300)))
    ids = [int(receipt.outcome.headers["Location"].rsplit("/", 1)[1]) for receipt in receipts]
    version = await database.fetchval("select version from stock where sku_id = $1", sku_id)
    async with open_writes(settings_of(cluster), CROWDED), open_writes(settings_of(cluster), CROWDED):
        await database.execute(
            "update reservation set expires_at = clock_timestamp() where reservation_id = any($1)", ids
        )
        async with asyncio.timeout(1):
            while await database.fetchval("select reserved from stock where sku_id = $1", sku_id):
                await asyncio.sleep(0.01)
    states = await database.fetch("select distinct state from reservation where reservation_id = any($1)", ids)
    assert [row["state"] for row in states] == ["expired"]
    assert await database.fetchval("select version from stock where sku_id = $1", sku_id) == version + 300
    assert await broken_shelves(database, [sku_id]) == []


async def test_sweeper_passes_what_another_one_has_and_gives_the_rest_back(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Ten are due at once and somebody has four of them: six expire meanwhile, and the four when they are let go."""
    [sku_id] = await shop.stocked(10)
    ids = [int((await shop.reserve((sku_id, 1))).headers["Location"].rpartition("/")[2]) for _ in range(10)]
    reserved = "select reserved from stock where sku_id = $1"
    elsewhere = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        async with elsewhere.transaction():
            # In the way of a sweeper, and not of the update that makes them due.
            await elsewhere.execute("select from reservation where reservation_id = any($1) for key share", ids[:4])
            due = "update reservation set expires_at = clock_timestamp() where reservation_id = any($1)"
            await database.execute(due, ids)
            async with asyncio.timeout(5):
                while await database.fetchval(reserved, sku_id) != 4:
                    await asyncio.sleep(0.01)
    finally:
        await elsewhere.close()
    async with asyncio.timeout(5):
        while await database.fetchval(reserved, sku_id):
            await asyncio.sleep(0.01)
    assert await broken_shelves(database, [sku_id]) == []


async def test_command_that_the_server_ends_as_a_deadlock_is_carried_out_all_the_same(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Somebody locks two shelves by hand, the other way round: the command's transaction is ended, and begun anew."""
    low, high = sorted(await shop.stocked(5, 5))
    before = count_deadlocks(cluster)
    by_hand, gate = [
        await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier") for _ in range(2)
    ]
    lock = "select from atelier.stock where sku_id = $1 for update"
    order = make_order(adjustment((low, 1), (high, 1)))
    try:
        # Looks for circles only when the other one has done so.
        await by_hand.execute("set deadlock_timeout = '60s'; begin")
        await by_hand.execute(lock, high)
        async with open_writes(settings_of(cluster), has_chores=False) as writes:
            # Both are in the queue for the low one, the command first, before anybody can have it.
            async with gate.transaction():
                await gate.execute(lock, low)
                adjusting = asyncio.create_task(writes.submit(order))
                await wait_until_blocked(gate)
                crossing = asyncio.create_task(by_hand.execute(lock, low))
                async with asyncio.timeout(10):
                    while not await database.fetchval("select pg_blocking_pids($1)", by_hand.get_server_pid()):
                        await asyncio.sleep(0.01)
            await crossing
            await by_hand.execute("commit")
            assert (await adjusting).outcome.status == 200
    finally:
        for connection in (by_hand, gate):
            connection.terminate()
    assert order.notes["attempts"] > 1
    assert count_deadlocks(cluster) == before + 1
    rows = await database.fetch("select on_hand from stock where sku_id = any($1)", [low, high])
    assert [row["on_hand"] for row in rows] == [6, 6]


async def test_one_refused_by_the_database_fails_none_of_its_neighbours(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """A NUL that no decoder caught: its batch is carried out one by one, and it alone is refused."""
    [sku_id] = await shop.stocked(0)
    async with open_writes(settings_of(cluster), WritePolicy(lanes=1)) as service:
        orders = [make_order(adjustment((sku_id, 1))) for _ in range(20)]
        bad = adjustment((sku_id, 1))
        orders[10] = make_order(type(bad)(type(bad.body)("a\0b", bad.body.lines)))
        results = await service.dispatcher.carry_out(orders)
    assert isinstance(results[10], ProblemError)
    assert sum(isinstance(result, Receipt) and result.outcome.status == 200 for result in results) == 19
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 19


async def test_batch_is_decided_in_arrival_order_on_one_final_value(
    shop: Shop, database: asyncpg.Connection, writes: WriteService
) -> None:
    """Ten commands on one SKU in one transaction: each sees what those before it left, one announcement comes out."""
    [sku_id] = await shop.stocked(5)
    deltas = [-3, -3, 4, -6, 1, -1, -1, 10, -11, 2]
    orders = [make_order(adjustment((sku_id, delta))) for delta in deltas]
    statuses = [result.outcome.status for result in await writes.dispatcher.carry_out(orders)]
    assert statuses == [200, 409, 200, 200, 200, 200, 409, 200, 409, 200]
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 12
    rows = await database.fetch("select available, version from outbox where sku_id = $1 order by position", sku_id)
    assert [tuple(row) for row in rows] == [(5, 1), (12, 8)]
    assert await broken_shelves(database, [sku_id]) == []


async def apply_twice(service: WriteService, sku_id: int) -> None:
    """The same key twice, one after the other."""
    key = new_key()
    for _ in range(2):
        await service.submit(make_order(adjustment((sku_id, 1)), key=key))


async def test_control_without_the_key_check_a_command_is_applied_twice(
    shop: Shop, database: asyncpg.Connection, writes: WriteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the check once; without it, and without the key's row, twice: the check is what does it."""
    [sku_id] = await shop.stocked(0)
    await apply_twice(writes, sku_id)
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 1

    async def claim_nothing(_uow, orders):
        return [Unclaimed() for _ in orders]

    def record_nothing(*_arguments):
        return None

    monkeypatch.setattr(dispatch, "claim_keys", claim_nothing)
    monkeypatch.setattr(dispatch, "record_outcomes", record_nothing)
    await apply_twice(writes, sku_id)
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 3


async def test_control_without_the_constraint_a_shelf_can_be_oversold(shop: Shop, cluster: EmbeddedCluster) -> None:
    """The refusal of raw SQL is the constraint's doing: dropped (and rolled back), the same statement passes."""
    [sku_id] = await shop.stocked(5)
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    oversell = "update atelier.stock set reserved = on_hand + 1 where sku_id = $1"
    try:
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("alter table atelier.stock drop constraint stock_never_oversold")
        assert await admin.execute(oversell, sku_id) == "UPDATE 1"
        await transaction.rollback()
        with pytest.raises(asyncpg.CheckViolationError):
            await admin.execute(oversell, sku_id)
    finally:
        await admin.close()
