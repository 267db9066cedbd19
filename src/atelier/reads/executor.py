"""Runs one read: token -> route -> wait -> acquire -> run, and the only place that tries again."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import structlog

from atelier.deadline import Clock, Deadline
from atelier.errors import DeadlineExceededError, HistoryLostError, NoReplicaError, PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.reads.pools import ReadPools
from atelier.reads.queries import Statement
from atelier.reads.router import Load, Policy, Route, choose
from atelier.token import CausalToken, Standing
from atelier.topology.monitor import TopologyMonitor, flushed
from atelier.topology.state import ClusterSnapshot, NodeState

# A sibling, then whoever is left: a third failure in one request is no accident of one node.
ATTEMPTS = 3

_NODE_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asked of a read, beside the thing itself.

    Attributes:
        policy: consistency and bound.
        token: what the client has seen; None when it sent nothing.
        wait_s: how long the read may wait for a replica before it goes to the primary.
        deadline: of the whole request.
    """

    policy: Policy
    token: CausalToken | None
    wait_s: float
    deadline: Deadline


@dataclass(slots=True)
class Timings:
    """Where the time of one read went, in milliseconds."""

    route_ms: float = 0.0
    wait_ms: float = 0.0
    db_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node answered.

    Attributes:
        rows: of the statement.
        node: the node's name.
        reason: why it was chosen.
        lag_ms: upper bound of its lag when it was read; None when unknown.
        token: what this answer may have seen, merged with the token that was sent.
        timings: where the time went.
    """

    rows: Sequence[Any]
    node: str
    reason: str
    lag_ms: float | None
    token: CausalToken
    timings: Timings = field(default_factory=Timings)


class _PositionMovedError(Exception):
    """The server that answered is not the one that was observed: it started again, or was promoted."""


class ReadExecutor:
    """Answers statements from the node that may answer them."""

    def __init__(self, monitor: TopologyMonitor, pools: ReadPools, *, clock: Clock) -> None:
        """Takes what it works with; owns none of it."""
        self._monitor = monitor
        self._pools = pools
        self._clock = clock
        self._in_flight: Counter[str] = Counter()
        self._turns = itertools.count()

    def in_flight(self, node: str) -> int:
        """How many reads a node runs for this process now."""
        return self._in_flight[node]

    async def run(self, statement: Statement, arguments: Sequence[object], ask: Ask) -> Answer:
        """Runs a statement on a node that keeps the promise that was asked for.

        Raises:
            HistoryLostError: the token is of a history that this database does not have.
            NoReplicaError, PrimaryUnavailableError: no node may answer.
            DeadlineExceededError: the time is used up.
        """
        timings = Timings()
        failed: set[str] = set()
        if ask.token is not None:
            await self._admit(ask.token, ask.deadline)
        for _ in range(ATTEMPTS):
            started_s = self._clock()
            route = await self._route(ask, failed, timings)
            timings.route_ms += (self._clock() - started_s) * 1000 - timings.wait_ms
            if route.node is None:
                break
            try:
                return await self._run_on(route.node, statement, arguments, ask=ask, reason=route.reason, timings=timings)
            except (*_NODE_FAILURES, _PositionMovedError) as error:
                log.warning("read_failed", node=route.node.name, error=f"{type(error).__name__}: {error}")
                failed.add(route.node.name)
                self._monitor.suspect(route.node.name)
        raise _refusal(ask)

    async def _admit(self, token: CausalToken, deadline: Deadline) -> None:
        """Lets a token pass that lies on the present history, and refuses others before anybody waits for them."""
        snapshot = self._monitor.snapshot
        if _is_plausible(snapshot, token):
            return
        try:
            snapshot = await self._monitor.wait_for_fresh(deadline.sooner(1.0))
        except DeadlineExceededError as error:
            raise PrimaryUnavailableError("the token cannot be judged while no primary is known") from error
        if _is_plausible(snapshot, token):
            return
        if snapshot.judge(token) is Standing.UNKNOWN:
            raise PrimaryUnavailableError("the token is of a newer history than the primary that is known")
        raise HistoryLostError

    async def _route(self, ask: Ask, failed: set[str], timings: Timings) -> Route:
        """Chooses a node; waits first where a replica may still come up to the token."""
        route = self._choose(self._monitor.snapshot, ask, failed)
        if not route.may_wait or ask.wait_s <= timings.wait_ms / 1000:
            return route
        started_s = self._clock()
        try:
            await self._monitor.wait_until(
                lambda snapshot: self._choose(snapshot, ask, failed).reason == "replica",
                ask.deadline.sooner(ask.wait_s),
            )
        except DeadlineExceededError:
            log.debug("read_waited_in_vain")
        timings.wait_ms += (self._clock() - started_s) * 1000
        return self._choose(self._monitor.snapshot, ask, failed)

    def _choose(self, snapshot: ClusterSnapshot, ask: Ask, failed: set[str]) -> Route:
        if failed:
            snapshot = replace(snapshot, nodes=tuple(n for n in snapshot.nodes if n.name not in failed))
        loads = {node.name: Load(in_flight=self._in_flight[node.name]) for node in snapshot.nodes}
        return choose(
            snapshot, ask.token, policy=ask.policy, now_s=self._clock(), loads=loads, turn=next(self._turns)
        )

    async def _run_on(
        self,
        node: NodeState,
        statement: Statement,
        arguments: Sequence[object],
        *,
        ask: Ask,
        reason: str,
        timings: Timings,
    ) -> Answer:
        started_s = self._clock()
        lag_ms = node.lag_ms_at(started_s)
        purpose = "primary" if node.role == "primary" else "replica"
        self._in_flight[node.name] += 1
        try:
            async with self._pools.acquire(node.address, purpose, ask.deadline) as connection:
                rows = await connection.fetch(statement.sql, *arguments, timeout=ask.deadline.remaining_s())
        finally:
            self._in_flight[node.name] -= 1
            timings.db_ms += (self._clock() - started_s) * 1000
        token = _seen(node, rows[0])
        return Answer(rows, node.name, reason, lag_ms, ask.token.merge(token) if ask.token else token, timings)


def _is_plausible(snapshot: ClusterSnapshot, token: CausalToken) -> bool:
    """Whether a token lies on the known history, and that history is known to reach so far."""
    if snapshot.judge(token) is not Standing.GOOD:
        return False
    if snapshot.history is not None and token.timeline < snapshot.history.timeline:
        return True
    reached = flushed(snapshot)
    if reached is not None and token.lsn <= reached:
        return True
    return any(
        node.observation is not None and node.observation.replayed_lsn >= token.lsn for node in snapshot.replicas
    )


def _seen(node: NodeState, row: Any) -> CausalToken:
    """The position that an answer may have seen, as its own statement tells."""
    observed = node.observation
    if observed is None or observed.timeline is None:
        raise _PositionMovedError
    if row["started_at"] != observed.started_at or row["in_recovery"] != observed.in_recovery:
        raise _PositionMovedError
    reached = Lsn(row["reached_lsn"])  # the driver gives positions as integers
    if row["in_recovery"] and row["received_lsn"] != row["reached_lsn"]:
        reached = reached.next()
    return CausalToken(observed.system_id, observed.timeline, reached, minted_by_replica=row["in_recovery"])


def _refusal(ask: Ask) -> Exception:
    if ask.policy.consistency == "strong":
        return PrimaryUnavailableError()
    return NoReplicaError()
