"""Connections to the primary, whoever that is now: one engine per generation, found through the topology."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from atelier.deadline import Clock, Deadline
from atelier.errors import DeadlineExceededError, OverloadedError, PrimaryUnavailableError
from atelier.settings import NodeAddress, Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState
from atelier.writes.failures import ConnectionLostError, translate

log = structlog.get_logger(__name__)

# Before a lost primary is asked again: long enough not to hammer it, short against a failover.
_BACKOFF_S = 0.05
_GRACE_S = 5.0
# How long a command waits for standbys to come (back) before it is refused.
_STANDBYS_S = 1.0

# What a connection must prove before it may carry commands. `synchronous_commit = off` would acknowledge commands
# that a crash takes back.
_CHECK = """
select pg_is_in_recovery() as in_recovery, current_setting('synchronous_commit') as durability,
       current_setting('synchronous_standby_names') as standbys
"""
# Where standbys are waited for until they have flushed: `local` waits for none, `remote_write` for what the crash of
# a machine loses.
_WAITS_FOR_FLUSH = frozenset({"on", "remote_apply"})
# https://www.postgresql.org/docs/18/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES
_AWAITED = re.compile(r"\s*(?:(?:any|first)\s+)?(?P<standbys>[0-9]+)\s*\(", re.ASCII | re.IGNORECASE)

Found = TypeVar("Found")
DriverConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class _Pool(AsyncAdaptedQueuePool):
    """Closes what is given back after its end. The library's own would keep it open, where nobody finds it again."""

    has_ended = False

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self.has_ended:
            record.close()
        # Also then: whoever waits here for a connection is woken by the empty place.
        super()._do_return_conn(record)


@dataclass(frozen=True, slots=True)
class _Engine:
    generation: int
    node: str
    engine: AsyncEngine
    opened: set[DriverConnection]


