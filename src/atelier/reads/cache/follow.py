"""Follows the outbox on every replica that this process reads from, each on its own, and tells the cache.

Unlike `tail.py`, which follows one node for the subscribers of the feed: here it matters what the very node shows
that an answer came from. A look is one statement of one row, whatever has happened.
"""

import asyncio
from typing import Any, Self

import structlog

from atelier.deadline import Clock
from atelier.lsn import Lsn
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.cache.source import News, Source
from atelier.reads.connections import NODE_FAILURES, ReaderConnection, connect_reader
from atelier.reads.position import PositionMovedError, check_start, known_timeline
from atelier.reads.queries import load_statements
from atelier.settings import NodeAddress, Settings
from atelier.token import CausalToken
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState, Observation

# What is kept stands at a position that is one to two of these old.
LOOK_INTERVAL_S = 0.02
# When nobody has asked for anything for a while; well below the time after which a source vouches for nothing.
IDLE_AFTER_S = 5.0
IDLE_INTERVAL_S = 0.25
RETRY_INTERVAL_S = 0.1
# A look brings at most so many changes; behind more of them the position stands still until all have been told.
BATCH = 5_000

log = structlog.get_logger(__name__)


class Followers:
    """One task a replica. Use it as an async context manager; with the cache switched off it does nothing."""

    def __init__(self, settings: Settings, monitor: TopologyMonitor, cache: AnswerCache, *, clock: Clock) -> None:
        """Takes the credentials, who knows the nodes, and who is told. Does no I/O."""
        self._settings = settings
        self._monitor = monitor
        self._cache = cache
        self._clock = clock
        self._tasks: dict[NodeAddress, asyncio.Task[None]] = {}
        self._minding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begins to follow."""
        if self._cache.is_on:
            self._minding = asyncio.create_task(self._mind_nodes(), name="cache-followers")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops; what is kept vouches for nothing soon."""
        tasks = [*self._tasks.values(), *([self._minding] if self._minding else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _mind_nodes(self) -> None:
        """Has a task for every node of the list, and for no other."""
        while True:
            present = {node.address for node in self._monitor.snapshot.nodes}
            for address in self._tasks.keys() - present:
                self._tasks.pop(address).cancel()
                self._cache.end(address.name)
            for address in present - self._tasks.keys():
                follower = _Follower(self._settings, self._monitor, self._cache, address, clock=self._clock)
                self._tasks[address] = asyncio.create_task(follower.run(), name=f"cache-{address.name}")
            await asyncio.sleep(RETRY_INTERVAL_S)


class _Follower:
    """Follows one node while it is a replica."""

    def __init__(
        self,
        settings: Settings,
        monitor: TopologyMonitor,
        cache: AnswerCache,
        address: NodeAddress,
        *,
        clock: Clock,
    ) -> None:
        """Does no I/O."""
        self._settings = settings
        self._monitor = monitor
        self._cache = cache
        self._address = address
        self._clock = clock
        self._statements = load_statements()
        self._connection: ReaderConnection | None = None

    async def run(self) -> None:
        """Follows until it is cancelled, over any number of connections and of the node's starts."""
        try:
            while True:
                if not self._is_replica():
                    await asyncio.sleep(RETRY_INTERVAL_S)
                    continue
                try:
                    await self._follow_one_start()
                except (*NODE_FAILURES, PositionMovedError) as error:
                    log.debug("cache_unheard", node=self._address.name, error=f"{type(error).__name__}: {error}"[:200])
                    self._monitor.suspect(self._address.name)
                except Exception:
                    # A source that nobody tells of any more vouches for nothing, so a mistake here costs only speed.
                    log.exception("cache_broken", node=self._address.name)
                self._disconnect()
                await asyncio.sleep(RETRY_INTERVAL_S)
        finally:
            self._disconnect()

    async def _follow_one_start(self) -> None:
        """Goes on with the source that the node has, if it is of this start of it, else begins a new one.

        Raises:
            PositionMovedError: the node is no replica, or another server than was observed.
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: it does not answer.
        """
        self._connection = await connect_reader(self._settings, self._address)
        source = self._cache.source(self._address.name) or await self._begin()
        reached: CausalToken | None = None
        while not source.ended:
            heard_at_s = self._clock()
            row = await self._look("changes_condensed", source.head, BATCH)
            reached = take_in(self._cache, source, self._observe(), row, before=reached, heard_at_s=heard_at_s)
            await asyncio.sleep(self._interval_s() if row["changes"] < BATCH else 0)

    async def _begin(self) -> Source:
        heard_at_s = self._clock()
        row = await self._look("changes_head")
        observed = self._observe()
        check_start(observed, row)
        source = Source(self._address.name, observed.started_at, row["head"], heard_at_s)
        self._cache.begin(source)
        return source

    def _is_replica(self) -> bool:
        node = _find_replica(self._monitor.snapshot, self._address)
        return node is not None and node.is_fresh(self._clock())

    def _observe(self) -> Observation:
        node = _find_replica(self._monitor.snapshot, self._address)
        if node is None or node.observation is None:
            raise PositionMovedError
        return node.observation

    async def _look(self, name: str, *arguments: int) -> Any:
        assert self._connection is not None  # noqa: S101  it was opened before
        # No timeout of the driver's: it would ask the server, which may be frozen, to cancel, and wait for that.
        within_s = self._settings.timeouts.statement_ms / 1000
        timer = asyncio.get_running_loop().call_later(within_s, self._connection.terminate)
        try:
            return await self._connection.fetchrow(self._statements[name].sql, *arguments)
        finally:
            timer.cancel()

    def _interval_s(self) -> float:
        is_idle = self._clock() - self._cache.asked_at_s > IDLE_AFTER_S
        return IDLE_INTERVAL_S if is_idle else LOOK_INTERVAL_S

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None


def take_in(
    cache: AnswerCache,
    source: Source,
    observed: Observation,
    row: Any,
    *,
    before: CausalToken | None,
    heard_at_s: float,
) -> CausalToken | None:
    """Tells the cache what one look has brought.

    Args:
        cache: whom to tell.
        source: of the node that was asked.
        observed: what the node was seen to be, after the look or shortly before.
        row: the answer.
        before: where the node stood in the look before this one. Not where it stood in this one: that is read after
            the rows are, and what was committed in between is missing among them.
        heard_at_s: when it was asked.

    Returns:
        Where the node stood in this look; None when it is not known on which history that lies.

    Raises:
        PositionMovedError: another server has answered, or changes were removed before they were heard of.
    """
    if row["started_at"] != source.started_at or not row["in_recovery"] or row["floor"] > source.head:
        cache.end(source.node)
        raise PositionMovedError
    check_start(observed, row)
    news = News(
        head=source.head if row["head"] is None else row["head"],
        changed=tuple(row["changed"] or ()),
        stocked=tuple(row["stocked"] or ()),
        replaced=row["replaced"],
        coherent=before if row["changes"] < BATCH else None,
    )
    cache.learn(source, news, heard_at_s)
    timeline = known_timeline(observed, row)
    if timeline is None:
        return None
    return CausalToken(observed.system_id, timeline, Lsn(row["reached_lsn"]), minted_by_replica=True)


def _find_replica(snapshot: ClusterSnapshot, address: NodeAddress) -> NodeState | None:
    node = snapshot.node(address.name)
    return node if node is not None and node.role == "replica" and node.address == address else None
