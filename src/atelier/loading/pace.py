"""Keeps an import at a pace that the replicas can follow.

Each replica's slot makes the primary keep the WAL that the replica has not fetched, up to `max_slot_wal_keep_size`;
beyond it the slot is lost and the replica has to be cloned again. So the import waits when a slot has used half of
that, until it is down to a quarter.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from atelier.deadline import Clock
from atelier.loading.session import Connection, LoadingError

_SLOTS = """
select slot_name as name, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as kept_bytes,
       pg_size_bytes(current_setting('max_slot_wal_keep_size')) as limit_bytes
  from pg_replication_slots where slot_type = 'physical' and restart_lsn is not null
"""
# Where slots may keep WAL without bound they are never lost, but the disk fills.
_UNBOUNDED_LIMIT_BYTES = 4 << 30
_CHECK_INTERVAL_S = 0.5
_STALL_S = 120.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Slot:
    """One replica's slot: how much WAL it keeps, and how much it may."""

    name: str
    active: bool
    kept_bytes: int
    limit_bytes: int


def must_wait(slots: list[Slot], *, coming_bytes: int, waiting: bool) -> Slot | None:
    """Decides whether the import has to wait, and for which slot.

    Args:
        slots: as they are now. A slot that nobody is connected to does not count: nobody would catch up.
        coming_bytes: how much WAL the next step writes at once.
        waiting: it waits already, and goes on only when there is room for a while.

    Returns:
        The slot that is furthest behind; None to go on. A replica that has all WAL but a few MiB is never waited for.
    """
    share = 4 if waiting else 2
    behind = [
        slot
        for slot in slots
        if slot.active
        and slot.kept_bytes > min(64 * _MIB, slot.limit_bytes // 8)
        and (slot.kept_bytes > slot.limit_bytes // share or slot.kept_bytes + coming_bytes > slot.limit_bytes * 3 // 4)
    ]
    return max(behind, key=lambda slot: slot.kept_bytes, default=None)


class Pace:
    """Waits when a replica falls too far behind, and says so. One for each connection that writes."""

    def __init__(self, connection: Connection, *, clock: Clock, say: Callable[[str], None]) -> None:
        """Takes the connection that it asks on: the one whose work it paces."""
        self._connection = connection
        self._clock = clock
        self._say = say
        self._checked_at_s = float("-inf")
        self._mentioned: set[str] = set()

    async def keep(self, coming_bytes: int = 0) -> None:
        """Returns when the replicas have room for the next step.

        Args:
            coming_bytes: how much WAL it writes in one piece that cannot be paced; 0 for a small one.

        Raises:
            LoadingError: a connected replica has not fetched anything for two minutes.
        """
        if not coming_bytes and self._clock() - self._checked_at_s < _CHECK_INTERVAL_S:
            return
        slots = await self._slots()
        slot = must_wait(slots, coming_bytes=coming_bytes, waiting=False)
        if slot:
            await self._wait_for(slot, coming_bytes)

    async def _wait_for(self, slot: Slot | None, coming_bytes: int) -> None:
        best_bytes, best_at_s, said = None, self._clock(), None
        while slot:
            if said != slot.name:
                self._say(
                    f"waiting for replica {slot.name}: it has {slot.kept_bytes // _MIB} MiB to fetch"
                    f" and its slot keeps {slot.limit_bytes // _MIB} MiB"
                )
                said = slot.name
            if best_bytes is None or slot.kept_bytes < best_bytes:
                best_bytes, best_at_s = slot.kept_bytes, self._clock()
            elif self._clock() - best_at_s > _STALL_S:
                raise LoadingError(f"replica {slot.name} fetches nothing; going on would cost it its slot")
            await asyncio.sleep(_CHECK_INTERVAL_S)
            slot = must_wait(await self._slots(), coming_bytes=coming_bytes, waiting=True)

    async def _slots(self) -> list[Slot]:
        rows = await self._connection.fetch(_SLOTS)
        self._checked_at_s = self._clock()
        slots = [Slot(**{**row, "limit_bytes": _limit(row["limit_bytes"])}) for row in rows]
        for slot in slots:
            if not slot.active and slot.name not in self._mentioned:
                self._mentioned.add(slot.name)
                self._say(f"replica {slot.name} is not connected and is not waited for; its slot may be lost")
        return slots


def _limit(limit_bytes: int) -> int:
    return limit_bytes if limit_bytes > 0 else _UNBOUNDED_LIMIT_BYTES
