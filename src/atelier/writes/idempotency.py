"""Command keys: at most one effect each. The row commits in the same transaction as the effect it stands for.

First the keys are locked (never waiting: a key that is held is a command that is still running), then stored outcomes
are looked up by a statement whose snapshot is newer than the locks: the two inside `claim_command_keys` (migration
0009), in one round trip. The other way round, or both in one statement, a duplicate would find neither lock nor row.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, text

from atelier.problems import ProblemError, retry_later
from atelier.writes.envelope import Envelope
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Outcome

# A character that no client's key has, so that keys of ours never meet theirs.
OWN_PREFIX = "/"

_CLAIM = text("""
select held, fingerprint, status, headers, body
  from claim_command_keys(cast(:owners as text[]), cast(:keys as text[]), cast(:locks as bigint[]))
""")
_RECORD = text("""
insert into command_key (owner, key, fingerprint, status, headers, body)
select new.owner, new.key, new.fingerprint, new.status, cast(new.headers as jsonb), new.body
  from unnest(cast(:owners as text[]), cast(:keys as text[]), cast(:fingerprints as bytea[]),
              cast(:statuses as smallint[]), cast(:headers as text[]), cast(:bodies as bytea[]))
    as new (owner, key, fingerprint, status, headers, body)
""")


class InFlight(msgspec.Struct, frozen=True):
    """Another transaction holds the key."""

    def refusal(self) -> ProblemError:
        """What a client is told."""
        return retry_later("idempotency-in-flight", "The first request with this key is still running.")


class Unclaimed(msgspec.Struct, frozen=True):
    """The key is ours until the transaction ends, and has no outcome yet."""


Claim = Outcome | InFlight | Unclaimed | ProblemError
"""What became of a key: an outcome that was stored, nothing yet, still running, or used for another request."""


async def claim_keys(uow: UnitOfWork, orders: Sequence[Envelope]) -> list[Claim]:
    """Takes the keys of a batch.

    Returns:
        One claim per order. Of two orders with one new key in one batch the second is in flight.
    """
    locks = [lock_number(order.actor.name, order.key) for order in orders]
    rows = await _claim(uow, [order.actor.name for order in orders], [order.key for order in orders], locks)
    # A lock is re-entrant within a transaction, so duplicates are told apart here.
    seen: set[int] = set()
    claims: list[Claim] = []
    for order, lock, row in zip(orders, locks, rows, strict=True):
        is_taken = lock in seen or not row.held
        # A row that can be seen is committed, whoever holds its key: somebody else who asks for it again.
        claims.append(InFlight() if is_taken and row.status is None else _judge(order, row))
        seen.add(lock)
    return claims


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
    """What became of a key; None when nothing is recorded. One that is held without an outcome is in flight."""
    row = (await _claim(uow, [owner], [key], [lock_number(owner, key)]))[0]
    if row.status is None:
        return None if row.held else InFlight()
    return _to_outcome(row)


def lock_number(owner: str, key: str) -> int:
    """The advisory lock of a key: 64 bits of a hash. Two keys that met would only be told "in flight" in error."""
    digest = hashlib.blake2b(f"{owner}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


async def _claim(
    uow: UnitOfWork, owners: Sequence[str], keys: Sequence[str], locks: Sequence[int]
) -> Sequence[Row[Any]]:
    """A row for each key, in their order: whether its lock is ours, and what is stored under it, null when nothing.

    A key of our own making is new the first time; looking it up all the same is what finds a lost commit again.
    """
    return await uow.execute(_CLAIM, {"owners": owners, "keys": keys, "locks": locks})


def _judge(order: Envelope, row: Row[Any]) -> Claim:
    if row.status is None:
        return Unclaimed()
    if bytes(row.fingerprint) != order.fingerprint:
        return ProblemError("idempotency-conflict", "Another request was sent with this Idempotency-Key before.")
    return _to_outcome(row)


def _to_outcome(row: Row[Any]) -> Outcome:
    return Outcome(row.status, msgspec.json.decode(row.headers, type=dict[str, str]), bytes(row.body or b""))
