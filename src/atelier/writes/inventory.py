"""The handler of all inventory commands: lock, decide by the rules, write, set by set. Never commits.

Lock classes in their order: reservations, then stock, each sorted (the command keys were taken before, the order
lock comes inside COMMIT). Every statement has a snapshot of its own, so what is read is what is locked.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from sqlalchemy import text

from atelier.writes.commands import (
    AdjustStock,
    Command,
    ConfirmReservation,
    CountStock,
    ReleaseReservation,
    ReserveStock,
)
from atelier.writes.envelope import Envelope
from atelier.writes.rules import Hold, Movement, Room, Shelf, adjust, confirm, count, release, reserve
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Verdict

_RULES: dict[type[Command], Callable[[Room, Any, str], Verdict]] = {
    AdjustStock: adjust,
    CountStock: count,
    ReserveStock: reserve,
    ConfirmReservation: confirm,
    ReleaseReservation: release,
}

INVENTORY_COMMANDS = frozenset(_RULES)

_LOCK_HOLDS = text("""
select reservation_id, state, reason, expires_at from reservation
 where reservation_id = any(cast(:ids as bigint[])) order by reservation_id for update
""")
_LINES = text("""
select reservation_id, sku_id, quantity from reservation_line
 where reservation_id = any(cast(:ids as bigint[])) order by reservation_id, line
""")
# A key is never changed, so "no key update" is enough, and does not stand in the way of foreign keys.
_LOCK_STOCK = text("""
select sku_id, on_hand, reserved, version from stock
 where sku_id = any(cast(:ids as bigint[])) order by sku_id for no key update
""")
_DRAW = text("""
select clock_timestamp() as now,
       array(select nextval('reservation_id_seq') from generate_series(1, cast(:wanted as integer))) as ids
""")
# One final value per SKU: an UPDATE ... FROM that finds two for one row applies either of them.
_WRITE_STOCK = text("""
update stock
   set on_hand = new.on_hand, reserved = new.reserved, version = new.version
  from unnest(cast(:sku_ids as bigint[]), cast(:on_hand as integer[]), cast(:reserved as integer[]),
              cast(:versions as bigint[])) as new (sku_id, on_hand, reserved, version)
 where stock.sku_id = new.sku_id
""")
_WRITE_LEDGER = text("""
insert into stock_movement (catalogue_id, sku_id, delta, kind, reason, command_key)
select (select catalogue_id from current_catalogue), new.*
  from unnest(cast(:moved as bigint[]), cast(:deltas as integer[]), cast(:kinds as text[]),
              cast(:reasons as text[]), cast(:keys as text[])) as new
""")
_MAKE_HOLDS = text("""
insert into reservation (reservation_id, catalogue_id, state, expires_at, settled_at)
select new.id, (select catalogue_id from current_catalogue), new.state, new.expires_at,
       case when new.state <> 'pending' then clock_timestamp() end
  from unnest(cast(:made as bigint[]), cast(:states as text[]), cast(:expire as timestamptz[]))
    as new (id, state, expires_at)
""")
_MAKE_LINES = text("""
insert into reservation_line (reservation_id, line, sku_id, quantity)
select new.* from unnest(cast(:line_of as bigint[]), cast(:lines as smallint[]), cast(:skus as bigint[]),
                         cast(:quantities as integer[])) as new
""")
_SETTLE_HOLDS = text("""
update reservation set state = new.state, settled_at = clock_timestamp()
  from unnest(cast(:settled as bigint[]), cast(:states as text[])) as new (id, state)
 where reservation_id = new.id
