"""The rules of the inventory as pure functions over what was locked. No I/O, no clock.

A batch is decided in arrival order on one `Room`: each command sees what those before it left behind, and the room
holds one final value per SKU, however many commands touched it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from atelier.problems import ProblemError
from atelier.writes.commands import (
    LARGEST_STOCK,
    AdjustmentLine,
    AdjustStock,
    ConfirmReservation,
    CountStock,
    ReleaseReservation,
    ReservationLine,
    ReserveStock,
)
from atelier.writes.verdict import Done, Refused, Verdict, refuse


@dataclass(slots=True)
class Shelf:
    """The stock of one SKU. Always `0 <= reserved <= on_hand`."""

    sku_id: int
    on_hand: int
    reserved: int
    version: int
    changed: bool = False

    @property
    def available(self) -> int:
        """What can still be bought."""
        return self.on_hand - self.reserved

    def document(self) -> dict[str, int]:
        """As `GET /inventory/{sku_id}` shows it."""
        return {
            "sku_id": self.sku_id,
            "on_hand": self.on_hand,
            "reserved": self.reserved,
            "available": self.available,
            "version": self.version,
        }

    def change(self, *, on_hand: int = 0, reserved: int = 0) -> None:
        """Adds to both figures; the version rises by one."""
        self.on_hand += on_hand
        self.reserved += reserved
        self.version += 1
        self.changed = True


@dataclass(slots=True)
class Hold:
    """A reservation.

    Attributes:
        reservation_id: its number.
        state: pending, confirmed, released or expired.
        reason: `catalogue-replaced` when an import released it, else None.
        expires_at: when its stock goes back.
        lines: SKU and quantity, in the order of the request.
        is_new: it was made in this batch.
        changed: its state is not what the database has.
    """

    reservation_id: int
    state: str
    reason: str | None
    expires_at: datetime
    lines: Sequence[tuple[int, int]]
    is_new: bool = False
    changed: bool = False

    def document(self) -> dict[str, Any]:
        """As `GET /reservations/{id}` shows it."""
        return {
            "reservation_id": self.reservation_id,
            "state": self.state,
            "expires_at": utc_milliseconds(self.expires_at),
            "lines": [{"sku_id": sku_id, "quantity": quantity} for sku_id, quantity in self.lines],
        }

    def settle(self, state: str) -> None:
        """Ends it."""
        self.state = state
        self.changed = True


class Movement(msgspec.Struct, frozen=True):
    """One row of the ledger."""

    sku_id: int
    delta: int
    kind: str
    reason: str | None
    command_key: str | None


@dataclass(slots=True)
class Room:
    """All that a batch has locked, and what it decided so far.

    Attributes:
        shelves: the locked stock by SKU; a SKU that is missing does not exist.
        holds: the locked reservations by id, and the new ones.
        now: the database's clock, read after the locks were taken.
        new_ids: ids for new reservations, one for each command that asks for one.
        movements: ledger rows, in the order of the decisions.
    """

    shelves: dict[int, Shelf]
    holds: dict[int, Hold]
    now: datetime
    new_ids: list[int]
    movements: list[Movement] = field(default_factory=list)


def adjust(room: Room, command: AdjustStock, key: str) -> Verdict:
    """Adds to what is on hand of every line, or refuses them all."""
    body = command.body
    if unknown := _refuse_unknown(room, (line.sku_id for line in body.lines)):
        return unknown
    short, shelves = [], [room.shelves[line.sku_id] for line in body.lines]
    for index, (line, shelf) in enumerate(zip(body.lines, shelves, strict=True)):
        if shelf.on_hand + line.delta > LARGEST_STOCK:
            return refuse(
                "invalid-request", f"There can be at most {LARGEST_STOCK} of a SKU.", field=f"lines[{index}].delta"
            )
        if shelf.available + line.delta < 0:
            short.append(_lacking(index, shelf, requested=-line.delta))
    if short:
        return _refuse_short(short)
    before = [shelf.document() for shelf in shelves]
    for line, shelf in zip(body.lines, shelves, strict=True):
        shelf.change(on_hand=line.delta)
        room.movements.append(Movement(line.sku_id, line.delta, "adjustment", body.reason, key))
    after = [shelf.document() for shelf in shelves]
    return Done(200, {"lines": after}, before=before, after=after)


def count(room: Room, command: CountStock, key: str) -> Verdict:
    """Sets what is on hand. A count that finds what was known changes nothing, not even the version."""
    shelf = room.shelves.get(command.sku_id)
    if shelf is None:
        return _unknown_sku(command.sku_id)
    if not command.if_match.allows(shelf.version):
        return refuse("precondition-failed", f"The version of SKU {shelf.sku_id} is {shelf.version} now.")
    delta = command.body.on_hand - shelf.on_hand
    if shelf.available + delta < 0:
        return _refuse_short([_lacking(0, shelf, requested=-delta)])
    before = shelf.document()
    if delta:
        shelf.change(on_hand=delta)
        room.movements.append(Movement(shelf.sku_id, delta, "count", None, key))
    after = shelf.document()
    return Done(200, after, {"ETag": f'"{shelf.version}"'}, before=before, after=after)


def reserve(room: Room, command: ReserveStock, _key: str) -> Verdict:
    """Promises every line, or refuses them all."""
    body, reservation_id = command.body, room.new_ids.pop(0)
    if unknown := _refuse_unknown(room, (line.sku_id for line in body.lines)):
        return unknown
    short = [
        _lacking(index, room.shelves[line.sku_id], requested=line.quantity)
        for index, line in enumerate(body.lines)
        if room.shelves[line.sku_id].available < line.quantity
    ]
    if short:
        return _refuse_short(short)
    for line in body.lines:
        room.shelves[line.sku_id].change(reserved=line.quantity)
    lines = [(line.sku_id, line.quantity) for line in body.lines]
    # Whole milliseconds, so that what is stored is what is shown.
    now = room.now.replace(microsecond=room.now.microsecond // 1000 * 1000)
    expires_at = now + timedelta(seconds=body.ttl_seconds)
    hold = Hold(reservation_id, "pending", None, expires_at, lines, is_new=True)
    room.holds[reservation_id] = hold
    document = hold.document()
    return Done(201, document, {"Location": f"/reservations/{reservation_id}"}, after=document)


def confirm(room: Room, command: ConfirmReservation, key: str) -> Verdict:
    """Turns what was reserved into sold."""
    hold = _find_pending(room, command.reservation_id)
    if isinstance(hold, Refused):
        return hold
    if unknown := _refuse_unknown(room, (sku_id for sku_id, _ in hold.lines)):
        return unknown
    before = hold.document()
    for sku_id, quantity in hold.lines:
        room.shelves[sku_id].change(on_hand=-quantity, reserved=-quantity)
        room.movements.append(Movement(sku_id, -quantity, "sale", None, key))
    hold.settle("confirmed")
    return Done(200, hold.document(), before=before, after=hold.document())


def release(room: Room, command: ReleaseReservation, _key: str) -> Verdict:
    """Gives back what was reserved."""
    hold = _find_pending(room, command.reservation_id)
    if isinstance(hold, Refused):
        return hold
    before = hold.document()
    give_back(room, hold, "released")
    return Done(200, hold.document(), before=before, after=hold.document())


def give_back(room: Room, hold: Hold, state: str) -> None:
    """Ends a pending reservation without a sale. What was held of a SKU that is gone, by hand, is gone with it."""
    for sku_id, quantity in hold.lines:
        if sku_id in room.shelves:
            room.shelves[sku_id].change(reserved=-quantity)
    hold.settle(state)


def check_lines(command: AdjustStock | ReserveStock) -> None:
    """Refuses what no stock can satisfy: a SKU twice, or a delta of zero.

    Raises:
        ProblemError: `invalid-request`, with the path of the field.
    """
    lines: Sequence[AdjustmentLine | ReservationLine] = command.body.lines
    sku_ids = [line.sku_id for line in lines]
    if len(set(sku_ids)) < len(sku_ids):
        index = next(index for index, sku_id in enumerate(sku_ids) if sku_ids.count(sku_id) > 1)
        where = f"lines[{index}].sku_id"
        raise ProblemError("invalid-request", f"{where}: SKU {sku_ids[index]} stands in lines twice", field=where)
    for index, line in enumerate(lines):
        if getattr(line, "delta", 1) == 0:
            where = f"lines[{index}].delta"
            raise ProblemError("invalid-request", f"{where}: a delta is not zero", field=where)


def utc_milliseconds(at: datetime) -> str:
    """A time as the contract writes it: `2021-08-13T14:38:44.509Z`."""
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def _find_pending(room: Room, reservation_id: int) -> Hold | Refused:
    """A reservation, unless it is not pending any more; the clock decides, not whether it was swept already."""
    hold = room.holds.get(reservation_id)
    if hold is None:
        return refuse("not-found", f"There is no reservation {reservation_id}.")
    if hold.reason == "catalogue-replaced":
        return refuse("catalogue-replaced", "An import replaced the catalogue and released this reservation.")
    state = "expired" if hold.state == "pending" and hold.expires_at <= room.now else hold.state
    if state == "pending":
        return hold
    return refuse(f"reservation-{state}", f"The reservation {reservation_id} is {state}.")


def _refuse_unknown(room: Room, sku_ids: Iterable[int]) -> Refused | None:
    for sku_id in sku_ids:
        if sku_id not in room.shelves:
            return _unknown_sku(sku_id)
    return None


def _unknown_sku(sku_id: int) -> Refused:
    return refuse("not-found", f"There is no SKU {sku_id}.", sku_id=sku_id)


def _lacking(index: int, shelf: Shelf, *, requested: int) -> dict[str, int]:
    return {"line": index, "sku_id": shelf.sku_id, "requested": requested, "available": shelf.available}


def _refuse_short(lines: list[dict[str, int]]) -> Refused:
    return refuse("insufficient-stock", "There is not enough stock; nothing was done.", lines=lines)
