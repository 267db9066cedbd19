"""Gives the stock of expired reservations back. Every writing process sweeps; they pass each other by SKIP LOCKED."""

from datetime import UTC, datetime

from sqlalchemy import text

from atelier.deadline import Deadline
from atelier.writes.inventory import lock_shelves, read_lines, write_room
from atelier.writes.primary import PrimaryGateway
from atelier.writes.rules import Room, give_back
from atelier.writes.unit_of_work import UnitOfWork

_BATCH = 200

# The clock in a subquery is read once, so the index can be used; now() would be the start of the transaction.
_TAKE_DUE = text("""
select reservation_id, state, reason, expires_at from reservation
 where state = 'pending' and expires_at <= (select clock_timestamp())
 order by expires_at limit :batch for update skip locked
""")


async def sweep(gateway: PrimaryGateway, deadline: Deadline) -> int:
    """Expires everything that is due, in batches.

    Returns:
        How many reservations expired.
    """
    expired = 0
    while True:
        found = await _sweep_batch(gateway, deadline)
        expired += found
        if found < _BATCH:
            return expired


async def _sweep_batch(gateway: PrimaryGateway, deadline: Deadline) -> int:
    async with UnitOfWork(gateway, deadline) as uow:
        rows = await uow.execute(_TAKE_DUE, {"batch": _BATCH})
        if not rows:
            return 0
        holds = await read_lines(uow, rows)
        shelves = await lock_shelves(uow, {sku_id for hold in holds.values() for sku_id, _ in hold.lines})
        room = Room(shelves, holds, datetime.now(UTC), [])
        for hold in holds.values():
            give_back(room, hold, "expired")
        write_room(uow, room)
        await uow.commit()
        return len(rows)
