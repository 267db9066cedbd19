"""The swap: one short transaction that puts the side tables in the place of the live ones, on every node at once.

Running commands are waited for, with a bound: the transaction first takes all its locks, and gives up before
PostgreSQL looks for deadlocks, so that it is always the import that yields and never a command. Then: old tables out,
new ones in, the ledger's partition attached, the catalogue noted, pending reservations released, products counted for
the pages, sequences moved on, the change announced last, because that takes the order lock.

Nothing is dropped here: a commit that drops files becomes visible on a replica before its replay position says so.
A command must read `current_catalogue` only once it holds a lock on a swapped table, else it might write movements of
the old catalogue against stock of the new one.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

import asyncpg

from atelier.deadline import Clock, Deadline
from atelier.loading.progress import Watcher
from atelier.loading.session import LIVE, RETIRED, SIDE, Connection, LoadingError, told
from atelier.loading.side import LEDGER, TABLES, drop_leftovers, restore_options

# Below deadlock_timeout (1 s): see above.
_LOCK_MS = 800
_PAUSE_S = 0.2
_SWAP_MS = 15_000

# First against commands, in their own order: reservations before stock, and stock before what its deferred triggers
# read. Then against reads, in theirs: parents before children. Only the second step is replayed on replicas, so a read
# there that holds one of the tables never waits for another that the replay holds already.
_LOCKS = (
    f"lock table {LIVE}.reservation in exclusive mode",
    f"lock table {', '.join(f'{LIVE}.{table}' for table in reversed(TABLES))} in exclusive mode",
    f"lock table {', '.join(f'{LIVE}.{table}' for table in TABLES)} in access exclusive mode",
)
# Before both: autovacuum gives way after a second to whoever waits for this lock, and to nobody who waits for less;
# commands and reads don't notice it.
_QUIET_MS = 5_000
_SEQUENCES = ("product", "feature", "style", "photo", "sku")
_REVISION = "select string_agg(version_num, ',' order by version_num) from alembic_version"


@dataclass(frozen=True, slots=True)
class Before:
    """What the import found when it began.

    Attributes:
        revision: of the schema.
        version_floor: above every version that was in use, with room for those that came since; 0 when there was
            nothing at all.
        empty: the catalogue had no products.
    """

    revision: str
    version_floor: int
    empty: bool


_HOLDERS = """
select pid, usename, relation::regclass::text as relation from pg_locks join pg_stat_activity using (pid)
 where granted and relation = any($1::regclass[]) and pid <> pg_backend_pid() limit 1
"""
# So many changes of one row between an import's beginning and its swap are not possible: at 10,000 a second they
# would take eleven days.
_VERSION_ROOM = 10_000_000_000
_VERSIONS = f"""
select version_floor, exists (select from {LIVE}.product) or exists (select from {LIVE}.stock) as filled,
       greatest(version_floor, (select max(version) from {LIVE}.product), (select max(version) from {LIVE}.stock))
           as highest
  from {LIVE}.current_catalogue
"""


async def look(connection: Connection) -> Before:
    """Notes what is there before the import."""
    row = await connection.fetchrow(_VERSIONS)
    if row is None:
        raise LoadingError("this database has no catalogue; run the migrations first")
    untouched = not row["filled"] and row["version_floor"] == 0
    floor = 0 if untouched else row["highest"] + _VERSION_ROOM
    return Before(await connection.fetchval(_REVISION), floor, not row["filled"])


async def swap(
    connection: Connection, *, before: Before, catalogue_id: int, origin: str, deadline: Deadline, watcher: Watcher
) -> None:
    """Makes the side tables the live ones.

    Raises:
        LoadingError: other transactions kept the tables busy until the deadline, or the database was migrated or
            filled since the import began. The old catalogue is untouched.
        PrimaryUnavailableError: the primary went away before the commit was sent.
    """
    await connection.execute(f"create schema if not exists {RETIRED}")
    for table in TABLES:
        await restore_options(connection, table, table)
    await restore_options(connection, LEDGER, f"{LEDGER}_{int(catalogue_id)}")
    waited = False
    attempt = partial(
        _try_swap, connection, before=before, catalogue_id=catalogue_id, origin=origin, clock=deadline.clock
    )
    while (locked_s := await attempt()) is None:
        if not deadline.remaining_s():
            raise LoadingError(f"the tables were busy for too long; {await _who_blocks(connection)}")
        if not waited:
            watcher.say("waiting for running transactions to end")
            waited = True
        await asyncio.sleep(_PAUSE_S)
    watcher.say(f"swapped; the tables were locked for {locked_s * 1000:.0f} ms")


async def drop_old(connection: Connection) -> None:
    """Drops the old tables, in a transaction of its own."""
    await drop_leftovers(connection)


async def _try_swap(
    connection: Connection, *, before: Before, catalogue_id: int, origin: str, clock: Clock
) -> float | None:
    """Swaps, and tells how long readers could not come in, in seconds; None when others were in the way."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await _keep_autovacuum_out(connection, catalogue_id)
        began_s = clock()
        await _take_locks(connection)
        await _refuse_changes(connection, before)
        await _exchange(connection, catalogue_id)
        await _enter(connection, before, catalogue_id, origin)
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError):
        await transaction.rollback()
        return None
    except BaseException:
        await _roll_back(connection, transaction)
        raise
    await _commit(transaction)
    return clock() - began_s


