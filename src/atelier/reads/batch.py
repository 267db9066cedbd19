"""Runs reads on one node, concurrent ones for one resource merged into one statement.

Every statement takes an array of ids as its first argument and gives one row an id. A read that finds nothing in its
way runs at once, with those that arrived in the same turn of the event loop; one that arrives while a statement of its
kind runs, rides with the next, which begins when that one ends, or has turned out to be a slow one. So nobody ever
waits for company, and the more there is to do, the less each read costs.

Statements run in tasks of their own: a rider that is cancelled leaves the others, and the connection, whole.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from atelier.deadline import Clock
from atelier.errors import NodeError
from atelier.reads.connections import NODE_FAILURES, ConnectionPool, ReaderConnection
from atelier.reads.queries import Statement
from atelier.settings import NodeAddress, Settings
from atelier.telemetry import MERGED

# A node is asked as replica or as primary: reads that fell back to the primary have connections, and so a cap, of
# their own.
Purpose: TypeAlias = Literal["replica", "primary"]

# A statement that takes longer than this stands in nobody's way: another one of its kind may begin beside it.
_SLOW_S = 0.005

# How late a read may learn that its time is over: one look at all of them is cheaper than a timer for each.
_SWEEP_S = 0.01

# SQLSTATEs that are the node's doing, not the statement's: the server is going away, not there yet, full, or
# not what it was.
_NODE_STATES = {"57P01", "57P02", "57P03", "25006", "53300"}


class RideError(NodeError):
    """A statement did not end well for those who rode on it.

    Attributes:
        shared: whether it was for several ids, any of which may be why: a statement of one's own may do better.
    """

    shared = False


class NodeFailedError(RideError):
    """The node did not answer."""


class StatementFailedError(RideError):
    """The node refused the statement; another node may not."""


class StatementCutError(RideError):
    """The statement took too long, while the node answered others."""


class NodeFullError(NodeError):
    """As many reads as may be are waiting for this node."""


class TimeOverError(NodeError):
    """The read's own time was over before there was an answer, which says nothing of the node."""


class Outcome(msgspec.Struct, frozen=True):
    """What a node answered to one rider.

    Attributes:
        row: its own row.
        sent_at_s: when the statement was sent.
        came_at_s: when its answer was there.
    """

    row: Any
    sent_at_s: float
    came_at_s: float


class _Rider(msgspec.Struct, eq=False):
    key: int
    future: "asyncio.Future[Outcome]"
    due_s: float

    def give_up(self) -> None:
        """Its time is over."""
        if not self.future.done():
            self.future.set_exception(TimeOverError)


@dataclass(slots=True, eq=False)
class _Lane:
    """The reads that may share statements: one statement, one set of further arguments."""

    statement: Statement
    arguments: tuple[object, ...]
    waiting: deque[_Rider] = field(default_factory=deque)
    running: int = 0
    slow: int = 0
    queued: bool = False

    @property
    def key(self) -> tuple[str, tuple[object, ...]]:
        """What its riders have in common."""
        return self.statement.name, self.arguments

    def board(self, most: int) -> list[_Rider]:
        """Takes the next riders; those that have been cancelled meanwhile are left out."""
        riders = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        return [rider for rider in riders if not rider.future.done()]


