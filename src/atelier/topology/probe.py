"""Asks one node where it stands: one statement on one connection of its own."""

from datetime import datetime
from types import TracebackType
from typing import Any, Self

import asyncpg

from atelier.errors import PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.settings import NodeAddress, Timeouts
from atelier.token import History
from atelier.topology.settling import Settling
from atelier.topology.state import Observation

# Constant for the life of a connection: a server that starts again has closed it.
WHO_ARE_YOU = """
select (select system_identifier from pg_control_system()) as system_id, pg_postmaster_start_time() as started_at
"""

# Order matters and is kept by OFFSET 0 and LATERAL: first the positions, then the timeline and what runs. A timeline
# read later is that of the positions or of a descendant that shares them; one read earlier might be outdated.
#
# Timelines: a primary tells its own by the name of the file that it writes, a standby by what it streams, or, with its
# receiver away, by the newest files that it has written. pg_control_checkpoint() is old until the next checkpoint, and
# on a promoted node pg_last_wal_replay_lsn() stays at the fork for ever. CASE evaluates only the branch it takes.
#
# `waiting`: the startup process has replayed what it can and waits for more. Asked only where the positions leave it
# open, since it costs a look at every process.
WHERE_ARE_YOU = """
select
    state.*,
    case when not state.in_recovery then ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::integer
         else coalesce(receiver.received_tli, (
             select max(('x' || left(file.name, 8))::bit(32)::integer)
             from pg_ls_waldir() as file where file.name ~ '^[0-9A-F]{24}$')) end as timeline,
    coalesce(receiver.status = 'streaming', false) as streaming,
    case when state.in_recovery and (receiver.pid is null or state.received_lsn is distinct from state.replayed_lsn)
         then coalesce((
             select process.wait_event in ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')
             from pg_stat_get_activity(null) as process where process.backend_type = 'startup'), false)
              and current_setting('restore_command') = ''
         else false end as waiting,
    case when not state.in_recovery then array(
        select process.backend_xid::text::bigint from pg_stat_get_activity(null) as process
        where process.backend_xid is not null) end as running
from (
    select in_recovery,
           case when in_recovery then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end as replayed_lsn,
           case when in_recovery then pg_last_wal_receive_lsn() end as received_lsn
    from (select pg_is_in_recovery() as in_recovery offset 0) as recovery
    offset 0
) as state
left join lateral (
    select pid, status, received_tli from pg_stat_get_wal_receiver() where state.in_recovery
) as receiver on true
"""

NEWEST_HISTORY = "select timeline, content from atelier_monitor.newest_history()"

# A standby without a receiver that stood still between two probes so far apart has tried, and failed, to replay more:
# it tries again every wal_retrieve_retry_interval, half of this.
STILL_S = 1.0


class Probe:
    """The monitor's connection to one node; holds for one start of that server."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", system_id: int, started_at: datetime) -> None:
        """Takes the open connection and what is constant on it; use `open`."""
        self._connection = connection
        self.system_id = system_id
        self.started_at = started_at
        self._settling = Settling()
        self._still: tuple[object, float] | None = None
        self._waited: tuple[Lsn, float] | None = None

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
        replayed = Lsn(row["replayed_lsn"] or 0)
        return Observation(
            observed_at_s=asked_at_s,
            in_recovery=row["in_recovery"],
            system_id=self.system_id,
            timeline=row["timeline"],
            started_at=self.started_at,
            received_lsn=None if row["received_lsn"] is None else Lsn(row["received_lsn"]),
            replayed_lsn=replayed,
            streaming=row["streaming"],
            resting=row["in_recovery"] and self._is_resting(row, asked_at_s),
            rested_at_s=self._find_rest(row, replayed, asked_at_s),
            settled_lsn=None if row["in_recovery"] else self._settling.note(replayed, frozenset(row["running"])),
        )

    def _is_resting(self, row: Any, now_s: float) -> bool:
        """Whether no record beyond the replayed position was being replayed; see `Observation.resting`."""
        replayed, received = row["replayed_lsn"], row["received_lsn"]
        if received == replayed:
            return True
        if received is None or received < replayed:
            return bool(row["waiting"])
        # What was received further on may be half a record, as a crashed primary leaves it behind.
        place = (replayed, received)
        if not row["waiting"] or row["streaming"]:
            self._still = None
        elif self._still is None or self._still[0] != place:
            self._still = (place, now_s)
        return self._still is not None and now_s - self._still[1] >= STILL_S

    def _find_rest(self, row: Any, replayed: Lsn, now_s: float) -> float | None:
        """When nothing beyond the replayed position was in replay; see `Observation.rested_at_s`.

        A record that was in replay when the look before began had been replayed before its process was seen to wait,
        and would show in the position now. With all replayed that was received there is none.
        """
        before = self._waited
        self._waited = (replayed, now_s) if row["in_recovery"] and row["waiting"] else None
        if row["in_recovery"] and row["received_lsn"] == row["replayed_lsn"]:
            return now_s
        return before[1] if before is not None and before[0] == replayed and row["in_recovery"] else None

    async def read_history(self, timeline: int) -> History:
        """Reads how history came to a timeline, from the newest history file of a node that is on it.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError: the node does not answer.
            PrimaryUnavailableError: the file is not of that timeline: the node came to it a moment ago, or went on.
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
