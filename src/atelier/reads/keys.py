"""API keys for the reading side: looked up on a replica, because reads go on when the primary is gone.

A revoked key is refused as soon as the replica has replayed it: milliseconds, or as long as the replica is behind.
"""

import asyncio

import asyncpg

from atelier.access.verify import LOOKUP_SQL, KeyRecord
from atelier.deadline import Clock
from atelier.errors import NoReplicaError
from atelier.reads.connections import NODE_FAILURES, ReaderConnection, connect_reader
from atelier.settings import NodeAddress, Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState

_REPLICAS = 2


class KeyLookup:
    """Finds API keys, over one connection a node, because the answers are remembered anyway."""

    def __init__(self, settings: Settings, monitor: TopologyMonitor, *, clock: Clock) -> None:
        """Takes the credentials and who knows the nodes. Does no I/O."""
        self._settings = settings
        self._monitor = monitor
        self._clock = clock
        self._connections: dict[NodeAddress, ReaderConnection] = {}
        self._in_turn = asyncio.Lock()

    async def find(self, prefix: str) -> KeyRecord | None:
        """Finds a key by its prefix: on the freshest replica, and where that knows none, on the primary.

        A key that was made a moment ago may not have been replayed yet, and its owner shall not be told that it is
        wrong.

        Raises:
            NoReplicaError: no node answers.
        """
        answered = False
        async with self._in_turn:
            for node in self._choose(self._monitor.snapshot):
                try:
                    row = await self._ask(node.address, prefix)
                except NODE_FAILURES:
                    self._drop(node.address)
                    self._monitor.suspect(node.name)
                    continue
                answered = True
                if row is not None:
                    return KeyRecord(**{**row, "scopes": frozenset(row["scopes"])})
        if not answered:
            raise NoReplicaError
        return None

    def close(self) -> None:
        """Cuts the connections."""
        for address in list(self._connections):
            self._drop(address)

    async def _ask(self, address: NodeAddress, prefix: str) -> asyncpg.Record | None:
        connection = self._connections.get(address)
        if connection is None or connection.is_closed():
            connection = self._connections[address] = await connect_reader(self._settings, address)
        return await connection.fetchrow(LOOKUP_SQL, prefix, timeout=self._settings.timeouts.statement_ms / 1000)

    def _drop(self, address: NodeAddress) -> None:
        connection = self._connections.pop(address, None)
        if connection is not None:
            connection.terminate()

    def _choose(self, snapshot: ClusterSnapshot) -> list[NodeState]:
        """Two replicas, the one with the smallest lag first, so that a revoked key is known soon; then the primary."""
        now_s = self._clock()
        usable = [node for node in snapshot.replicas if node.is_fresh(now_s)]
        lag_ms = {node.name: lag for node in usable if (lag := node.lag_ms_at(now_s)) is not None}
        usable.sort(key=lambda node: lag_ms.get(node.name, float("inf")))
        return usable[:_REPLICAS] + ([snapshot.primary] if snapshot.primary is not None else [])
