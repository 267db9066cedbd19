"""Brings the schema to the newest migration: one migrating process at a time, polite to what runs."""

import asyncio
from collections.abc import Callable

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from atelier.deadline import Clock, Deadline
from atelier.errors import AtelierError, PrimaryUnavailableError
from atelier.resources import resource_dir

# Any number that no other advisory lock of this database uses in its two-integer form.
MIGRATION_LOCK = (0x61746C, 1)
# DDL queues behind running statements and everything else queues behind it: better to give way and come back.
_LOCK_TIMEOUT_MS = 2_000
_RETRY_INTERVAL_S = 0.5
# It waited for a lock for too long, or in a circle.
_GAVE_WAY = ("55P03", "40P01")
_REFUSALS = (DBAPIError, asyncpg.PostgresError)


class MigrationError(AtelierError):
    """The schema could not be migrated."""


async def migrate(url: URL, *, clock: Clock, within_s: float, say: Callable[[str], None]) -> str:
    """Applies all pending migrations to the primary.

    Args:
        url: of the primary, as role `migrator`, driver asyncpg.
        clock: monotonic, in seconds.
        within_s: the bound on waiting for another migrating process, and for locks.
        say: told each revision that is applied.

    Returns:
        The revision that the schema is at now.

    Raises:
        PrimaryUnavailableError: the primary does not answer.
        MigrationError: a migration failed (the schema stays at the last one that worked), or time ran out.
    """
    deadline = Deadline.after(within_s, clock)
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": min(10.0, within_s)})
    try:
        async with engine.connect() as connection:
            await _take_lock(connection, deadline)
            return await _apply(connection, deadline, say)
    except (OSError, TimeoutError) as error:
        raise PrimaryUnavailableError(f"the primary does not answer: {error}") from error
    except _REFUSALS as error:
        raise MigrationError(f"the primary refuses: {_driver_error(error)}") from error
    finally:
        await engine.dispose()


def run_script(connection: Connection, script: str) -> None:
    """Runs a script of several statements in the migration's transaction, for use inside a migration.

    The driver prepares what it is given, and only one statement can be prepared; this goes by the simple protocol.
    """
    connection.execute(text("select"))  # begins the transaction, which the call below knows nothing of
    adapted = connection.connection.dbapi_connection
    assert adapted is not None  # noqa: S101  the line above has used it
    adapted.run_async(lambda driver: driver.execute(script))  # by the asyncpg adapter


async def _take_lock(connection: AsyncConnection, deadline: Deadline) -> None:
    statement = text("select pg_try_advisory_lock(:space, :number)")
    parameters = dict(zip(("space", "number"), MIGRATION_LOCK, strict=True))
    while not (await connection.execute(statement, parameters)).scalar_one():
        if not deadline.remaining_s():
            raise MigrationError("another process is migrating this database")
        await connection.rollback()
        await asyncio.sleep(_RETRY_INTERVAL_S)
    await connection.execute(text(f"set lock_timeout = {_LOCK_TIMEOUT_MS}"))
    await connection.commit()


async def _apply(connection: AsyncConnection, deadline: Deadline, say: Callable[[str], None]) -> str:
    while True:
        try:
            await connection.run_sync(_upgrade, say)
            await connection.commit()
            return await connection.run_sync(_revision)
        except _REFUSALS as error:
            await connection.rollback()
            refusal = _driver_error(error)
            if getattr(refusal, "sqlstate", None) not in _GAVE_WAY or not deadline.remaining_s():
                raise MigrationError(f"a migration failed: {refusal}") from error
            await asyncio.sleep(_RETRY_INTERVAL_S)


def _upgrade(connection: Connection, say: Callable[[str], None]) -> None:
    config = Config()
    config.set_main_option("script_location", str(resource_dir("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    before = _revision(connection)
    # What that look began is ended: each migration is to have a transaction of its own, or none (autocommit_block).
    connection.commit()
    command.upgrade(config, "head")
    script = ScriptDirectory.from_config(config)
    for revision in reversed(list(script.iterate_revisions("head", before or "base"))):
        say(f"migration {revision.revision}: {revision.doc}")


def _revision(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""


def _driver_error(error: Exception) -> BaseException:
    """The driver's own error, which carries the SQLSTATE: SQLAlchemy wraps it, a script does not."""
    return error.orig or error if isinstance(error, DBAPIError) else error