async def _keep_autovacuum_out(connection: Connection, catalogue_id: int) -> None:
    tables = [f"{schema}.{table}" for schema in (LIVE, SIDE) for table in TABLES]
    await connection.execute(f"set local lock_timeout = {_QUIET_MS}")
    await connection.execute(
        f"lock table {', '.join(tables)}, {SIDE}.{LEDGER}_{int(catalogue_id)} in share update exclusive mode"
    )


async def _take_locks(connection: Connection) -> None:
    await connection.execute(f"set local lock_timeout = {_LOCK_MS}; set local statement_timeout = {_LOCK_MS}")
    await connection.execute(f"do $$ begin {'; '.join(_LOCKS)}; end $$")  # one statement, one timeout
    await connection.execute(f"set local statement_timeout = {_SWAP_MS}")


async def _refuse_changes(connection: Connection, before: Before) -> None:
    if await connection.fetchval(_REVISION) != before.revision:
        raise LoadingError("the database was migrated while the import ran; run it again")
    row = await connection.fetchrow(
        f"select version_floor, exists (select from {LIVE}.product) as filled from {LIVE}.current_catalogue"
    )
    if row is None or row["version_floor"] > before.version_floor or (not before.version_floor and row["filled"]):
        raise LoadingError("the catalogue was empty when the import began and is not any more; run it again")


async def _exchange(connection: Connection, catalogue_id: int) -> None:
    ledger = f"{LEDGER}_{int(catalogue_id)}"
    for table in TABLES:
        await connection.execute(f"alter table {LIVE}.{table} set schema {RETIRED}")
        await connection.execute(f"alter table {SIDE}.{table} set schema {LIVE}")
    await connection.execute(f"alter table {SIDE}.{ledger} set schema {LIVE}")
    await connection.execute(
        f"alter table {LIVE}.{LEDGER} attach partition {LIVE}.{ledger} for values in ({int(catalogue_id)})"
    )
    await connection.execute(f"alter table {LIVE}.{ledger} drop constraint bound")


async def _enter(connection: Connection, before: Before, catalogue_id: int, origin: str) -> None:
    """Makes the new catalogue the present one; the announcement comes last."""
    await connection.execute(
        f"insert into {LIVE}.catalogue (catalogue_id, origin) values ($1, $2)", catalogue_id, origin
    )
    await connection.execute(
        f"update {LIVE}.current_catalogue set catalogue_id = $1, version_floor = $2", catalogue_id, before.version_floor
    )
    await connection.execute(f"select {LIVE}.release_replaced_reservations()")
    await connection.execute(f"select {LIVE}.rebuild_page_counts()")
    for table in _SEQUENCES:
        await _move_sequence(connection, table)
    await connection.execute(f"select {LIVE}.announce_catalogue()")


async def _move_sequence(connection: Connection, table: str) -> None:
    """Moves the sequence of a table's ids beyond the imported ones; never back."""
    sequence = f"{LIVE}.{table}_id_seq"
    # Changes nothing, but keeps others from drawing between the look and the move.
    await connection.execute(f"alter sequence {sequence} owned by none")
    await connection.execute(
        f"select setval('{sequence}', highest) from (select max(id) as highest from {LIVE}.{table}) as imported"
        f" where highest > (select last_value from {sequence})"
    )


async def _commit(transaction: asyncpg.transaction.Transaction) -> None:
    """Commits. A cancellation comes too late then, and is forgotten: the import is done.

    Raises:
        LoadingError: the connection broke, and whether the commit arrived is not known.
    """
    task = asyncio.ensure_future(transaction.commit())
    try:
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if (current := asyncio.current_task()) is not None:
                    current.uncancel()
        task.result()
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise LoadingError(
            "the primary went away during the commit: the new catalogue is in place as a whole, or not at all"
        ) from error


async def _roll_back(connection: Connection, transaction: asyncpg.transaction.Transaction) -> None:
    if not connection.is_closed():
        with told("rolling back"):
            await transaction.rollback()


async def _who_blocks(connection: Connection) -> str:
    row = await connection.fetchrow(_HOLDERS, [f"{LIVE}.{table}" for table in (*TABLES, "reservation")])
    return f"{row['usename']}, process {row['pid']}, holds {row['relation']}" if row else "try again"
