"""One transaction on the primary. Leaving it rolls back what was not committed; it commits once, explicitly.

It works on an `AsyncConnection` rather than a session: a batch changes rows set by set and loads no objects, so an
identity map would only be filled and thrown away.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, Self

import asyncpg
import structlog
from sqlalchemy import Executable, Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError, OutcomeUnknownError
from atelier.lsn import Lsn
from atelier.token import CausalToken
from atelier.writes.failures import CommitLostError, ConnectionLostError, leaves_commit_open, translate
from atelier.writes.primary import PrimaryGateway

log = structlog.get_logger(__name__)

_ROLLBACK_S = 2.0
# What a lost server can do to a statement; the last one is the driver's own, when the server ends in the middle of it.
NODE_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# Not the insert position: that counts log which nobody has flushed, and which a crash takes back.
_POSITION = """
select flushed as position, ('x' || left(pg_walfile_name(flushed), 8))::bit(32)::integer as timeline
  from pg_current_wal_flush_lsn() as flushed
"""
# With a quorum a token must not name log that the quorum may lose: the k-th furthest of the standbys that count.
_QUORUM_POSITION = """
select position, ('x' || left(pg_walfile_name(position), 8))::bit(32)::integer as timeline
  from atelier_monitor.quorum_position($1) as position where position is not null