class PrimaryGateway:
    """Owns all writing connections of the process."""

    def __init__(
        self, monitor: TopologyMonitor, settings: Settings, *, connections: int, clock: Clock, quorum: int = 0
    ) -> None:
        """Takes who knows the primary, the credentials, the bound on connections, and the standbys a commit needs."""
        self._monitor = monitor
        self._clock = clock
        self._settings = settings
        self._connections = connections
        self.quorum = quorum
        self._current: _Engine | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._opened: set[DriverConnection] = set()

    @property
    def snapshot(self) -> ClusterSnapshot:
        """The topology as it is known now."""
        return self._monitor.snapshot

    async def connect(self, deadline: Deadline) -> tuple[AsyncConnection, int]:
        """Gives a connection to the present primary; whoever takes it closes it.

        Returns:
            The connection, and the generation that it belongs to.

        Raises:
            PrimaryUnavailableError: no primary was found, or it could not be reached, before the deadline; or fewer
                standbys stream from it than a commit needs, so that it could not be answered anyway.
            OverloadedError: no connection became free.
        """
        current = self._engine_of(await self._find_primary(deadline))
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await current.engine.connect(), current.generation
        except TimeoutError as error:
            # With places left the wait was for the server to open a connection, not for one of ours to become free.
            pool = current.engine.pool
            if isinstance(pool, _Pool) and pool.checkedout() < self._connections:
                raise PrimaryUnavailableError from error
            raise OverloadedError from error
        except PrimaryUnavailableError:
            self.end_generation(current.generation)
            raise
        except Exception as error:
            self.end_generation(current.generation)
            raise translate(error) or ConnectionLostError() from error

    def end_generation(self, generation: int) -> None:
        """Drops the connections of a generation: something showed that its primary is not what it was."""
        current = self._current
        if current is not None and current.generation == generation:
            self._current = None
            self._dispose(current)
            self._monitor.suspect(current.node)

    async def wait_for_another_try(self, deadline: Deadline) -> None:
        """Waits a moment, then until a primary is known.

        Raises:
            PrimaryUnavailableError: the deadline came first.
        """
        if deadline.remaining_s() <= _BACKOFF_S:
            raise PrimaryUnavailableError
        await asyncio.sleep(_BACKOFF_S)
        await self._find_primary(deadline)

    async def try_until(self, deadline: Deadline, look: Callable[[Deadline], Awaitable[Found]]) -> Found:
        """Looks something up, again when the connection was lost under it: an idle one tells its end only when used.

        Raises:
            PrimaryUnavailableError: the deadline came first.
            AtelierError: what `look` raised otherwise.
        """
        while True:
            try:
                return await look(deadline)
            except ConnectionLostError:
                await self.wait_for_another_try(deadline)

    async def close(self) -> None:
        """Closes all connections, also those that still wait for a commit."""
        if self._current is not None:
            self._dispose(self._current)
            self._current = None
        if self._ending:
            await asyncio.wait(self._ending, timeout=_GRACE_S)
        for task in self._ending:
            task.cancel()
        for connection in tuple(self._opened):
            connection.terminate()

    def keep_until_done(self, task: "asyncio.Task[None]") -> None:
        """Holds on to a task that outlives its request, such as a commit whose answer has not come."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _find_primary(self, deadline: Deadline) -> ClusterSnapshot:
        """Waits for a primary, and a little for the standbys that a commit needs to be answered."""
        try:
            await self._monitor.wait_until(lambda snapshot: snapshot.primary is not None, deadline)
            return await self._monitor.wait_until(self._can_commit, deadline.sooner(_STANDBYS_S))
        except DeadlineExceededError as error:
            if self._monitor.snapshot.primary is None:
                raise PrimaryUnavailableError from error
            raise PrimaryUnavailableError(f"fewer than {self.quorum} standbys stream from the primary") from error

    def _can_commit(self, snapshot: ClusterSnapshot) -> bool:
        if snapshot.primary is None or not self.quorum:
            return snapshot.primary is not None
        now_s = self._clock()
        streaming = [node for node in snapshot.replicas if node.is_fresh(now_s) and node.observation]
        return sum(node.observation.streaming for node in streaming if node.observation) >= self.quorum

    def _engine_of(self, snapshot: ClusterSnapshot) -> _Engine:
        primary = snapshot.primary
        if primary is None:
            raise PrimaryUnavailableError
        current = self._current
        if current is not None and current.generation == snapshot.generation and current.node == primary.name:
            return current
        if current is not None:
            self._dispose(current)
        self._current = self._make_engine(snapshot.generation, primary)
        return self._current

    def _make_engine(self, generation: int, primary: NodeState) -> _Engine:
        opened: set[DriverConnection] = set()

        async def open_connection() -> DriverConnection:
            connection = await self._open(primary.address)
            for register in (opened, self._opened):
                register.add(connection)
                connection.add_termination_listener(register.discard)
            return connection

        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=open_connection,
            poolclass=_Pool,
            pool_size=self._connections,
            max_overflow=0,
            pool_timeout=self._settings.timeouts.command_ms / 1000,
        )
        return _Engine(generation, primary.name, engine, opened)

    async def _open(self, address: NodeAddress) -> DriverConnection:
        """Connects and checks.

        No command timeout: the driver would cancel a COMMIT, which under synchronous replication leaves it visible,
        unreplicated and reported as success. Deadlines are kept by the unit of work.
        """
        connection = await asyncpg.connect(
            host=address.host,
            port=address.port,
            user="writer",
            password=self._settings.writer_password,
            database=self._settings.database,
            timeout=self._settings.timeouts.connect_ms / 1000,
            # Statements take arrays: one plan does for all of them, and planning a batch takes as long as running it.
            server_settings={"application_name": "atelier-writes", "plan_cache_mode": "force_generic_plan"},
        )
        try:
            self._check(await connection.fetchrow(_CHECK, timeout=self._settings.timeouts.connect_ms / 1000))
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _check(self, row: "asyncpg.Record | None") -> None:
        if row is None or row["in_recovery"]:
            raise ConnectionLostError("the node that was the primary is a standby now")
        if row["durability"] == "off":
            raise PrimaryUnavailableError("the primary acknowledges commits that a crash would lose")
        if not self.quorum:
            return
        if row["durability"] not in _WAITS_FOR_FLUSH or count_awaited(row["standbys"]) < self.quorum:
            raise PrimaryUnavailableError(f"the primary is not set up to wait for {self.quorum} of its standbys")

    def _dispose(self, current: _Engine) -> None:
        """Ends an engine: its idle connections are cut now, those in a transaction close when they are given back."""
        log.info("write_generation_ended", node=current.node, generation=current.generation)
        pool = current.engine.pool
        if isinstance(pool, _Pool):
            pool.has_ended = True
        for connection in tuple(current.opened):
            # Without a goodbye: a server that is frozen would never answer it.
            if not connection.is_closed() and not connection.is_in_transaction():
                connection.terminate()
        self.keep_until_done(asyncio.create_task(_dispose_quietly(current.engine)))


def count_awaited(standby_names: str) -> int:
    """How many standbys a commit waits for under `synchronous_standby_names`; a plain list asks for one."""
    match = _AWAITED.match(standby_names)
    if match is not None:
        return int(match["standbys"])
    return 1 if standby_names.strip() else 0


async def _dispose_quietly(engine: AsyncEngine) -> None:
    """A connection that cannot be closed is as good as closed."""
    try:
        async with asyncio.timeout(_GRACE_S):
            await engine.dispose()
    except Exception as error:  # noqa: BLE001
        log.debug("dispose_failed", error=type(error).__name__)
