"""Connections of imports and exports: who they are, what they may wait for, and how their ends are told to a person."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import asyncpg

from atelier.errors import AtelierError, PrimaryUnavailableError

LIVE = "atelier"
SIDE = "atelier_import"
RETIRED = "atelier_retired"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_CONNECT_S = 10.0
# No statement of an import of 27 million rows took a tenth of this; a dead socket is noticed by it at the latest.
_STATEMENT_S = 1800.0
_SETTINGS = {
    "application_name": "atelier import",
    "search_path": LIVE,
    "statement_timeout": "30min",
    "transaction_timeout": "1h",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "1min",
    # An import that was killed must not hold its lock for the rest of a long index build.
    "client_connection_check_interval": "1s",
    # Sorts of an index build in memory; the default of 64 MB merges from disk at 10 million rows.
    "maintenance_work_mem": "256MB",
    "work_mem": "64MB",
}


class LoadingError(AtelierError):
    """The import or export could not be done."""


class ReplayConflictError(LoadingError):
    """A replica had to replay changes to what was being read: it cancelled the statement or ended the connection."""


@asynccontextmanager
async def connect(dsn: str, settings: Mapping[str, str] | None = None) -> AsyncIterator[Connection]:
    """Opens a connection with bounds on everything, and closes it.

    Raises:
        PrimaryUnavailableError: nobody answers.
        LoadingError: the server refuses.
    """
    with told("connecting"):
        connection = await asyncpg.connect(
            dsn, timeout=_CONNECT_S, command_timeout=_STATEMENT_S, server_settings={**_SETTINGS, **(settings or {})}
        )
    try:
        yield connection
    finally:
        await _close(connection)


@asynccontextmanager
async def siblings() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure comes out by itself, not in a group of one."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=2.0)
    except (OSError, TimeoutError, asyncio.CancelledError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turns the driver's errors into ours, with what was being done.

    Raises:
        PrimaryUnavailableError: the server went away.
        ReplayConflictError: the server is a replica and had to go on replaying.
        LoadingError: the server refused.
    """
    try:
        yield
    except asyncpg.DiskFullError as error:
        raise LoadingError(f"{doing}: the disk of the database is full") from error
    except (
        OSError,
        TimeoutError,
        asyncpg.PostgresConnectionError,
        asyncpg.InterfaceError,
        # How asyncpg puts it when a connection was closed between two of its steps.
        asyncpg.InternalClientError,
        asyncpg.OperatorInterventionError,
    ) as error:
        # Between two statements a conflict ends the whole connection, and the driver tells what was said at the end.
        if isinstance(error.__cause__, asyncpg.SerializationError):
            raise ReplayConflictError from error
        raise PrimaryUnavailableError(f"{doing}: the database server went away ({_first_line(error)})") from error
    except asyncpg.SerializationError as error:
        raise ReplayConflictError from error
    except asyncpg.PostgresError as error:
        raise LoadingError(f"{doing}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