"""
# A parameter in a statement's text: one colon before a name, not the two of a cast.
_PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
_WAIT_FOR_QUORUM = "select pg_logical_emit_message(true, 'atelier', '')"


class UnitOfWork:
    """A transaction from its first statement to `commit()`.

    Attributes:
        generation: the generation of connections that it runs on; None before it has begun.
    """

    def __init__(self, gateway: PrimaryGateway, deadline: Deadline) -> None:
        """Takes where connections come from, and when the caller has to be answered. Does no I/O."""
        self._gateway = gateway
        self._deadline = deadline
        self._opened: AsyncConnection | None = None
        self._broken = False
        self._warned = False
        self._deferred: list[tuple[TextClause, Mapping[str, Any]]] = []
        self.generation: int | None = None

    async def __aenter__(self) -> Self:
        """Takes a connection.

        Raises:
            PrimaryUnavailableError, OverloadedError: there is none.
        """
        self._opened, self.generation = await self._gateway.connect(self._deadline)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Rolls back what was not committed and gives the connection back, also when cancelled."""
        connection, self._opened = self._opened, None
        if connection is None:
            return
        broken = self._broken or (error is not None and not isinstance(error, Exception))
        closing = asyncio.create_task(_give_back(connection, broken=broken))
        self._gateway.keep_until_done(closing)
        await asyncio.shield(closing)

    async def execute(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Runs a statement and returns its rows; the first one begins the transaction.

        Raises:
            ConnectionLostError: the primary went away; nothing was done.
            ConflictError: a deadlock or another conflict; the transaction is over.
            DataRefusedError: the database refuses the data; the transaction is over.
            DeadlineExceededError: the time is used up; nothing was done.
        """
        try:
            async with asyncio.timeout(self._deadline.remaining_s()):
                result = await self._connection.execute(statement, parameters)
                return result.all() if result.returns_rows else ()
        except TimeoutError as error:
            self._broken = True
            raise DeadlineExceededError from error
        except Exception as error:
            raise self._translated(error) from error

    def defer(self, statement: TextClause, parameters: Mapping[str, Any]) -> None:
        """Leaves a statement to `flush`, where all that are left go to the server in one round trip.

        Args:
            statement: a plain INSERT, UPDATE or DELETE. It must not look at what others that are left change, nor
                change a row that one of them changes.
            parameters: its values.
        """
        self._deferred.append((statement, parameters))

    async def flush(self) -> None:
        """Runs what was deferred, all of it as one statement. Raises what `execute` raises."""
        deferred, self._deferred = self._deferred, []
        if deferred:
            parameters = {
                f"{name}_{i}": value for i, (_, values) in enumerate(deferred) for name, value in values.items()
            }
            await self.execute(_join(tuple(statement for statement, _ in deferred)), parameters)

    async def commit(self) -> CausalToken:
        """Runs what was deferred, commits, then takes the position that contains the commit.

        The COMMIT runs in a task of its own that nothing cancels. At the deadline, or when the caller is cancelled, the
        caller goes on and the connection stays out of the pool until the server has answered too.

        Raises:
            OutcomeUnknownError: the answer did not come in time, the connection was lost (`CommitLostError`), or the
                server warned that it had not waited for its standbys.
            AtelierError: what was deferred failed, or the commit was refused; nothing was done.
        """
        await self.flush()
        driver = await self._driver()
        self._listen(driver)
        committing = asyncio.create_task(self._connection.commit())
        try:
            done, _ = await asyncio.wait({committing}, timeout=self._deadline.remaining_s())
        except asyncio.CancelledError:
            # Cutting the connection now would cancel the COMMIT on the server, where it may wait for its standbys.
            self._abandon(committing)
            raise
        if not done:
            self._abandon(committing)
            raise OutcomeUnknownError
        try:
            committing.result()
        except Exception as error:
            self._broken = True
            if leaves_commit_open(error):
                self._end_generation()
                raise CommitLostError from error
            raise self._translated(error) from error
        token = await self.position()
        driver.remove_log_listener(self._hear)
        if self._warned:
            raise OutcomeUnknownError
        return token

    async def wait_for_quorum(self) -> None:
        """Makes the coming commit wait for the standbys, although nothing else is written.

        What was read here may be a local commit only. Does nothing where no quorum is asked for.

        Raises:
            ConnectionLostError: the primary went away; nothing was done.
            DeadlineExceededError: the time is used up; nothing was done.
        """
        if not self._gateway.quorum:
            return
        driver = await self._driver()
        try:
            await driver.execute(_WAIT_FOR_QUORUM, timeout=self._deadline.remaining_s())
        except TimeoutError as error:
            self._broken = True
            raise DeadlineExceededError from error
        except NODE_FAILURES as error:
            raise self._translated(error) from error

    async def position(self) -> CausalToken:
        """A token that contains everything that this connection could see.

        Raises:
            CommitLostError: the primary went away, so that it is not known where the log stands.
        """
        driver, quorum = await self._driver(), self._gateway.quorum
        try:
            if quorum:
                row = await driver.fetchrow(_QUORUM_POSITION, quorum, timeout=self._deadline.remaining_s())
            else:
                row = await driver.fetchrow(_POSITION, timeout=self._deadline.remaining_s())
        except NODE_FAILURES as error:
            self._broken = True
            raise CommitLostError from error
        history = self._gateway.snapshot.history
        if row is None or history is None:
            raise CommitLostError
        return CausalToken(history.system_id, row["timeline"], Lsn(row["position"]))

    @property
    def _connection(self) -> AsyncConnection:
        if self._opened is None:
            raise RuntimeError("the unit of work is not open")
        return self._opened

    async def _driver(self) -> "asyncpg.Connection[asyncpg.Record]":
        """The driver's connection, for what happens outside the transaction: one round trip instead of three."""
        try:
            pooled = await self._connection.get_raw_connection()
        except Exception as error:
            raise self._translated(error) from error
        driver: asyncpg.Connection[asyncpg.Record] | None = pooled.driver_connection
        if driver is None:
            raise ConnectionLostError
        return driver

    def _listen(self, driver: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Hears what the server says beside its answer; a connection that is gone by now has committed nothing."""
        try:
            driver.add_log_listener(self._hear)
        except NODE_FAILURES as error:
            raise self._translated(error) from error

    def _hear(self, _connection: object, message: asyncpg.PostgresLogMessage) -> None:
        """Any WARNING during COMMIT means that it is not what it should be, whatever the command tag says."""
        if getattr(message, "severity_en", None) == "WARNING":
            log.error("commit_warning", text=str(message))
            self._warned = True

    def _translated(self, error: Exception) -> Exception:
        translated = translate(error)
        if isinstance(translated, ConnectionLostError):
            self._broken = True
            self._end_generation()
        return translated or error

    def _end_generation(self) -> None:
        if self.generation is not None:
            self._gateway.end_generation(self.generation)

    def _abandon(self, committing: "asyncio.Task[None]") -> None:
        """Leaves the connection to the commit that is still under way."""
        connection, self._opened = self._connection, None

        async def finish() -> None:
            await asyncio.wait({committing})
            log.warning("commit_ended_late", failed=committing.exception() is not None)
            await _give_back(connection, broken=True)

        self._gateway.keep_until_done(asyncio.create_task(finish()))


@cache
def _join(statements: tuple[TextClause, ...]) -> TextClause:
    """One statement of several that change something; the names of their parameters get the place of their statement.

    There are as many of these as there are kinds of work, so that each is prepared once on every connection.
    """
    *others, last = (_PARAMETER.sub(rf":\g<1>_{i}", statement.text) for i, statement in enumerate(statements))
    named = ", ".join(f"step_{i} as ({other})" for i, other in enumerate(others))
    return text(f"with {named} {last}" if named else last)


async def _give_back(connection: AsyncConnection, *, broken: bool) -> None:
    """Rolls back and returns the connection to its pool; a broken one, or one that does not answer, is cut."""
    try:
        if not broken:
            async with asyncio.timeout(_ROLLBACK_S):
                await connection.close()
            return
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  whatever it was: cut it
        log.debug("rollback_failed", error=type(error).__name__)
    try:
        async with asyncio.timeout(_ROLLBACK_S):
            await connection.invalidate()
            await connection.close()
    except Exception as error:  # noqa: BLE001
        log.debug("connection_lost", error=type(error).__name__)
