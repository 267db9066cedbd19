"""Seals the audit: a chain of hashes over its entries, made seconds after them by one process at a time.

The commands themselves are not chained: that would make every one of them wait for the one before it. An entry is
sealed once no running transaction can still add one before it; what is not sealed yet is told, never passed over.

A seal also says where the log stood when all of its entries were committed: system, timeline and position, of which a
token can be made (docs/decisions/0012).

A chain shows that an entry was changed, removed or slipped in behind a seal. That the newest seals themselves were cut
off shows only to somebody who wrote the newest hash down elsewhere: `audit verify` prints it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Executable, text

Execute = Callable[[Executable, dict[str, Any]], Awaitable[Sequence[Any]]]
"""Runs a statement in a transaction that the caller commits."""

_BATCH = 1_000
# An entry may be two megabytes, and a value of PostgreSQL no more than a gigabyte: a thousand of those, waiting behind
# a long transaction, would fit in no seal.
_BATCH_BYTES = 4_000_000
_SEALS_AT_ONCE = 1_000
_FIRST = bytes(32)
_BEFORE_ALL = -(2**63)
_LOCK = (6386796, 4)

# Every entry as a compact JSON array, with its length before it, one behind the other. The server puts that together:
# sealing runs in the process of the commands, and a thousand entries are one value there instead of twelve thousand.
# Without the inner order the planner would dissolve the inner query, and make the text of every entry twice.
_GATHER = """
select count(*) as entries, cast((array_agg(xid order by xid, entry_id))[count(*)] as text) as last_xid,
       (array_agg(entry_id order by xid, entry_id))[count(*)] as last_entry_id,
       string_agg(int4send(octet_length(entry)) || convert_to(entry, 'UTF8'), cast('' as bytea)
                  order by xid, entry_id) as content
  from (select xid, entry_id, concat('[', concat_ws(',',
               entry_id, to_json(cast(xid as text)), cast(extract(epoch from at) * 1000000 as bigint),
               to_json(cast(position as text)), to_json(actor), key_id, to_json(command), to_json(command_key),
               to_json(target), status, coalesce(to_json(before), 'null'), coalesce(to_json(after), 'null')), ']')
               as entry
          from {entries} order by xid, entry_id) as chosen
"""
# What fits into one seal: as many as begin within so many bytes, hence always one. The two documents are all that
# makes an entry large, and their lengths are known without fetching them from where large values lie.
_FITTING = f"""
(select waiting.*, sum(coalesce(octet_length(before), 0) + coalesce(octet_length(after), 0))
                   over (order by xid, entry_id rows between unbounded preceding and 1 preceding) as bytes_before
   from (select * from atelier.audit_entry
          where (xid, entry_id) > (cast(cast(:xid as text) as xid8), :entry_id)
            and xid < pg_snapshot_xmin(pg_current_snapshot())
          order by xid, entry_id limit {_BATCH}) as waiting) as measured
 where coalesce(bytes_before, 0) < {_BATCH_BYTES}
