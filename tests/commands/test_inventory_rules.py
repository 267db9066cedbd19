"""Inventory commands over real HTTP: adjustments, counts, reservations, expiry, and what the ledger says of them."""

import asyncio
import re
import time
from collections.abc import Callable

import asyncpg
import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.files import find_files
from atelier.loading.importer import ImportOptions, import_catalogue
from atelier.loading.progress import Silent
from atelier.loading.seed import DEMO_FOLDER
from tests.commands.conftest import Shop, new_key, serving, wait_until_blocked
from tests.support import role_dsn

pytestmark = pytest.mark.anyio


async def stock_of(database: asyncpg.Connection, sku_id: int) -> tuple[int, int]:
    """What is on hand and what is reserved."""
    row = await database.fetchrow("select on_hand, reserved from stock where sku_id = $1", sku_id)
    return row["on_hand"], row["reserved"]


async def ledger_of(database: asyncpg.Connection, sku_id: int) -> list[tuple[str, int]]:
    """Kind and delta of every movement, oldest first."""
    rows = await database.fetch("select kind, delta from stock_movement where sku_id = $1 order by movement_id", sku_id)
    return [(row["kind"], row["delta"]) for row in rows]


async def test_adjustment_is_all_or_nothing(shop: Shop, database: asyncpg.Connection) -> None:
    """One line that lacks stock refuses all, and every lacking line is named."""
    first, second, third = await shop.stocked(5, 1, 0)
    lines = [{"sku_id": first, "delta": 4}, {"sku_id": second, "delta": -2}, {"sku_id": third, "delta": -1}]
    refused = await shop.post("/inventory/adjustments", {"reason": "count", "lines": lines})
    assert refused.status_code == 409
    assert refused.json()["lines"] == [
        {"line": 1, "sku_id": second, "requested": 2, "available": 1},
        {"line": 2, "sku_id": third, "requested": 1, "available": 0},
    ]
    assert await stock_of(database, first) == (5, 0)
    lines[1]["delta"], lines[2]["delta"] = -1, 7
    done = await shop.post("/inventory/adjustments", {"reason": "count", "lines": lines})
    assert done.json()["lines"] == [
        {"sku_id": first, "on_hand": 9, "reserved": 0, "available": 9, "version": 2},
        {"sku_id": second, "on_hand": 0, "reserved": 0, "available": 0, "version": 2},
        {"sku_id": third, "on_hand": 7, "reserved": 0, "available": 7, "version": 2},
    ]
    assert await ledger_of(database, first) == [("initial", 5), ("adjustment", 4)]
    assert await ledger_of(database, third) == [("adjustment", 7)]


async def test_count_needs_the_version_it_saw(shop: Shop, database: asyncpg.Connection) -> None:
    """428 without If-Match, 412 with a stale one, 409 below what is reserved; a count that agrees changes nothing."""
    [sku_id] = await shop.stocked(5)
    path = f"/inventory/{sku_id}"
    assert (await shop.send("PUT", path, {"on_hand": 3})).status_code == 428
    counted = await shop.send("PUT", path, {"on_hand": 3}, If_Match='"1"')
    assert (counted.status_code, counted.headers["ETag"], counted.json()["on_hand"]) == (200, '"2"', 3)
    assert (await shop.send("PUT", path, {"on_hand": 9}, If_Match='"1"')).status_code == 412
    assert (await shop.reserve((sku_id, 2))).status_code == 201
    short = await shop.send("PUT", path, {"on_hand": 1}, If_Match='"3"')
    assert (short.status_code, short.json()["type"]) == (409, "/problems/insufficient-stock")
    same = await shop.send("PUT", path, {"on_hand": 3}, If_Match='"3"')
    assert (same.status_code, same.headers["ETag"]) == (200, '"3"')
    assert await ledger_of(database, sku_id) == [("initial", 5), ("count", -2)]


