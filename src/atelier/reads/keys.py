"""API keys for the reading side: looked up on a replica, because reads go on when the primary is gone.

A revoked key is refused as soon as the replica has replayed it: milliseconds, or as long as the replica is behind.
"""

import asyncio

import asyncpg

from atelier.access.verify import LOOKUP_SQL, KeyRecord
from atelier.deadline import Clock
from atelier.errors import NoReplicaError
from atelier.reads.connections import NODE_FAILURES, ReaderConnection, connect_reader
from atelier.settings import Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState

_ATTEMPTS = 3


class KeyLookup:
    """Finds API keys on the freshest node, over one connection, because the answers are remembered anyway."""

    def __init__(self, settings: Settings, monitor: TopologyMonitor, *, clock: Clock) -> None:
        """Takes the credentials and who knows the nodes. Does no I/O."""
        self._settings = settings
        self._monitor = monitor
        self._clock = clock
        self._node: str | None = None
        self._connection: ReaderConnection | None = None
        self._in_turn = asyncio.Lock()

    async def find(self, prefix: str) -> KeyRecord | None:
        """Finds a key by its prefix.

        Raises:
            NoReplicaError: no node answers.
        """
        failed: set[str] = set()
        for _ in range(_ATTEMPTS):
            async with self._in_turn:
                node = self._choose(self._monitor.snapshot, failed)
                try:
                    row = await self._ask(node, prefix)
                except NODE_FAILURES:
                    failed.add(node.name)
                    self.close()
                    self._monitor.suspect(node.name)
                else:
                    return None if row is None else KeyRecord(**{**row, "scopes": frozenset(row["scopes"])})
        raise NoReplicaError

    def close(self) -> None:
        """Cuts the connection."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None

    async def _ask(self, node: NodeState, prefix: str) -> asyncpg.Record | None:
        if self._connection is None or self._node != node.name or self._connection.is_closed():
            self.close()
            self._connection, self._node = await connect_reader(self._settings, node.address), node.name
        timeout_s = self._settings.timeouts.statement_ms / 1000
        return await self._connection.fetchrow(LOOKUP_SQL, prefix, timeout=timeout_s)

    def _choose(self, snapshot: ClusterSnapshot, failed: set[str]) -> NodeState:
        """The replica with the smallest lag, so that a revoked key is known soon; without one, the primary."""
        now_s = self._clock()
        usable = [node for node in snapshot.replicas if node.is_fresh(now_s) and node.name not in failed]
        lag_ms = {node.name: lag for node in usable if (lag := node.lag_ms_at(now_s)) is not None}
        chosen = min(usable, key=lambda node: lag_ms.get(node.name, float("inf")), default=snapshot.primary)
        if chosen is None or chosen.name in failed:
            raise NoReplicaError
        return chosen
