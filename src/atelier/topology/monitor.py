"""Watches all nodes, keeps the snapshot (its only writer), and wakes those who wait for a change of it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

import asyncpg
import structlog

from atelier.deadline import Deadline
from atelier.errors import AtelierError, DeadlineExceededError, NodeError
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
RELIST_INTERVAL_S = 2.0

# A replica is probed when the primary has just been; by itself only when that does not come.
REPLICA_INTERVAL_S = 1.5 * IDLE_INTERVAL_S

# What a node can do to a probe; anything else is a mistake of ours and shall be seen. (A server that ends in the middle
# of a query can make the driver trip over itself: "cannot switch to state 12".)
NODE_FAILURES = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    NodeError,
)

Whom = Literal["all", "replicas"]

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Waiter:
    predicate: Callable[[ClusterSnapshot], bool]
    future: "asyncio.Future[ClusterSnapshot]"
    whom: Whom


@dataclass(slots=True)
class _Watch:
    """The monitor's handle on one node's probing task."""

    address: NodeAddress
    hurry: asyncio.Event
    task: "asyncio.Task[None] | None" = None
    asked_at_s: float | None = None


class TopologyMonitor:
    """One per process. Probes each node about every 100 ms on a connection of its own, faster while someone waits.

    Use it as an async context manager; leaving it stops the probes and fails the waiters.
    """

    def __init__(self, settings: Settings, source: NodeSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the credentials and bounds from the settings and the nodes from the source. Does no I/O."""
        self._settings = settings
        self._source = source
        self._clock = clock
        self._lag = LagHistory()
        self._states: dict[str, NodeState] = {}
        self._watches: dict[str, _Watch] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._waiters: list[_Waiter] = []
        self._primary_key: tuple[object, ...] | None = None
        self._generation = 0
        self._relisting: asyncio.Task[None] | None = None
        self._relist_now = asyncio.Event()
        self.snapshot = ClusterSnapshot()

    async def __aenter__(self) -> Self:
        """Starts watching; the first snapshot knows no positions yet.

        While the list of nodes cannot be had, the settings' nodes stand for it: a worker that is replaced while a wrong
        list is there has to serve like those beside it.
        """
        self._take_list(await self._read_list() or self._settings.nodes)
        self._relisting = asyncio.create_task(self._relist_forever(), name="topology-relist")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops all probes and wakes all waiters with a cancellation."""
        tasks = [watch.task for watch in self._watches.values() if watch.task]
        tasks += [*self._leaving, *([self._relisting] if self._relisting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiter in self._waiters:
            waiter.future.cancel()

    async def wait_until(
        self, predicate: Callable[[ClusterSnapshot], bool], deadline: Deadline, *, whom: Whom = "all"
    ) -> ClusterSnapshot:
        """Waits for a snapshot that satisfies a predicate; all waiters share the same probes.

        Args:
            predicate: cheap, and without side effects: it is asked at every change.
            deadline: the bound on the wait.
            whom: the nodes whose news may satisfy it; they are probed faster meanwhile.

        Returns:
            That snapshot, at once when the present one satisfies it.

        Raises:
            DeadlineExceededError: none came in time.
        """
        if predicate(self.snapshot):
            return self.snapshot
        waiter = _Waiter(predicate, asyncio.get_running_loop().create_future(), whom)
        self._waiters.append(waiter)
        self._hurry(whom)
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
        return await self.wait_until(self.is_fresh_from_now(), deadline)

    def is_fresh_from_now(self) -> Callable[[ClusterSnapshot], bool]:
        """A test of snapshots: whether the primary has been probed once more, beginning after this call."""
        since_s = self._clock()

        def is_fresh(snapshot: ClusterSnapshot) -> bool:
            primary = snapshot.primary
            return bool(primary and primary.observation and primary.observation.observed_at_s >= since_s)

        return is_fresh

    def as_of_s(self, position: Lsn) -> float | None:
        """Since when, at the latest, a position of the present history contains every commit; None when not known."""
        return self._lag.as_of_s(position)

    def suspect(self, name: str) -> None:
        """Somebody had trouble with a node: probe it now."""
        if name in self._watches:
            self._watches[name].hurry.set()

    def unanswered_ms(self, name: str) -> float:
        """How long the probe of a node that is on its way has been; 0 when none is."""
        watch = self._watches.get(name)
        if watch is None or watch.asked_at_s is None:
            return 0.0
        return (self._clock() - watch.asked_at_s) * 1000

    def relist_soon(self) -> None:
        """Has the list of nodes read again now: when the process is told to, by a signal."""
        self._relist_now.set()

    # The list of nodes

    async def _relist_forever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RELIST_INTERVAL_S):
                    await self._relist_now.wait()
            self._relist_now.clear()
            found = await self._read_list()
            if found is not None:
                self._take_list(found)

    async def _read_list(self) -> tuple[NodeAddress, ...] | None:
        """The list as it is now; None when it cannot be had: the one in force stays, no restart is needed."""
        try:
            return await self._source.nodes()
        except (AtelierError, OSError) as error:
            log.warning("node_list_unreadable", reason=str(error))
        except Exception:
            log.exception("node_list_broken")
        return None

    def _take_list(self, addresses: tuple[NodeAddress, ...]) -> None:
        if tuple(state.address for state in self._states.values()) == addresses:
            return
        for name, watch in list(self._watches.items()):
            if watch.address not in addresses:
                self._forget(name)
        for address in addresses:
            if address.name not in self._watches:
                self._begin(address)
        # The list's order is kept, so that tables and answers do not jump.
        self._states = {address.name: self._states[address.name] for address in addresses}
        self._generation += 1
        self._publish()

    def _begin(self, address: NodeAddress) -> None:
        watch = self._watches[address.name] = _Watch(address, asyncio.Event())
        self._states[address.name] = NodeState(address)
        watch.task = asyncio.create_task(self._watch(watch), name=f"probe-{address.name}")
        watch.task.add_done_callback(_report_mistake)

    def _forget(self, name: str) -> None:
        watch = self._watches.pop(name)
        del self._states[name]
        if watch.task:
            self._leaving.add(watch.task)
            watch.task.add_done_callback(self._leaving.discard)
            watch.task.cancel()

    # Watching

    async def _watch(self, watch: _Watch) -> None:
        """Keeps one node's state up to date, over any number of connections, until cancelled."""
        while True:
            try:
                await self._watch_one_start(watch)
            except NODE_FAILURES as error:
                self._lose(watch.address, f"{type(error).__name__}: {error}".strip(": "))
            except Exception as error:
                # A watch that ended would leave its node's last state standing for ever: worse than any mistake.
                log.exception("probe_broken", node=watch.address.name)
                self._lose(watch.address, f"{type(error).__name__}: {error}".strip(": "))
            finally:
                watch.asked_at_s = None
            await self._pause(watch, RECONNECT_INTERVAL_S)

    async def _watch_one_start(self, watch: _Watch) -> None:
        watch.asked_at_s = self._clock()
        opened = await Probe.open(
            watch.address,
            database=self._settings.database,
            password=self._settings.monitor_password,
            timeouts=self._settings.timeouts,
        )
        async with opened as probe:
            while True:
                asked_at_s = watch.asked_at_s = self._clock()
                seen = await probe.observe(asked_at_s)
                await self._learn(watch.address, probe, seen)
                watch.asked_at_s = None
                await self._pause(watch, self._interval_s(watch.address.name))

    def _interval_s(self, name: str) -> float:
        is_replica = (state := self._states.get(name)) is not None and state.role == "replica"
        if any(waiter.whom == "all" or is_replica for waiter in self._waiters):
            return HURRY_INTERVAL_S
        return REPLICA_INTERVAL_S if is_replica else IDLE_INTERVAL_S

    async def _pause(self, watch: _Watch, interval_s: float) -> None:
        watch.hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await watch.hurry.wait()

    # Learning

    async def _learn(self, address: NodeAddress, probe: Probe, seen: Observation) -> None:
        """Takes in one observation; a timeline that is not known yet first tells how history came there."""
        history = self.snapshot.history
        if _is_news(history, seen):
            history = await self._read_history(probe, seen)
        state = self._states.get(address.name)
        if state is None or state.address != address:
            return
        self._states[address.name] = replace(state, observation=seen)
        self._publish(history)
        primary = self.snapshot.primary
        if primary is not None and primary.name == address.name:
            self._hurry("replicas")

    async def _read_history(self, probe: Probe, seen: Observation) -> History | None:
        """The history of a node on a newer timeline.

        A standby on it tells it as well as its primary, which this process may not reach (yet); it may lack the file.
        """
        assert seen.timeline is not None  # noqa: S101  `_is_news` has looked
        try:
            history = await probe.read_history(seen.timeline)
        except NodeError:
            if seen.in_recovery:
                return self.snapshot.history
            raise
        known = self.snapshot.history
        fork = history.fork_of(known.timeline) if known else None
        if fork is not None:
            self._lag.drop_beyond(fork)
        log.info("history_learned", node_in_recovery=seen.in_recovery, timeline=history.timeline)
        return history

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
        known = self.snapshot.history
        if history is None or (known is not None and known.timeline > history.timeline):
            history = known
        nodes, primary = judge_nodes(tuple(self._states.values()), history)
        if primary is not None and primary.observation is not None:
            self._lag.add(primary.observation.observed_at_s, primary.observation.replayed_lsn)
        nodes = tuple(self._with_lag(node) for node in nodes)
        self._states = {node.name: node for node in nodes}
        self._note_primary(primary)
        self.snapshot = ClusterSnapshot(nodes, history, self._generation)
        for waiter in self._waiters:
            if not waiter.future.done() and waiter.predicate(self.snapshot):
                waiter.future.set_result(self.snapshot)

    def _with_lag(self, node: NodeState) -> NodeState:
        if node.role != "replica" or node.observation is None:
            return replace(node, lag_ms=0.0 if node.role == "primary" else None)
        seen = node.observation
        return replace(node, lag_ms=self._lag.lag_ms(seen.replayed_lsn, seen.observed_at_s))

    def _note_primary(self, primary: NodeState | None) -> None:
        """Begins a new generation when another server, or another start of one, is the primary."""
        if primary is None or primary.observation is None:
            return
        key = (primary.address, primary.observation.started_at, primary.observation.timeline)
        if key != self._primary_key:
            self._primary_key = key
            self._generation += 1
            log.info("primary_found", node=primary.name, timeline=primary.observation.timeline)

    def _hurry(self, whom: Whom) -> None:
        """Has nodes probed now; replicas right behind the primary, so that its sample is young when it bounds them."""
        for name, watch in self._watches.items():
            if whom == "all" or self._states[name].role != "primary":
                watch.hurry.set()


def _report_mistake(task: "asyncio.Task[None]") -> None:
    """A watch ends only when it is cancelled; anything else would otherwise be silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("probe_broken", task=task.get_name(), exc_info=error)


def _is_news(known: History | None, seen: Observation) -> bool:
    if seen.timeline is None:
        return False
    if known is None:
        return True
    return seen.system_id == known.system_id and seen.timeline > known.timeline


def lag_bytes(snapshot: ClusterSnapshot, node: NodeState) -> int | None:
    """How many bytes of log a node has not replayed; None when it or the primary is not observed."""
    primary = snapshot.primary
    if node.observation is None or primary is None or primary.observation is None:
        return None
    return max(0, primary.observation.replayed_lsn - node.observation.replayed_lsn)