async def test_confirming_sells_and_releasing_gives_back(shop: Shop, database: asyncpg.Connection) -> None:
    """A reservation leaves pending once; whoever comes later is told how it ended."""
    [sku_id] = await shop.stocked(5)
    sold = await shop.reserve((sku_id, 2))
    given_back = await shop.reserve((sku_id, 3))
    assert sold.json()["state"] == "pending"
    assert sold.headers["Location"] == f"/reservations/{sold.json()['reservation_id']}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", sold.json()["expires_at"])
    assert await stock_of(database, sku_id) == (5, 5)
    assert (await shop.reserve((sku_id, 1))).json()["lines"][0]["available"] == 0
    confirmed = await shop.post(sold.headers["Location"] + "/confirm")
    assert (confirmed.status_code, confirmed.json()["state"]) == (200, "confirmed")
    released = await shop.post(given_back.headers["Location"] + "/release")
    assert (released.status_code, released.json()["state"]) == (200, "released")
    assert await stock_of(database, sku_id) == (3, 0)
    assert await ledger_of(database, sku_id) == [("initial", 5), ("sale", -2)]
    for answer, state in ((sold, "confirmed"), (given_back, "released")):
        for verb in ("confirm", "release"):
            late = await shop.post(f"{answer.headers['Location']}/{verb}")
            assert (late.status_code, late.json()["type"]) == (409, f"/problems/reservation-{state}")


@pytest.mark.soak
async def test_expired_reservation_gives_its_stock_back_by_itself(shop: Shop, database: asyncpg.Connection) -> None:
    """Within a second of its expiry, and a confirm between the two is refused already."""
    [sku_id] = await shop.stocked(5)
    held = (await shop.reserve((sku_id, 2), ttl_seconds=30)).json()["reservation_id"]
    await database.execute(
        "update reservation set expires_at = clock_timestamp() + interval '300 ms' where reservation_id = $1", held
    )
    due_at = asyncio.get_running_loop().time() + 0.3
    while await stock_of(database, sku_id) != (5, 0):
        assert asyncio.get_running_loop().time() < due_at + 1.0, "not given back within a second of its expiry"
        await asyncio.sleep(0.01)
    late = await shop.post(f"/reservations/{held}/confirm")
    assert (late.status_code, late.json()["type"]) == (409, "/problems/reservation-expired")
    assert await ledger_of(database, sku_id) == [("initial", 5)]


@pytest.mark.soak
async def test_confirm_after_the_expiry_is_refused_before_it_was_swept(
    shop: Shop, database: asyncpg.Connection
) -> None:
    """The clock decides, not the sweeper: here the sweeper cannot have come, it skips what is locked."""
    [sku_id] = await shop.stocked(5)
    held = (await shop.reserve((sku_id, 2))).json()["reservation_id"]
    async with database.transaction():
        await database.execute("update reservation set expires_at = clock_timestamp() where reservation_id = $1", held)
        confirming = asyncio.create_task(shop.post(f"/reservations/{held}/confirm"))
        await wait_until_blocked(database)
    refused = await confirming
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/reservation-expired")


@pytest.mark.soak
async def test_reservation_of_stock_that_was_taken_away_by_hand_holds_up_nobody(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """It expires like those that are due with it; before that it can be released, and nothing of it can be sold."""
    lost, kept = await shop.stocked(5, 5)
    held = [(await shop.reserve((lost, 1), (kept, 1))).headers["Location"] for _ in range(3)]
    cluster.primary.sql(f"delete from atelier.stock where sku_id = {lost}", database="atelier")
    refused = await shop.post(f"{held[0]}/confirm")
    assert (refused.status_code, refused.json()["sku_id"]) == (404, lost)
    assert (await shop.post(f"{held[1]}/release")).json()["state"] == "released"
    due = [int(path.rpartition("/")[2]) for path in (held[0], held[2])]
    await database.execute("update reservation set expires_at = clock_timestamp() where reservation_id = any($1)", due)
    async with asyncio.timeout(5):
        while await stock_of(database, kept) != (5, 0):
            await asyncio.sleep(0.01)
    states = "select state from reservation where reservation_id = any($1)"
    assert [row["state"] for row in await database.fetch(states, due)] == ["expired", "expired"]


async def test_movements_outlive_their_sku(shop: Shop) -> None:
    """What was on hand is written off as removed, so the ledger adds up to nothing, and can still be read."""
    [sku_id] = await shop.stocked(5)
    await shop.adjust(sku_id, -2, Idempotency_Key=(adjusted := new_key()))
    gone = await shop.send("DELETE", f"/skus/{sku_id}", Idempotency_Key=(removed := new_key()))
    assert gone.status_code == 204
    assert (await shop.read(f"/inventory/{sku_id}", gone)).status_code == 404
    path = f"/inventory/{sku_id}/movements"
    rows = (await shop.read(path, gone)).json()
    assert [list(row) for row in rows] == [["movement_id", "delta", "kind", "reason", "command_key", "at"]] * 3
    assert [(row["delta"], row["kind"], row["reason"]) for row in rows] == [
        (5, "initial", None),
        (-2, "adjustment", "test"),
        (-3, "removed", None),
    ]
    assert [row["command_key"] for row in rows[1:]] == [adjusted, removed]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["at"]) for row in rows)
    first, second, third = (row["movement_id"] for row in rows)
    assert first < second < third
    assert (await shop.read(f"{path}?after={first}", gone)).json() == rows[1:]
    assert (await shop.read(f"{path}?after={first}&count=1", gone)).json() == rows[1:2]
    assert (await shop.read(f"{path}?after={third}", gone)).json() == []
    assert (await shop.read(f"{path}?after=-1", gone)).status_code == 400


