"""Follows the outbox on one node for all who listen: a replica, or the primary where there is none.

The order of positions is the order of commits (every position is drawn under one lock that is held until its
transaction has committed), on every node, so "everything behind the last position" is complete: no gap, no repeat.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
import structlog

from atelier.deadline import Clock
from atelier.errors import AtelierError, HistoryLostError, NoReplicaError
from atelier.problems import ProblemError
from atelier.reads.connections import NODE_FAILURES, ReaderConnection, connect_reader
from atelier.reads.position import PositionMovedError, check_start, known_timeline, mint
from atelier.reads.queries import load_statements
from atelier.settings import Settings
from atelier.token import CausalToken, Standing
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState

# An event is this late at most, beside the replica's lag; a poll that finds nothing is one index look-up.
POLL_INTERVAL_S = 0.03
RETRY_INTERVAL_S = 0.2
BATCH = 500
# What is kept for those who listen live; who is further behind reads from the table again, or is cut.
KEPT = 4_096

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change.

    Attributes:
        position: its place in the outbox.
        topic: `product`, `stock` or `catalogue`.
        fields: what is told of it.
        token: whoever has this has the change.
    """

    position: int
    topic: str
    fields: dict[str, Any]
    token: CausalToken


class ChangeTail:
    """One per process. Polls only while somebody follows. Use it as an async context manager."""

    def __init__(self, settings: Settings, monitor: TopologyMonitor, *, clock: Clock) -> None:
        """Takes the credentials and who knows the nodes. Does no I/O."""
        self._settings = settings
        self._monitor = monitor
        self._clock = clock
        self._statements = load_statements()
        self._recent: deque[Change] = deque(maxlen=KEPT)
        self._recent_from: int | None = None
        self._epoch = 0
        self._node: str | None = None
        self._connection: ReaderConnection | None = None
        self._in_turn = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._moved = asyncio.Event()
        self._followers = 0
        self._seen: CausalToken | None = None
        self._lost_at = 0
        self._polling: asyncio.Task[None] | None = None
        self.head: int | None = None
        self.is_closing = False

    async def __aenter__(self) -> Self:
        """Gets ready; polls when the first one follows."""
        self._polling = asyncio.create_task(self._poll_forever(), name="change-tail")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends everybody who follows."""
        self.end()
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        self._disconnect()

    def end(self) -> None:
        """Lets everybody come to an end who follows, and at once who follows from now on."""
        self.is_closing = True
        self._wake()

    async def look(self) -> tuple[int, int, CausalToken]:
        """The newest position, the highest that was pruned, and a token that covers both.

        Raises:
            NoReplicaError: no node answers.
        """
        rows, token = await self._ask("changes_head")
        return rows[0]["head"], rows[0]["floor"], token

    async def read_after(self, position: int) -> list[Change]:
        """The next changes behind a position, at most `BATCH`, from memory or from the table.

        Raises:
            NoReplicaError: no node answers.
            ProblemError: `cursor-expired`: what comes next was pruned meanwhile.
        """
        if self._recent_from is not None and position >= self._recent_from:
            behind = [change for change in self._recent if change.position > position]
            return behind[:BATCH]
        rows, token = await self._ask("changes", position, BATCH)
        if position < rows[0]["floor"]:
            raise expired()
        return [_to_change(row, token) for row in rows if row["change_id"] is not None]

    def join(self) -> int:
        """Makes the tail poll, until `leave`. Returns a number that `check` wants back."""
        self._followers += 1
        self._wanted.set()
        return self._lost_at

    def leave(self) -> None:
        """Somebody follows no more."""
        self._followers -= 1
        if not self._followers:
            self._wanted.clear()
            self._forget()

    def check(self, joined_at: int) -> None:
        """Makes sure that what was followed is still the history.

        Raises:
            HistoryLostError: a failover threw away part of what may have been told since.
        """
        if joined_at != self._lost_at:
            raise HistoryLostError

    @property
    def moved(self) -> asyncio.Event:
        """Set when something more was committed. Take it before reading, wait for it after: nothing slips between."""
        return self._moved

    async def wait(self, moved: asyncio.Event, at_most_s: float) -> None:
        """Waits until something was committed, or the time is over."""
        try:
            async with asyncio.timeout(at_most_s):
                await moved.wait()
        except TimeoutError:
            return

    async def _poll_forever(self) -> None:
        while True:
            try:
                await self._wanted.wait()
                found = await self._poll()
                await asyncio.sleep(0 if found else POLL_INTERVAL_S)
            except AtelierError as error:
                log.debug("tail_waits", reason=str(error))
                await asyncio.sleep(RETRY_INTERVAL_S)

    async def _poll(self) -> bool:
        """Takes in what is new. After a pause it starts at the newest; followers read what lies between themselves.

        An answer that was asked for before something was forgotten has no place in what is remembered since: behind
        it, or before it, changes would be missing.
        """
        epoch, head = self._epoch, self.head
        if head is None:
            head, _, token = await self.look()
            if self._epoch == epoch:
                self._learn([], token)
                self.head = self._recent_from = head
            return False
        rows, token = await self._ask("changes", head, BATCH)
        if self._epoch != epoch:
            return False
        if head < rows[0]["floor"]:
            self._forget()
            return False
        changes = [_to_change(row, token) for row in rows if row["change_id"] is not None]
        self._learn(changes, token)
        return bool(changes)

    def _learn(self, changes: Sequence[Change], token: CausalToken) -> None:
        # An answer without changes tells nothing, and may come from a node that is further behind than the last one:
        # it must not make what was told already look as if it had survived.
        if changes or self._seen is None:
            self._seen = token
        if not changes:
            return
        for change in changes:
            if len(self._recent) == KEPT:
                self._recent_from = self._recent[0].position
            self._recent.append(change)
        self.head = changes[-1].position
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _ask(self, name: str, *arguments: int) -> tuple[list[asyncpg.Record], CausalToken]:
        """Runs a statement on the node that is followed; whatever goes wrong, another node is looked for next time."""
        async with self._in_turn:
            node = self._choose(self._monitor.snapshot)
            try:
                connection = await self._connect(node)
                timeout_s = self._settings.timeouts.statement_ms / 1000
                rows = await connection.fetch(self._statements[name].sql, *arguments, timeout=timeout_s)
                return rows, self._judge(node, rows[0])
            except (*NODE_FAILURES, PositionMovedError) as error:
                self._disconnect()
                self._monitor.suspect(node.name)
                raise NoReplicaError from error

    def _judge(self, node: NodeState, row: asyncpg.Record) -> CausalToken:
        """The token of an answer; an answer of a history that is not the present one counts for nothing."""
        if node.observation is None:
            raise PositionMovedError
        check_start(node.observation, row)
        timeline = known_timeline(node.observation, row)
        if timeline is None:
            raise PositionMovedError
        token = mint(node.observation, row, timeline)
        snapshot = self._monitor.snapshot
        if snapshot.judge(token) is not Standing.GOOD:
            raise PositionMovedError
        if self._seen is not None and snapshot.judge(self._seen) is Standing.LOST:
            self._forget_everything()
            raise PositionMovedError
        return token

    def _forget_everything(self) -> None:
        """Positions that were told may come again with other changes: whoever follows has to begin anew."""
        log.warning("feed_history_lost")
        self._lost_at += 1
        self._forget()
        self._wake()

    def _forget(self) -> None:
        """Begins anew with the next poll; until then, followers read from the table."""
        self._epoch += 1
        self.head = self._recent_from = self._seen = None
        self._recent.clear()

    def _choose(self, snapshot: ClusterSnapshot) -> NodeState:
        """Stays with its node while it may; else the freshest replica, else the primary."""
        now_s = self._clock()
        usable = [node for node in snapshot.replicas if node.is_fresh(now_s)]
        present = next((node for node in usable if node.name == self._node), None)
        lag_ms = {node.name: lag for node in usable if (lag := node.lag_ms_at(now_s)) is not None}
        freshest = min(usable, key=lambda node: lag_ms.get(node.name, float("inf")), default=snapshot.primary)
        chosen = present or freshest
        if chosen is None:
            raise NoReplicaError
        return chosen

    async def _connect(self, node: NodeState) -> ReaderConnection:
        if self._connection is not None and self._node == node.name and not self._connection.is_closed():
            return self._connection
        self._disconnect()
        self._connection = await connect_reader(self._settings, node.address)
        self._node = node.name
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._node = None


def expired() -> ProblemError:
    """What is told to who is further behind than what is kept."""
    return ProblemError("cursor-expired", "Changes behind this event id are no longer kept.")


def _to_change(row: asyncpg.Record, token: CausalToken) -> Change:
    names = {
        "product": ("product_id", "kind", "version"),
        "stock": ("sku_id", "product_id", "available", "version"),
        "catalogue": ("kind",),
    }[row["topic"]]
    return Change(row["change_id"], row["topic"], {name: row[name] for name in names}, token)