class NodeReader:
    """Runs the reads of one process on one node, for one purpose."""

    def __init__(self, settings: Settings, address: NodeAddress, purpose: Purpose, *, clock: Clock) -> None:
        """Takes the bounds from the settings. Does no I/O."""
        limits = settings.pools
        self.address = address
        self._clock = clock
        self._statement_s = settings.timeouts.statement_ms / 1000
        self._most_merged = limits.merged
        self._most_running = limits.statements
        self._most_waiting = limits.waiting_replica if purpose == "replica" else limits.waiting_primary
        self._pool = ConnectionPool(
            settings,
            address,
            limit=limits.replica if purpose == "replica" else limits.primary_reads,
            on_ready=self._pump,
            on_failure=self._give_up,
        )
        self._lanes: dict[tuple[str, tuple[object, ...]], _Lane] = {}
        self._queue: deque[_Lane] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._riders: set[_Rider] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._pumping: asyncio.Handle | None = None
        self._waiting = 0
        self._riding = 0
        self._progress_at_s = 0.0
        self._closed = False

    @property
    def in_flight(self) -> int:
        """The reads that wait for this node or ride on a statement."""
        return self._waiting + self._riding

    @property
    def pool(self) -> ConnectionPool:
        """Its connections, for those who count them."""
        return self._pool

    def stalled_ms(self) -> float:
        """How long the node has answered nothing though it has something to answer; 0 when it has nothing."""
        return (self._clock() - self._progress_at_s) * 1000 if self._waiting or self._riding else 0.0

    async def fetch(
        self, statement: Statement, key: int, arguments: tuple[object, ...], *, within_s: float, alone: bool = False
    ) -> Outcome:
        """Gets the row of one id.

        Args:
            statement: takes an array of ids first, and gives one row an id, with it in the column `id`.
            key: the id.
            arguments: what the statement takes after the ids.
            within_s: the bound on everything.
            alone: never ride with others: one of them may be why a statement failed.

        Raises:
            NodeFullError: too many wait already.
            TimeOverError: the bound is reached, in the queue or on a statement that goes on without this read.
            NodeFailedError: the node did not answer.
            StatementFailedError: it refused the statement.
            StatementCutError: it took too long over the statement.
        """
        if self._closed:
            raise NodeFailedError("the node has left")
        loop = asyncio.get_running_loop()
        rider = _Rider(key, loop.create_future(), self._clock() + within_s)
        self._enqueue(rider, _Lane(statement, arguments) if alone else self._lane(statement, arguments))
        self._riders.add(rider)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        try:
            return await rider.future
        finally:
            self._riders.discard(rider)

    async def close(self, drain_s: float) -> None:
        """Lets what runs come to its end within the time, then cuts everything."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        await self._pool.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_waiting("the node has left")

    # Waiting

    def _sweep(self) -> None:
        """Lets those go whose time is over; looks again as long as there are others."""
        now_s = self._clock()
        for rider in self._riders:
            if rider.due_s <= now_s:
                rider.give_up()
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if self._riders else None

    def _lane(self, statement: Statement, arguments: tuple[object, ...]) -> _Lane:
        key = (statement.name, arguments)
        return self._lanes.get(key) or self._lanes.setdefault(key, _Lane(statement, arguments))

    def _enqueue(self, rider: _Rider, lane: _Lane) -> None:
        if not self.in_flight:
            self._progress_at_s = self._clock()
        lane.waiting.append(rider)
        self._waiting += 1
        self._line_up(lane)
        if self._waiting <= self._most_waiting:
            self._pump_soon()
            return
        self._pump()
        if self._waiting > self._most_waiting and lane.waiting and lane.waiting[-1] is rider:
            lane.waiting.pop()
            self._waiting -= 1
            raise NodeFullError("as many reads as may be are waiting for this node")

    def _line_up(self, lane: _Lane) -> None:
        """Puts a lane at the end of the queue when it has riders and may run another statement."""
        if lane.waiting and not lane.queued and lane.running == lane.slow < self._most_running:
            lane.queued = True
            self._queue.append(lane)

    def _pump_soon(self) -> None:
        """Starts statements when all that is ready now has been done: who is about to arrive rides along."""
        if self._pumping is None:
            self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Starts as many statements as there are lanes and connections for them."""
        self._pumping = None
        while self._queue and not self._closed:
            connection = self._pool.take()
            if connection is None:
                self._pool.grow(len(self._queue))
                return
            lane = self._queue.popleft()
            lane.queued = False
            before = len(lane.waiting)
            riders = lane.board(self._most_merged)
            self._waiting -= before - len(lane.waiting)
            if riders:
                self._start(lane, riders, connection)
            else:
                self._pool.give(connection)
            self._line_up(lane)

    def _give_up(self, error: Exception) -> None:
        """A connection could not be opened: unless others are, nobody here will be served."""
        if not self._pool.size:
            self._fail_waiting(f"no connection: {type(error).__name__}: {error}")

    def _fail_waiting(self, reason: str) -> None:
        for lane in self._queue:
            lane.queued = False
            self._lanes.pop(lane.key, None)
            for rider in lane.waiting:
                if not rider.future.done():
                    rider.future.set_exception(NodeFailedError(reason))
            self._waiting -= len(lane.waiting)
            lane.waiting.clear()
        self._queue.clear()

    # Running

    def _start(self, lane: _Lane, riders: list[_Rider], connection: ReaderConnection) -> None:
        lane.running += 1
        if len(riders) > 1:
            MERGED.count(lane.statement.name, by=len(riders))
        self._riding += len(riders)
        task = asyncio.create_task(self._run(lane, riders, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: _Lane, riders: list[_Rider], connection: ReaderConnection) -> None:
        watch = _Watch(self, lane, connection)
        sent_at_s = self._clock()
        try:
            keys = list({rider.key for rider in riders})
            rows = {row["id"]: row for row in await connection.fetch(lane.statement.sql, keys, *lane.arguments)}
            self._deliver(riders, rows, sent_at_s)
        except NODE_FAILURES as error:
            # After anything but a plain error the server closes the connection, and the driver's end of it is in a
            # state of its own until that has arrived.
            if getattr(error, "severity_en", None) != "ERROR":
                connection.terminate()
            self._refuse(riders, error, cut_after_s=sent_at_s if watch.has_cut else None)
        finally:
            watch.end()
            self._finish(lane, riders, connection)

    def make_way(self, lane: _Lane) -> float:
        """A statement of the lane has turned out to be slow: others go beside it. The seconds that it still has."""
        self._line_up(lane)
        self._pump()
        return max(0.0, self._statement_s - _SLOW_S)

    def _deliver(self, riders: list[_Rider], rows: Mapping[int, Any], sent_at_s: float) -> None:
        came_at_s = self._progress_at_s = self._clock()
        for rider in riders:
            if not rider.future.done():
                rider.future.set_result(Outcome(rows[rider.key], sent_at_s, came_at_s))

    def _refuse(self, riders: list[_Rider], error: Exception, *, cut_after_s: float | None) -> None:
        """Tells the riders why they have no answer; `cut_after_s` is when a statement was sent that was cut here."""
        state = getattr(error, "sqlstate", None)
        kind: type[RideError] = StatementFailedError
        if cut_after_s is not None and self._progress_at_s > cut_after_s:
            kind = StatementCutError
        elif cut_after_s is not None or state is None or state in _NODE_STATES or state.startswith("08"):
            kind = NodeFailedError
            self._pool.drop_idle()
        else:
            self._progress_at_s = self._clock()
        # Who lost a connection with others may ride with them again; whose statement failed or was cut may not.
        is_shared = (cut_after_s is not None or kind is StatementFailedError) and len({r.key for r in riders}) > 1
        for rider in riders:
            if not rider.future.done():
                failure = kind(f"{type(error).__name__}: {error}")
                failure.shared = is_shared
                failure.__cause__ = error
                rider.future.set_exception(failure)

    def _finish(self, lane: _Lane, riders: list[_Rider], connection: ReaderConnection) -> None:
        lane.running -= 1
        self._riding -= len(riders)
        self._pool.give(connection)
        for rider in riders:
            # Only what nobody foresaw, or the end of the process, leaves a rider without an answer.
            if not rider.future.done():
                rider.future.set_exception(NodeFailedError("the statement was abandoned"))
        if lane.waiting:
            self._line_up(lane)
        elif not lane.running and self._lanes.get(lane.key) is lane:
            # Arguments come from clients, so a lane that nobody uses may not stay.
            del self._lanes[lane.key]
        self._pump_soon()


class _Watch:
    """The bounds on one statement's time.

    No timeout of the driver's: it would ask the server, which may be frozen, to cancel, and wait for that.
    """

    __slots__ = ("_connection", "_is_slow", "_lane", "_reader", "_timer", "has_cut")

    def __init__(self, reader: NodeReader, lane: _Lane, connection: ReaderConnection) -> None:
        self._reader = reader
        self._lane = lane
        self._connection = connection
        self._is_slow = False
        self.has_cut = False
        self._timer = asyncio.get_running_loop().call_later(_SLOW_S, self._find_slow)

    def end(self) -> None:
        """The statement has ended."""
        self._timer.cancel()
        if self._is_slow:
            self._lane.slow -= 1

    def _find_slow(self) -> None:
        self._is_slow = True
        self._lane.slow += 1
        left_s = self._reader.make_way(self._lane)
        self._timer = asyncio.get_running_loop().call_later(left_s, self._cut)

    def _cut(self) -> None:
        self.has_cut = True
        self._connection.terminate()