"""

_TAKE_TURN = text(f"select pg_try_advisory_xact_lock({_LOCK[0]}, {_LOCK[1]}) as is_ours")
_NEWEST = text("""
select seal_id, cast(last_xid as text) as last_xid, last_entry_id, hash from audit_seal order by seal_id desc limit 1
""")
# Every transaction below the oldest running one has ended: nothing can appear among its entries any more.
_UNSEALED = text(_GATHER.format(entries=_FITTING))
# Asked after the entries were found, so their commits lie before it. Nobody has flushed that much perhaps, but whoever
# sees the seal knows that its own commit, which lies behind, was.
_WHERE = text("""
select (select system_identifier from pg_control_system()) as system_id,
       cast(cast('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) as bit(32)) as integer) as timeline,
       cast(pg_current_wal_insert_lsn() as text) as position
""")
_SEAL = text("""
insert into audit_seal (seal_id, last_xid, last_entry_id, entries, system_id, timeline, position, hash)
values (:seal_id, cast(cast(:last_xid as text) as xid8), :last_entry_id, :entries,
        :system_id, :timeline, cast(cast(:position as text) as pg_lsn), :hash)
""")

_SEALS_SQL = f"""
select seal_id, last_xid::text as last_xid, last_entry_id, entries, system_id, timeline, position::text as position,
       hash
  from atelier.audit_seal where seal_id > $1 order by seal_id limit {_SEALS_AT_ONCE}
"""
_BETWEEN_SQL = _GATHER.format(
    entries="""atelier.audit_entry
         where (xid, entry_id) > ($1::text::xid8, $2) and (xid, entry_id) <= ($3::text::xid8, $4)"""
)
_BEHIND_SQL = """
select entry_id from atelier.audit_entry where (xid, entry_id) > ($1::text::xid8, $2) order by xid, entry_id
"""


@dataclass(slots=True)
class AuditReport:
    """What a look at the whole chain found.

    Attributes:
        entries: how many entries are sealed, in `seals` seals.
        seals: how many seals there are.
        newest_hash: of the newest seal, in hexadecimal; None when there is none.
        broken: one line for each seal that does not fit its entries.
        unsealed: the ids of entries that wait for a seal.
    """

    entries: int = 0
    seals: int = 0
    newest_hash: str | None = None
    broken: list[str] = field(default_factory=list)
    unsealed: list[int] = field(default_factory=list)


async def seal_entries(execute: Execute) -> int:
    """Seals what can be sealed, one batch; 0 when there is nothing, or when another process is at it."""
    if not (await execute(_TAKE_TURN, {}))[0].is_ours:
        return 0
    newest = await execute(_NEWEST, {})
    seal_id, xid, entry_id, link = (
        (newest[0].seal_id, newest[0].last_xid, newest[0].last_entry_id, bytes(newest[0].hash))
        if newest
        else (0, "0", 0, _FIRST)
    )
    found = (await execute(_UNSEALED, {"xid": xid, "entry_id": entry_id}))[0]
    if not found.entries:
        return 0
    where = (await execute(_WHERE, {}))[0]
    seal = {
        "seal_id": seal_id + 1,
        "last_xid": found.last_xid,
        "last_entry_id": found.last_entry_id,
        "entries": found.entries,
        **where._asdict(),
        "hash": hash_entries(link, found.content, tuple(where)),
    }
    await execute(_SEAL, seal)
    return int(found.entries)


async def verify_audit(connection: "asyncpg.Connection[asyncpg.Record]") -> AuditReport:
    """Checks the whole chain, seal by seal, in short transactions. As a role that may read both tables."""
    report = AuditReport()
    last_seal_id, xid, entry_id, link = _BEFORE_ALL, "0", 0, _FIRST
    while seals := await _read_on(connection, last_seal_id, xid, entry_id, report):
        # One snapshot for all would hold up the vacuum of the whole database, for as long as the chain takes. None is
        # needed: neither a seal nor an entry that it is over changes any more, and no entry can join them.
        for seal in seals:
            found = await connection.fetchrow(_BETWEEN_SQL, xid, entry_id, seal["last_xid"], seal["last_entry_id"])
            assert found is not None  # noqa: S101  an aggregate without groups has one row
            if problem := _judge(report.seals + 1, seal, found, link):
                report.broken.append(problem)
            last_seal_id, xid, entry_id, link = (
                seal[name] for name in ("seal_id", "last_xid", "last_entry_id", "hash")
            )
            report.seals += 1
            report.entries += found["entries"]
            report.newest_hash = link.hex()
    return report


def hash_entries(link: bytes, content: bytes, where: tuple[Any, ...] | None) -> bytes:
    """The hash of a seal: of the one before it, its entries as the server puts them together, and its position."""
    position = b"" if where is None else msgspec.json.encode(where)
    length = b"" if where is None else len(position).to_bytes(4, "big")
    return hashlib.sha256(b"".join((link, content, length, position))).digest()


def _judge(expected_id: int, seal: asyncpg.Record, found: asyncpg.Record, link: bytes) -> str | None:
    """One line that says what is wrong with a seal; None when it fits."""
    if seal["seal_id"] != expected_id:
        return f"seal {expected_id} is missing: {seal['seal_id']} comes next"
    span = f"seal {seal['seal_id']} (up to entry {seal['last_entry_id']})"
    if found["entries"] != seal["entries"]:
        return f"{span} was made over {seal['entries']} entries, now there are {found['entries']}"
    where = (seal["system_id"], seal["timeline"], seal["position"])
    # The first seals of an old database have no position.
    if hash_entries(link, found["content"] or b"", None if where == (None, None, None) else where) != seal["hash"]:
        return f"{span} does not fit its entries: one was changed, or its position was"
    return None


async def _read_on(
    connection: "asyncpg.Connection[asyncpg.Record]", seal_id: int, xid: str, entry_id: int, report: AuditReport
) -> list[asyncpg.Record]:
    """The next seals; behind the last of them none, and what waits for one is noted.

    In one snapshot: what is sealed between the two questions would be told as not sealed.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        seals = await connection.fetch(_SEALS_SQL, seal_id)
        if not seals:
            report.unsealed = [row["entry_id"] for row in await connection.fetch(_BEHIND_SQL, xid, entry_id)]
    return seals
