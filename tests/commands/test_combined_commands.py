"""Different inventory commands in one transaction: everything of each is written, and one position stands for all."""

import asyncio

import asyncpg
import msgspec
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.writes.commands import (
    ConfirmReservation,
    Count,
    CountStock,
    ReleaseReservation,
    Reservation,
    ReservationLine,
    ReserveStock,
    VersionMatch,
)
from atelier.writes.policy import WritePolicy
from tests.commands.conftest import Shop, broken_shelves, new_key, open_shop, serving
from tests.commands.writing import adjustment, make_order, open_writes, settings_of

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


async def test_every_kind_in_one_transaction_with_all_its_rows(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Adjust, count, reserve, confirm and release together: keys, audit, ledger and reservations, one token."""
    first, second = await shop.stocked(10, 10)
    sold, given_back = [(await shop.reserve((first, 2))).json()["reservation_id"] for _ in range(2)]
    version = await database.fetchval("select version from stock where sku_id = $1", second)
    commands = [
        adjustment((first, 5), (second, -1)),
        ConfirmReservation(sold),
        ReserveStock(Reservation([ReservationLine(first, 3), ReservationLine(second, 4)], 300)),
        adjustment((second, -6)),
        ReleaseReservation(given_back),
        CountStock(second, Count(8), VersionMatch((version + 2,))),
        ReserveStock(Reservation([ReservationLine(first, 1)], 300)),
    ]
    orders = [make_order(command) for command in commands]
    keys = [order.key for order in orders]
    async with open_writes(settings_of(cluster), WritePolicy(lanes=1)) as service:
        receipts = await service.dispatcher.carry_out(orders)
    assert [receipt.outcome.status for receipt in receipts] == [200, 200, 201, 409, 200, 200, 201]
    assert len({receipt.token for receipt in receipts}) == 1
    rows = await database.fetch(
        "select key, status, cast(xmin as text) as transaction from command_key where key = any($1)", keys
    )
    assert {row["key"]: row["status"] for row in rows} == {
        key: receipt.outcome.status for key, receipt in zip(keys, receipts, strict=True)
    }
    assert len({row["transaction"] for row in rows}) == 1
    audited = await database.fetch(
        "select command_key from audit_entry where command_key = any($1) order by entry_id", keys
    )
    assert [row["command_key"] for row in audited] == keys
    ledger = await database.fetch(
        "select command_key, sku_id, kind, delta from stock_movement where command_key = any($1) order by movement_id",
        keys,
    )
    assert [(keys.index(row["command_key"]), row["sku_id"], row["kind"], row["delta"]) for row in ledger] == [
        (0, first, "adjustment", 5), (0, second, "adjustment", -1), (1, first, "sale", -2), (5, second, "count", -1),
    ]  # fmt: skip
    made = [msgspec.json.decode(receipts[index].outcome.body)["reservation_id"] for index in (2, 6)]
    states = await database.fetch(
        "select state from reservation where reservation_id = any($1) order by reservation_id",
        [sold, given_back, *made],
    )
    assert [row["state"] for row in states] == ["confirmed", "released", "pending", "pending"]
    shelves = await database.fetch(
        "select on_hand, reserved from stock where sku_id = any($1) order by sku_id", [first, second]
    )
    assert [tuple(row) for row in shelves] == [(13, 4), (8, 4)]
    assert await broken_shelves(database, [first, second]) == []


@pytest.mark.parametrize(("batch", "is_combined"), [("256", True), ("1", False)])
async def test_combining_can_be_switched_off(
    cluster: EmbeddedCluster, database: asyncpg.Connection, batch: str, *, is_combined: bool
) -> None:
    """What it is worth is measured so; every command has a transaction of its own then, and the same effect."""
    settings = {"ATELIER_COMMAND_BATCH": batch, "ATELIER_COMMAND_LANES": "1"}
    async with serving(cluster, **settings) as service, open_shop(service) as shop:
        [sku_id] = await shop.stocked(0)
        keys = [new_key() for _ in range(40)]
        answers = await asyncio.gather(*(shop.adjust(sku_id, 1, Idempotency_Key=key) for key in keys))
    assert {answer.status_code for answer in answers} == {200}
    assert await database.fetchval("select on_hand from stock where sku_id = $1", sku_id) == 40
    transactions = await database.fetchval(
        "select count(distinct xid) from audit_entry where command_key = any($1)", keys
    )
    assert (transactions < 40) == is_combined
