"""Asks one node where it stands: one statement on one connection of its own."""

from datetime import datetime
from types import TracebackType
from typing import Self

import asyncpg

from atelier.errors import PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.settings import NodeAddress, Timeouts
from atelier.token import History
from atelier.topology.state import Observation

# Constant for the life of a connection: a server that starts again has closed it.
WHO_ARE_YOU = """
select (select system_identifier from pg_control_system()) as system_id, pg_postmaster_start_time() as started_at
"""

# The timeline and the position come from the same statement. A primary tells its timeline by the name of the file it
# flushes to, a standby by what it streams: pg_control_checkpoint() is old until the next checkpoint, and on a promoted
# node pg_last_wal_replay_lsn() stays at the fork for ever. CASE evaluates only the branch that it takes.
WHERE_ARE_YOU = """
select
    state.in_recovery,
    case when state.in_recovery then receiver.received_tli
         else ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::integer end as timeline,
    case when state.in_recovery then pg_last_wal_receive_lsn()::text end as received_lsn,
    case when state.in_recovery then pg_last_wal_replay_lsn()::text
         else pg_current_wal_flush_lsn()::text end as replayed_lsn,
    coalesce(receiver.status = 'streaming', false) as streaming
from (select pg_is_in_recovery() as in_recovery) as state
left join pg_stat_wal_receiver as receiver on true
"""

NEWEST_HISTORY = "select timeline, content from atelier_monitor.newest_history()"


class Probe:
    """The monitor's connection to one node; holds for one start of that server."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", system_id: int, started_at: datetime) -> None:
        """Takes the open connection and what is constant on it; use `open`."""
        self._connection = connection
        self.system_id = system_id
        self.started_at = started_at
        self._last_timeline: int | None = None

    @classmethod
    async def open(cls, address: NodeAddress, *, database: str, password: str, timeouts: Timeouts) -> Self:
        """Connects as `monitor`.

        Raises:
            OSError, asyncpg.PostgresError, TimeoutError: the node does not answer, or not in time.
        """
        connection = await asyncpg.connect(
            host=address.host,
            port=address.port,
            user="monitor",
            password=password,
            database=database,
            timeout=timeouts.connect_ms / 1000,
            command_timeout=timeouts.probe_ms / 1000,
            ssl="prefer",
        )
        try:
            who = await connection.fetchrow(WHO_ARE_YOU)
        except BaseException:
            connection.terminate()
            raise
        assert who is not None  # noqa: S101  a select without FROM has one row
        return cls(connection, who["system_id"] % 2**64, who["started_at"])

    async def __aenter__(self) -> Self:
        """Owns the connection until the block ends."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cuts the connection; a goodbye could hang on a node that does not answer."""
        self._connection.terminate()

    async def observe(self, asked_at_s: float) -> Observation:
        """Asks where the node stands.

        Args:
            asked_at_s: monotonic time, taken before this call.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError: the node does not answer.
        """
        row = await self._connection.fetchrow(WHERE_ARE_YOU)
        assert row is not None  # noqa: S101  a left join of one row has one row
        # A standby whose receiver is away goes on with the timeline that it streamed last.
        self._last_timeline = row["timeline"] or self._last_timeline
        return Observation(
            observed_at_s=asked_at_s,
            in_recovery=row["in_recovery"],
            system_id=self.system_id,
            timeline=self._last_timeline,
            started_at=self.started_at,
            received_lsn=Lsn.parse(row["received_lsn"]) if row["received_lsn"] else None,
            replayed_lsn=Lsn.parse(row["replayed_lsn"] or "0/0"),
            streaming=row["streaming"],
        )

    async def read_history(self, timeline: int) -> History:
        """Reads how history came to a timeline, from the newest history file of a primary on it.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError: the node does not answer.
            PrimaryUnavailableError: the file is not of that timeline: the node was promoted a moment ago, or again.
        """
        if timeline == 1:
            return History(self.system_id, 1)
        row = await self._connection.fetchrow(NEWEST_HISTORY)
        if row is None or row["timeline"] != timeline:
            raise PrimaryUnavailableError(f"there is no history file of timeline {timeline} yet")
        return History(self.system_id, timeline, parse_history(row["content"]))


def parse_history(content: str) -> tuple[tuple[int, Lsn], ...]:
    """Reads a timeline history file: an ancestor, the position where history left it, and a reason, line by line.

    Raises:
        ValueError: a line has another form.
    """
    lines = (line.split("#")[0].split() for line in content.splitlines())
    return tuple((int(words[0]), Lsn.parse(words[1])) for words in lines if words)
