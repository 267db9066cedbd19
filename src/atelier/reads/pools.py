"""The nodes as this process reads from them: a reader per node and purpose, and how each of them is doing."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from atelier.deadline import Clock
from atelier.reads.batch import NodeReader, Purpose
from atelier.reads.health import NodeHealth
from atelier.reads.router import Load
from atelier.settings import NodeAddress, Settings
from atelier.telemetry import EJECTIONS
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState

# A process that did not run for a while finds all answers late, though they are there: it looks again after this.
_SECOND_LOOK_S = 0.01
_LOOK_S = 0.001

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Suspicion:
    """A node seems silent; confirmed when it still does after whatever had arrived was taken in.

    Attributes:
        until_s: when it will have answered, or count as failed or unreachable.
        confirmed: whether the second look is over.
        counted: whether this spell of silence has been counted.
    """

    until_s: float
    confirmed: bool = False
    counted: bool = False

    def confirm(self) -> None:
        """The second look is over."""
        self.confirmed = True


class ReadPools:
    """Owns all reading connections of the process; readers are made at first use, closed when their node leaves."""

    def __init__(self, settings: Settings, *, clock: Clock = time.monotonic) -> None:
        """Takes the credentials and bounds. Does no I/O."""
        self._settings = settings
        self._clock = clock
        self._readers: dict[tuple[NodeAddress, Purpose], NodeReader] = {}
        self._loads: dict[str, Load] = {}
        self._weights = dict(settings.reads.weights)
        self._stalled_ms = settings.ejection.stalled_ms
        self._silent_ms = max(settings.timeouts.probe_ms, settings.timeouts.statement_ms)
        self._suspicions: dict[str, _Suspicion] = {}
        self._generation = 0
        self._busy: list[tuple[Load, NodeReader]] = []
        self._looked_at_s = -math.inf
        self._changes_seen = 0
        self._closing: set[asyncio.Task[None]] = set()
        # A little more than a statement gets: its own end tells more than running out of patience does.
        self.patience_s = 1.1 * settings.timeouts.statement_ms / 1000
        self.health = NodeHealth(settings.ejection, trial_s=settings.timeouts.statement_ms / 1000, clock=clock)

    def reader(self, node: NodeState) -> NodeReader:
        """What runs reads on a node in its present role: what fell back to the primary has a cap of its own."""
        purpose: Purpose = "primary" if node.role == "primary" else "replica"
        key = (node.address, purpose)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = NodeReader(self._settings, node.address, purpose, clock=self._clock)
        return reader

    def in_flight(self, name: str) -> int:
        """How many reads a node runs for this process now."""
        return sum(reader.in_flight for (address, _), reader in self._readers.items() if address.name == name)

    def connections(self, name: str) -> Mapping[str, int]:
        """How many connections this process has to a node, `open`, and how many of them run a statement, `busy`."""
        pools = [reader.pool for (address, _), reader in self._readers.items() if address.name == name]
        return {"open": sum(pool.size for pool in pools), "busy": sum(pool.lent for pool in pools)}

    def loads(self, snapshot: ClusterSnapshot, monitor: TopologyMonitor) -> Mapping[str, Load]:
        """What the router shall know of each node beside its position; the same objects every time, brought up to date.

        A node that failed is left alone for a while, and so is one that has just gone silent: to a read, or to the
        monitor's probe, before its observation expires. What it is busy with is that of now, all else at most a
        millisecond old: to look at all of it costs as much as a tenth of a read.
        """
        if snapshot.generation != self._generation:
            self._keep(snapshot)
        now_s = self._clock()
        if now_s - self._looked_at_s >= _LOOK_S or self.health.changes != self._changes_seen:
            self._looked_at_s, self._changes_seen = now_s, self.health.changes
            self._look(snapshot, monitor)
        for load, reader in self._busy:
            load.in_flight = reader.in_flight
        return self._loads

    def _look(self, snapshot: ClusterSnapshot, monitor: TopologyMonitor) -> None:
        self._busy = []
        for node in snapshot.nodes:
            name = node.name
            load = self._loads.get(name)
            if load is None:
                load = self._loads[name] = Load(weight=self._weights.get(name, 1))
            reader = self._readers.get((node.address, "primary" if node.role == "primary" else "replica"))
            silent_ms = max(monitor.unanswered_ms(name), reader.stalled_ms() if reader else 0.0)
            load.in_flight = 0
            load.ewma_ms = self.health.ewma_ms(name)
            load.ejected = self._is_silent(node, silent_ms) or self.health.is_out(name)
            if reader:
                self._busy.append((load, reader))

    def ejected_until_s(self, name: str) -> float | None:
        """When the node's ejection ends, at the latest if it is for silence; None when it is in.

        True of the last look that `loads` took. May have passed, while nobody has tried the node.
        """
        suspicion = self._suspicions.get(name)
        ends_s = [suspicion.until_s] if suspicion and suspicion.confirmed else []
        ejected_until_s = self.health.ejected_until_s(name)
        return max(ends_s if ejected_until_s is None else [*ends_s, ejected_until_s], default=None)

    async def close(self) -> None:
        """Lets what runs come to its end, within the drain time, and closes everything."""
        readers, self._readers = list(self._readers.values()), {}
        for reader in readers:
            self._close_soon(reader)
        await asyncio.gather(*self._closing)

    def _is_silent(self, node: NodeState, silent_ms: float) -> bool:
        name = node.name
        if silent_ms <= self._stalled_ms:
            self._suspicions.pop(name, None)
            return False
        suspicion = self._suspicions.get(name)
        if suspicion is None:
            until_s = self._clock() + (self._silent_ms - silent_ms) / 1000
            suspicion = self._suspicions[name] = _Suspicion(until_s)
            asyncio.get_running_loop().call_later(_SECOND_LOOK_S, suspicion.confirm)
        # A node that is unreachable is looked for again and again: it is out of routing by that, not by its silence.
        if suspicion.confirmed and not suspicion.counted and node.role in ("primary", "replica"):
            suspicion.counted = True
            EJECTIONS.count(name, "silent")
        return suspicion.confirmed

    def _keep(self, snapshot: ClusterSnapshot) -> None:
        """Closes the readers of nodes that left, or that have another role in this generation; forgets the former."""
        self._generation = snapshot.generation
        self._looked_at_s = -math.inf
        names = {node.name for node in snapshot.nodes}
        self.health.keep(names)
        self._loads = {name: load for name, load in self._loads.items() if name in names}
        self._suspicions = {name: one for name, one in self._suspicions.items() if name in names}
        if strangers := sorted(self._weights.keys() - names):
            log.warning("weights_of_unknown_nodes", nodes=strangers)
        wanted = {(node.address, "primary" if node.role == "primary" else "replica") for node in snapshot.nodes}
        for key in [key for key in self._readers if key not in wanted]:
            self._close_soon(self._readers.pop(key))

    def _close_soon(self, reader: NodeReader) -> None:
        task = asyncio.create_task(reader.close(self._settings.timeouts.drain_ms / 1000))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
