"""Command keys: at most one effect each. The row commits in the same transaction as the effect it stands for.

First the keys are locked (never waiting: a key that is held is a command that is still running), then stored outcomes
are looked up in a statement of its own, whose snapshot is newer than the locks. The other way round, or both in one
statement, a duplicate would find neither lock nor row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Row, text

from atelier.problems import ProblemError, retry_later
from atelier.writes.envelope import Envelope
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Outcome

# A character that no client's key has, so that keys of ours never meet theirs.
OWN_PREFIX = "/"

_LOCK = text("""
select pg_try_advisory_xact_lock(lock) as held
  from unnest(cast(:locks as bigint[])) with ordinality as wanted (lock, position) order by position
""")
_LOOK_UP = text("""
select owner, key, fingerprint, status, cast(headers as text) as headers, body
  from command_key
  join unnest(cast(:owners as text[]), cast(:keys as text[])) as wanted (owner, key) using (owner, key)
""")
_RECORD = text("""
insert into command_key (owner, key, fingerprint, status, headers, body)
select new.owner, new.key, new.fingerprint, new.status, cast(new.headers as jsonb), new.body
  from unnest(cast(:owners as text[]), cast(:keys as text[]), cast(:fingerprints as bytea[]),
              cast(:statuses as smallint[]), cast(:headers as text[]), cast(:bodies as bytea[]))
    as new (owner, key, fingerprint, status, headers, body)
""")


@dataclass(frozen=True, slots=True)
class InFlight:
    """Another transaction holds the key."""

    def refusal(self) -> ProblemError:
        """What a client is told."""
        return retry_later("idempotency-in-flight", "The first request with this key is still running.")


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """The key is ours until the transaction ends, and has no outcome yet."""


Claim = Outcome | InFlight | Unclaimed | ProblemError
"""What became of a key: an outcome that was stored, nothing yet, still running, or used for another request."""


async def claim_keys(uow: UnitOfWork, orders: Sequence[Envelope]) -> list[Claim]:
    """Takes the keys of a batch.

    Returns:
        One claim per order. Of two orders with one key in one batch the second is in flight.
    """
    held = await _lock_keys(uow, orders)
    stored = await _look_up(uow, [order for order, is_ours in zip(orders, held, strict=True) if is_ours])
    return [
        _judge(order, stored.get((order.actor.name, order.key))) if is_ours else InFlight()
        for order, is_ours in zip(orders, held, strict=True)
    ]


def record_outcomes(uow: UnitOfWork, orders: Sequence[Envelope], outcomes: Sequence[Outcome]) -> None:
    """Leaves it to the commit to store outcomes under their keys."""
    uow.defer(
        _RECORD,
        {
            "owners": [order.actor.name for order in orders],
            "keys": [order.key for order in orders],
            "fingerprints": [order.fingerprint for order in orders],
            "statuses": [outcome.status for outcome in outcomes],
            "headers": [msgspec.json.encode(outcome.headers).decode() for outcome in outcomes],
            "bodies": [outcome.body for outcome in outcomes],
        },
    )


async def find_outcome(uow: UnitOfWork, owner: str, key: str) -> Outcome | InFlight | None:
    """What became of a key; None when nothing is recorded. Tries the lock first: held means in flight."""
    row = (await uow.execute(_LOCK, {"locks": [lock_number(owner, key)]}))[0]
    if not row.held:
        return InFlight()
    rows = await uow.execute(_LOOK_UP, {"owners": [owner], "keys": [key]})
    return _to_outcome(rows[0]) if rows else None


def lock_number(owner: str, key: str) -> int:
    """The advisory lock of a key: 64 bits of a hash. Two keys that met would only be told "in flight" in error."""
    digest = hashlib.blake2b(f"{owner}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


async def _lock_keys(uow: UnitOfWork, orders: Sequence[Envelope]) -> list[bool]:
    """Which orders have their key. A lock is re-entrant within a transaction, so duplicates are told apart here."""
    locks = [lock_number(order.actor.name, order.key) for order in orders]
    rows = await uow.execute(_LOCK, {"locks": locks})
    seen: set[int] = set()
    held = []
    for lock, row in zip(locks, rows, strict=True):
        held.append(row.held and lock not in seen)
        seen.add(lock)
    return held


async def _look_up(uow: UnitOfWork, orders: Sequence[Envelope]) -> dict[tuple[str, str], Row[Any]]:
    # A key of ours is new by construction the first time, but the look-up is what finds a lost commit again.
    if not orders:
        return {}
    rows = await uow.execute(
        _LOOK_UP, {"owners": [order.actor.name for order in orders], "keys": [order.key for order in orders]}
    )
    return {(row.owner, row.key): row for row in rows}


def _judge(order: Envelope, row: Row[Any] | None) -> Claim:
    if row is None:
        return Unclaimed()
    if bytes(row.fingerprint) != order.fingerprint:
        return ProblemError("idempotency-conflict", "Another request was sent with this Idempotency-Key before.")
    return _to_outcome(row)


def _to_outcome(row: Row[Any]) -> Outcome:
    return Outcome(row.status, msgspec.json.decode(row.headers, type=dict[str, str]), bytes(row.body or b""))