""")


async def change_stock(orders: Sequence[Envelope], uow: UnitOfWork) -> list[Verdict]:
    """Carries out inventory commands of all kinds, in arrival order, all in one transaction.

    Returns:
        One verdict each. A refused command changed nothing, and nothing of its neighbours.
    """
    room = await enter_room(uow, orders)
    verdicts = [_RULES[type(order.command)](room, order.command, order.key) for order in orders]
    write_room(uow, room)
    return verdicts


async def enter_room(uow: UnitOfWork, orders: Sequence[Envelope]) -> Room:
    """Locks everything that the commands touch and reads it."""
    commands = [order.command for order in orders]
    holds = await lock_holds(
        uow, {c.reservation_id for c in commands if isinstance(c, ConfirmReservation | ReleaseReservation)}
    )
    sku_ids = {sku_id for command in commands for sku_id in _skus_of(command)}
    sku_ids |= {sku_id for hold in holds.values() if hold.state == "pending" for sku_id, _ in hold.lines}
    shelves = await lock_shelves(uow, sku_ids)
    wanted = sum(isinstance(command, ReserveStock) for command in commands)
    now, new_ids = datetime.min.replace(tzinfo=UTC), []
    # The clock is read after the locks, not taken from the transaction's start: expiry is a matter of now.
    if wanted or holds:
        row = (await uow.execute(_DRAW, {"wanted": wanted}))[0]
        now, new_ids = row.now, list(row.ids)
    return Room(shelves, holds, now, new_ids)


async def lock_holds(uow: UnitOfWork, ids: Iterable[int]) -> dict[int, Hold]:
    """Locks reservations, sorted, and reads them with their lines."""
    wanted = sorted(ids)
    if not wanted:
        return {}
    rows = await uow.execute(_LOCK_HOLDS, {"ids": wanted})
    return await read_lines(uow, rows)


async def read_lines(uow: UnitOfWork, rows: Sequence[Any]) -> dict[int, Hold]:
    """Makes reservations of locked rows."""
    lines = await uow.execute(_LINES, {"ids": [row.reservation_id for row in rows]})
    by_id = {
        reservation_id: [(line.sku_id, line.quantity) for line in group]
        for reservation_id, group in groupby(lines, key=lambda line: line.reservation_id)
    }
    return {
        row.reservation_id: Hold(
            row.reservation_id, row.state, row.reason, row.expires_at, by_id.get(row.reservation_id, [])
        )
        for row in rows
    }


async def lock_shelves(uow: UnitOfWork, sku_ids: Iterable[int]) -> dict[int, Shelf]:
    """Locks stock rows, sorted, and reads them."""
    wanted = sorted(sku_ids)
    rows = await uow.execute(_LOCK_STOCK, {"ids": wanted}) if wanted else ()
    return {row.sku_id: Shelf(row.sku_id, row.on_hand, row.reserved, row.version) for row in rows}


def write_room(uow: UnitOfWork, room: Room) -> None:
    """Leaves what was decided to the commit: reservations, stock, ledger."""
    made = [hold for hold in room.holds.values() if hold.is_new]
    settled = [hold for hold in room.holds.values() if hold.changed and not hold.is_new]
    shelves = [shelf for shelf in room.shelves.values() if shelf.changed]
    if made:
        uow.defer(_MAKE_HOLDS, _hold_columns(made))
        uow.defer(_MAKE_LINES, _line_columns(made))
    if settled:
        uow.defer(
            _SETTLE_HOLDS,
            {"settled": [hold.reservation_id for hold in settled], "states": [hold.state for hold in settled]},
        )
    if shelves:
        uow.defer(_WRITE_STOCK, _stock_columns(shelves))
    if room.movements:
        uow.defer(_WRITE_LEDGER, _movement_columns(room.movements))


def _stock_columns(shelves: Sequence[Shelf]) -> dict[str, Any]:
    return {
        "sku_ids": [shelf.sku_id for shelf in shelves],
        "on_hand": [shelf.on_hand for shelf in shelves],
        "reserved": [shelf.reserved for shelf in shelves],
        "versions": [shelf.version for shelf in shelves],
    }


def _movement_columns(movements: Sequence[Movement]) -> dict[str, Any]:
    return {
        "moved": [movement.sku_id for movement in movements],
        "deltas": [movement.delta for movement in movements],
        "kinds": [movement.kind for movement in movements],
        "reasons": [movement.reason for movement in movements],
        "keys": [movement.command_key for movement in movements],
    }


def _hold_columns(made: Sequence[Hold]) -> dict[str, Any]:
    return {
        "made": [hold.reservation_id for hold in made],
        "states": [hold.state for hold in made],
        "expire": [hold.expires_at for hold in made],
    }


def _line_columns(made: Sequence[Hold]) -> dict[str, Any]:
    lines = [(hold.reservation_id, index, *line) for hold in made for index, line in enumerate(hold.lines)]
    return {
        "line_of": [line[0] for line in lines],
        "lines": [line[1] for line in lines],
        "skus": [line[2] for line in lines],
        "quantities": [line[3] for line in lines],
    }


def _skus_of(command: Command) -> Iterable[int]:
    if isinstance(command, AdjustStock | ReserveStock):
        return (line.sku_id for line in command.body.lines)
    return (command.sku_id,) if isinstance(command, CountStock) else ()
