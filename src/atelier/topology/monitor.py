"""Watches all nodes, keeps the snapshot (its only writer), and wakes those who wait for a change of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import asyncpg
import structlog

from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError, NodeError
from atelier.lsn import Lsn
from atelier.settings import NodeAddress, Settings
from atelier.token import History
from atelier.topology.lag import LagHistory
from atelier.topology.probe import Probe
from atelier.topology.sources import NodeSource
from atelier.topology.state import ClusterSnapshot, NodeState, Observation, judge_nodes

# While nobody waits a position is at most this old; while somebody does, probing costs less than waiting.
IDLE_INTERVAL_S = 0.1
HURRY_INTERVAL_S = 0.002
RECONNECT_INTERVAL_S = 0.25
# The list of nodes is read again this often.
RELIST_INTERVAL_S = 5.0

# A replica is probed when the primary has just been; by itself only when that does not come.
REPLICA_INTERVAL_S = 1.5 * IDLE_INTERVAL_S

# What a node can do to a probe; anything else is a mistake of ours and shall be seen.
NODE_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, NodeError)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiter:
    predicate: Callable[[ClusterSnapshot], bool]
    future: "asyncio.Future[ClusterSnapshot]"


class TopologyMonitor:
    """One per process. Probes each node about every 100 ms on a connection of its own, faster while someone waits.

    Use it as an async context manager; leaving it stops the probes and fails the waiters.
    """

    def __init__(
        self, settings: Settings, source: NodeSource, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes the credentials and bounds from the settings and the nodes from the source. Does no I/O."""
        self._settings = settings
        self._source = source
        self._clock = clock
        self._lag = LagHistory()
        self._states: dict[str, NodeState] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._hurries: dict[str, asyncio.Event] = {}
        self._waiters: list[_Waiter] = []
        self._primary_key: tuple[object, ...] | None = None
        self._relisting: asyncio.Task[None] | None = None
        self.snapshot = ClusterSnapshot()

    async def __aenter__(self) -> Self:
        """Starts watching; the first snapshot knows no positions yet."""
        await self._relist()
        self._relisting = asyncio.create_task(self._relist_forever(), name="topology-relist")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops all probes and wakes all waiters with a cancellation."""
        tasks = [*self._watches.values(), *([self._relisting] if self._relisting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiter in self._waiters:
            waiter.future.cancel()

    async def wait_until(
        self, predicate: Callable[[ClusterSnapshot], bool], deadline: Deadline
    ) -> ClusterSnapshot:
        """Waits for a snapshot that satisfies a predicate; all waiters share the same probes.

        Returns:
            That snapshot, at once when the present one satisfies it.

        Raises:
            DeadlineExceededError: none came in time.
        """
        if predicate(self.snapshot):
            return self.snapshot
        waiter = _Waiter(predicate, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._hurry_all()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await waiter.future
        except TimeoutError as error:
            raise DeadlineExceededError from error
        finally:
            self._waiters.remove(waiter)

    async def wait_for_fresh(self, deadline: Deadline) -> ClusterSnapshot:
        """Waits until the primary has been probed once more, beginning after this call.

        Raises:
            DeadlineExceededError: the primary did not answer in time.
        """
        since_s = self._clock()

        def is_newer(snapshot: ClusterSnapshot) -> bool:
            primary = snapshot.primary
            return bool(primary and primary.observation and primary.observation.observed_at_s >= since_s)

        return await self.wait_until(is_newer, deadline)

    def suspect(self, name: str) -> None:
        """Somebody had trouble with a node: probe it now."""
        if name in self._hurries:
            self._hurries[name].set()

    # Watching

    async def _relist_forever(self) -> None:
        while True:
            await asyncio.sleep(RELIST_INTERVAL_S)
            await self._relist()

    async def _relist(self) -> None:
        addresses = await self._source.nodes()
        for name, state in list(self._states.items()):
            if state.address not in addresses:
                self._watches.pop(name).cancel()
                del self._states[name], self._hurries[name]
        for address in addresses:
            if address.name not in self._states:
                self._states[address.name] = NodeState(address)
                self._hurries[address.name] = asyncio.Event()
                watch = asyncio.create_task(self._watch(address), name=f"probe-{address.name}")
                watch.add_done_callback(_report_mistake)
                self._watches[address.name] = watch
        # The settings' order is kept, so that tables and answers do not jump.
        self._states = {address.name: self._states[address.name] for address in addresses}
        self._publish()

    async def _watch(self, address: NodeAddress) -> None:
        """Keeps one node's state up to date, over any number of connections, until cancelled."""
        while True:
            try:
                await self._watch_one_start(address)
            except NODE_FAILURES as error:
                self._lose(address, f"{type(error).__name__}: {error}".strip(": "))
            await self._pause(address.name, RECONNECT_INTERVAL_S)

    async def _watch_one_start(self, address: NodeAddress) -> None:
        opened = await Probe.open(
            address,
            database=self._settings.database,
            password=self._settings.monitor_password,
            timeouts=self._settings.timeouts,
        )
        async with opened as probe:
            while True:
                asked_at_s = self._clock()
                seen = await probe.observe(asked_at_s)
                await self._learn(address, probe, seen)
                await self._pause(address.name, self._interval_s(address.name))

    def _interval_s(self, name: str) -> float:
        if self._waiters:
            return HURRY_INTERVAL_S
        primary = self.snapshot.primary
        return IDLE_INTERVAL_S if primary is None or primary.name == name else REPLICA_INTERVAL_S

    async def _pause(self, name: str, interval_s: float) -> None:
        hurry = self._hurries.get(name)
        if hurry is None:
            return
        hurry.clear()
        try:
            async with asyncio.timeout(interval_s):
                await hurry.wait()
        except TimeoutError:
            return

    # Learning

    async def _learn(self, address: NodeAddress, probe: Probe, seen: Observation) -> None:
        """Takes in one observation; a primary on a timeline not known yet first tells how it came there."""
        history = self.snapshot.history
        if not seen.in_recovery and seen.timeline is not None and _is_news(history, seen):
            history = await probe.read_history(seen.timeline)
            self._forget_lost_positions(history)
        self._states[address.name] = replace(self._states[address.name], observation=seen)
        self._publish(history)
        primary = self.snapshot.primary
        if primary is not None and primary.name == address.name:
            self._hurry_replicas(primary)

    def _forget_lost_positions(self, history: History) -> None:
        known = self.snapshot.history
        fork = history.fork_of(known.timeline) if known else None
        if fork is not None:
            self._lag.drop_beyond(fork)

    def _lose(self, address: NodeAddress, reason: str) -> None:
        state = self._states.get(address.name)
        if state is None or state.address != address:
            return
        if state.observation is not None:
            log.warning("node_lost", node=address.name, reason=reason)
        self._states[address.name] = NodeState(address, reason=reason)
        self._publish()

    def _publish(self, history: History | None = None) -> None:
        """Judges all nodes anew, makes the next snapshot, and wakes those it satisfies."""
        history = history or self.snapshot.history
        nodes, primary = judge_nodes(tuple(self._states.values()), history)
        if primary is not None and primary.observation is not None:
            self._lag.add(primary.observation.observed_at_s, primary.observation.replayed_lsn)
        nodes = tuple(self._with_lag(node) for node in nodes)
        self.snapshot = ClusterSnapshot(nodes, history, self._next_generation(primary))
        for waiter in self._waiters:
            if not waiter.future.done() and waiter.predicate(self.snapshot):
                waiter.future.set_result(self.snapshot)

    def _with_lag(self, node: NodeState) -> NodeState:
        if node.role != "replica" or node.observation is None:
            return replace(node, lag_ms=0.0 if node.role == "primary" else None)
        seen = node.observation
        return replace(node, lag_ms=self._lag.lag_ms(seen.replayed_lsn, seen.observed_at_s))

    def _next_generation(self, primary: NodeState | None) -> int:
        if primary is None or primary.observation is None:
            return self.snapshot.generation
        key = (primary.name, primary.observation.started_at, primary.observation.timeline)
        if key == self._primary_key:
            return self.snapshot.generation
        self._primary_key = key
        log.info("primary_found", node=primary.name, timeline=primary.observation.timeline)
        return self.snapshot.generation + 1

    def _hurry_all(self) -> None:
        for hurry in self._hurries.values():
            hurry.set()

    def _hurry_replicas(self, primary: NodeState) -> None:
        """Probes the replicas right behind the primary, so that its sample is young when it bounds their lag."""
        for name, hurry in self._hurries.items():
            if name != primary.name:
                hurry.set()


def _report_mistake(task: "asyncio.Task[None]") -> None:
    """A watch ends only when it is cancelled; anything else would otherwise be silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("probe_broken", task=task.get_name(), exc_info=error)


def _is_news(known: History | None, seen: Observation) -> bool:
    if known is None:
        return True
    return seen.system_id == known.system_id and seen.timeline is not None and seen.timeline > known.timeline


def lag_bytes(snapshot: ClusterSnapshot, node: NodeState) -> int | None:
    """How many bytes of log a node has not replayed; None when it or the primary is not observed."""
    primary = snapshot.primary
    if node.observation is None or primary is None or primary.observation is None:
        return None
    return max(0, primary.observation.replayed_lsn - node.observation.replayed_lsn)


def flushed(snapshot: ClusterSnapshot) -> Lsn | None:
    """What the primary had flushed when it was last observed; None when there is none."""
    primary = snapshot.primary
    return primary.observation.replayed_lsn if primary and primary.observation else None
