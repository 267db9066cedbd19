"""Runs one read: token -> route -> wait -> run, and the only place that tries again."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
import structlog

from atelier.deadline import Clock, Deadline
from atelier.errors import DeadlineExceededError, NodeError, NoReplicaError, PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.reads.batch import NodeFailedError, NodeFullError, Outcome, RideError, StatementFailedError
from atelier.reads.pools import ReadPools
from atelier.reads.position import PositionMovedError, check_start, known_timeline, leaves_open, mint
from atelier.reads.queries import Statement
from atelier.reads.router import Policy, PrimaryUse, Route, choose
from atelier.reads.wait import admit, merge, place_later
from atelier.settings import WhenFull
from atelier.telemetry import DECISIONS, EJECTIONS, RETRIES, WAITS
from atelier.token import CausalToken, Standing
from atelier.topology.monitor import TopologyMonitor, Whom
from atelier.topology.state import ClusterSnapshot, NodeState, Observation

# A sibling, then the primary: a third failure in one request is no accident of one node.
ATTEMPTS = 3

# A promotion that a read has run into is over sooner; and who waits longer than this for it might wait in vain.
_ROLES_S = 1.0

# SQLSTATEs after which the same statement may well work elsewhere or later: a conflict with replay
# (https://www.postgresql.org/docs/18/hot-standby.html#HOT-STANDBY-CONFLICT), a deadlock, a timeout.
_PASSING_STATES = {"40001", "40P01", "57014"}

# What to tell the client of a reason for which no node was chosen; the error's own words for all others.
_MESSAGES = {
    "primary-unsettled": "The primary does not show yet what this token has seen.",
    "primary-full": "No replica may serve this read now, and the primary takes no more reads.",
}

log = structlog.get_logger(__name__)


class Ask(msgspec.Struct, frozen=True):
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


class Timings(msgspec.Struct):
    """Where the time of one read went, in milliseconds: waiting is for a node to come up, or to have room."""

    route_ms: float = 0.0
    wait_ms: float = 0.0
    db_ms: float = 0.0


class Answer(msgspec.Struct, frozen=True):
    """What one node answered.

    Attributes:
        rows: of the statement; one for every id, so one.
        node: the node's name.
        reason: why it was chosen.
        lag_ms: upper bound of its lag when it was read; None when unknown.
        token: what this answer may have seen, merged with the token that was sent.
        timings: where the time went.
        observed: what the node had been seen to be before it was asked; None for an answer from memory.
    """

    rows: Sequence[Any]
    node: str
    reason: str
    lag_ms: float | None
    token: CausalToken
    timings: Timings = msgspec.field(default_factory=Timings)
    observed: Observation | None = None


# A node that failed may be asked again when it has been seen in another role, or after another start.
_Start = tuple[str, datetime | None, bool]


class _TooOldError(Exception):
    """The answer came so late that the bound on its age no longer holds."""


class _Try(msgspec.Struct):
    """One read under way: what is asked, and what has happened so far."""

    statement: Statement
    key: int
    arguments: tuple[object, ...]
    ask: Ask
    timings: Timings = msgspec.field(default_factory=Timings)
    tries: int = 0
    failed: set[_Start] = msgspec.field(default_factory=set)
    primary_use: PrimaryUse = "fallback"
    error: Exception | None = None
    alone: bool = False
    reason: str = ""


class ReadExecutor:
    """Answers statements from the node that may answer them."""

    def __init__(
        self, monitor: TopologyMonitor, pools: ReadPools, *, clock: Clock, when_primary_full: WhenFull = "refuse"
    ) -> None:
        """Takes what it works with; owns none of it."""
        self._monitor = monitor
        self._pools = pools
        self._clock = clock
        self._when_primary_full = when_primary_full
        self._turns = itertools.count()

    def in_flight(self, node: str) -> int:
        """How many reads a node runs for this process now."""
        return self._pools.in_flight(node)

    def connections(self, node: str) -> Mapping[str, int]:
        """How many connections this process has to a node, `open`, and how many of them run a statement, `busy`."""
        return self._pools.connections(node)

    def ejected_until_s(self, node: str) -> float | None:
        """When the node's ejection ends, on the clock; None when it is not ejected."""
        self._pools.loads(self._monitor.snapshot, self._monitor)
        return self._pools.ejected_until_s(node)

    async def run(self, statement: Statement, arguments: Sequence[Any], ask: Ask) -> Answer:
        """Runs a statement on a node that keeps the promise that was asked for.

        Args:
            statement: takes an array of ids first, and gives one row an id.
            arguments: the array, of one id, and the rest; reads with the same rest share statements.
            ask: what the client wants of it.

        Raises:
            HistoryLostError: the token is of a history that this database does not have.
            NoReplicaError, PrimaryUnavailableError: no node may answer.
            DeadlineExceededError: the time is used up.
        """
        one = _Try(statement, arguments[0][0], tuple(arguments[1:]), ask)
        if ask.token is not None:
            await admit(self._monitor, ask.token, ask.deadline, beyond=ask.policy.consistency == "eventual")
        while one.tries < ATTEMPTS:
            route = self._route(one)
            if route.wait_for is not None:
                route = await self._route_later(route, one)
            if route.node is None and isinstance(one.error, PositionMovedError):
                # Roles are changing: who they are is seen in a moment. A read that gave up meanwhile would have failed.
                route = await self._wait(one, _ROLES_S, lambda now: now.node is not None)
            if route.node is None:
                one.reason = route.reason
                break
            try:
                return await self._ask_node(route.node, route.reason, one)
            except (NodeError, PositionMovedError, _TooOldError) as error:
                self._note_failure(route.node, error, one)
        raise self._refusal(one)

    # Routing

    def _route(self, one: _Try) -> Route:
        """Chooses a node among those that are known now."""
        started_s = self._clock()
        route = self._choose(self._monitor.snapshot, one)
        one.timings.route_ms += (self._clock() - started_s) * 1000
        return route

    async def _route_later(self, route: Route, one: _Try) -> Route:
        """Waits where a replica, or else the primary, may still come up to what is asked."""
        if route.wait_for == "replica":
            left_s = one.ask.wait_s - one.timings.wait_ms / 1000
            whom: Whom = "replicas" if one.ask.policy.consistency == "causal" else "all"
            route = await self._wait(one, left_s, lambda now: now.reason == "replica", whom=whom)
        if route.node is None and route.reason == "primary-unsettled":
            route = await self._wait(one, one.ask.deadline.remaining_s(), lambda now: now.node is not None)
        return route

    async def _wait(self, one: _Try, within_s: float, suits: Callable[[Route], bool], *, whom: Whom = "all") -> Route:
        started_s = self._clock()
        outcome = "in-time"
        try:
            await self._monitor.wait_until(
                lambda snapshot: suits(self._choose(snapshot, one)),
                one.ask.deadline.sooner(max(0.0, within_s)),
                whom=whom,
            )
        except DeadlineExceededError:
            outcome = "in-vain"
        waited_s = self._clock() - started_s
        one.timings.wait_ms += waited_s * 1000
        WAITS.observe(waited_s, outcome)
        return self._choose(self._monitor.snapshot, one)

    def _choose(self, snapshot: ClusterSnapshot, one: _Try) -> Route:
        loads = self._pools.loads(snapshot, self._monitor)
        if one.failed:
            snapshot = replace(snapshot, nodes=tuple(n for n in snapshot.nodes if _start_of(n) not in one.failed))
        return choose(
            snapshot,
            one.ask.token,
            policy=one.ask.policy,
            now_s=self._clock(),
            loads=loads,
            turn=next(self._turns),
            primary_use=one.primary_use,
        )

    # Running

    async def _ask_node(self, node: NodeState, reason: str, one: _Try) -> Answer:
        observed = node.observation
        assert observed is not None  # noqa: S101  an unobserved node is never fresh, and so never chosen
        started_s = self._clock()
        self._pools.health.begin(node.name, observed.started_at, is_replica=node.role == "replica")
        outcome = await self._pools.reader(node).fetch(
            one.statement,
            one.key,
            one.arguments,
            within_s=one.ask.deadline.spend_s(self._pools.patience_s),
            alone=one.alone,
        )
        one.timings.wait_ms += max(0.0, outcome.sent_at_s - started_s) * 1000
        one.timings.db_ms += (outcome.came_at_s - outcome.sent_at_s) * 1000
        if self._pools.health.succeed(node.name, sent_at_s=outcome.sent_at_s, came_at_s=outcome.came_at_s):
            EJECTIONS.count(node.name, "slow")
        check_start(observed, outcome.row)
        lag_ms = node.lag_ms_at(outcome.came_at_s)
        if one.ask.policy.consistency == "bounded" and (lag_ms is None or lag_ms > one.ask.policy.max_lag_ms):
            raise _TooOldError
        # The node was chosen because it had replayed the token, so what it has seen contains it; but for a read that
        # did not ask for that.
        token = await self._mint(node, observed, outcome, one.ask.deadline)
        # A standby that still follows a deposed primary is beyond the fork before the monitor has seen that it is.
        if self._monitor.snapshot.judge(token) is Standing.LOST:
            raise PositionMovedError
        if one.ask.token is not None and one.ask.policy.consistency == "eventual":
            token = await merge(self._monitor, one.ask.token, token, one.ask.deadline)
        DECISIONS.count(node.name, reason)
        return Answer((outcome.row,), node.name, reason, lag_ms, token, one.timings, observed)

    async def _mint(self, node: NodeState, observed: Observation, outcome: Outcome, deadline: Deadline) -> CausalToken:
        """The token of an answer; where it does not tell its place, a look at the node that begins now does."""
        row = outcome.row
        timeline, is_open = known_timeline(observed, row), leaves_open(observed, row)
        if timeline is not None and not is_open:
            return mint(observed, row, timeline)
        reached = Lsn(row["reached_lsn"])
        timeline, reached = await place_later(self._monitor, node, reached, outcome.came_at_s, deadline, rested=is_open)
        return mint(observed, row, timeline, reached)

    # Failing

    def _note_failure(self, node: NodeState, error: Exception, one: _Try) -> None:
        """Takes in why there is no answer, so that the next try is made otherwise."""
        one.error = error
        if isinstance(error, NodeFullError) and node.role == "primary":
            # It is there, which a read may not forget: without a primary the limit on lag does not hold. It has done
            # nothing, so this was no try.
            one.primary_use = self._when_primary_full
            return
        one.tries += 1
        RETRIES.count(node.name)
        if isinstance(error, RideError) and error.shared:
            # Another rider may be why, so the node is not blamed for this read; if it was ejected, others go first.
            one.alone = True
        else:
            one.failed.add(_start_of(node))
        if one.tries == ATTEMPTS - 1 and one.primary_use == "fallback":
            one.primary_use = "first"
        if isinstance(error, (NodeFailedError, PositionMovedError)):
            self._monitor.suspect(node.name)
            log.warning("read_failed", node=node.name, error=f"{type(error).__name__}: {error}"[:200])
        if isinstance(error, NodeFailedError) and self._pools.health.fail(node.name):
            EJECTIONS.count(node.name, "failed")

    def _refusal(self, one: _Try) -> Exception:
        """What to tell the client: a statement that every node refuses is a mistake of ours, all else will pass."""
        cause = one.error.__cause__ if isinstance(one.error, StatementFailedError) else None
        if isinstance(cause, Exception) and getattr(cause, "sqlstate", None) not in _PASSING_STATES:
            return cause
        message = _MESSAGES.get(one.reason)
        if one.ask.policy.consistency == "strong":
            return PrimaryUnavailableError(message)
        return NoReplicaError(message)


def _start_of(node: NodeState) -> _Start:
    seen = node.observation
    return (node.name, seen.started_at, seen.in_recovery) if seen else (node.name, None, False)