async def test_import_ends_reservations_and_says_so(make_cluster: Callable[..., EmbeddedCluster]) -> None:
    """409 catalogue-replaced to whoever confirms or releases one afterwards, and nothing moves."""
    cluster = await asyncio.to_thread(make_cluster, replicas=0)
    async with serving(cluster) as service:
        headers = {"Authorization": f"Bearer {service.key}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
            shop = Shop(http)
            [sku_id] = await shop.stocked(5)
            held = [(await shop.reserve((sku_id, 1))).headers["Location"] for _ in range(2)]
            await import_catalogue(
                find_files([DEMO_FOLDER]),
                role_dsn(cluster, "migrator"),
                options=ImportOptions(),
                watcher=Silent(),
                clock=time.monotonic,
            )
            for location, verb in zip(held, ("confirm", "release"), strict=True):
                late = await shop.post(f"{location}/{verb}")
                assert (late.status_code, late.json()["type"]) == (409, "/problems/catalogue-replaced"), late.text
                assert (await shop.read(location, late)).json()["state"] == "released"
            # The number is another SKU's now.
            assert (await shop.read(f"/inventory/{sku_id}", late)).json()["reserved"] == 0


async def test_unknown_things_are_not_found(shop: Shop) -> None:
    """404 that names the SKU; it is an outcome, so the key keeps it."""
    [sku_id] = await shop.stocked(5)
    unknown = await shop.reserve((sku_id, 1), (2**62, 1))
    assert (unknown.status_code, unknown.json()["sku_id"]) == (404, 2**62)
    assert (await shop.adjust(2**62, 1)).status_code == 404
    assert (await shop.post(f"/reservations/{2**62}/confirm")).status_code == 404
    assert (await shop.send("PUT", f"/inventory/{2**62}", {"on_hand": 1}, If_Match='"1"')).status_code == 404


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("update stock set on_hand = reserved - 1 where sku_id = $1", "stock_never_oversold"),
        ("update stock set reserved = -1 where sku_id = $1", "stock_reserved_not_negative"),
        ("update stock set reserved = on_hand + 1 where sku_id = $1", "stock_never_oversold"),
    ],
)
async def test_tables_refuse_an_oversold_shelf_whoever_writes(
    shop: Shop, database: asyncpg.Connection, statement: str, constraint: str
) -> None:
    """The CHECK constraints are the last line, also for raw SQL as the writing role."""
    [sku_id] = await shop.stocked(5)
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await database.execute(statement, sku_id)
    assert caught.value.constraint_name == constraint


@pytest.mark.parametrize("table", ["stock_movement", "audit_entry", "audit_seal"])
@pytest.mark.parametrize("statement", ["update {} set {} = null", "delete from {}", "truncate {}"])
async def test_writer_can_only_append_to_ledger_and_audit(
    database: asyncpg.Connection, table: str, statement: str
) -> None:
    """No UPDATE, DELETE or TRUNCATE for the role that the service writes with."""
    column = "sealed_at" if table == "audit_seal" else "at"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.execute(statement.format(table, column))
