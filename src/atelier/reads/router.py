"""Chooses the node that may answer a read. Pure: no clock, no random, no asyncio.

The invariant, whatever the snapshot: the chosen node has replayed everything that the token has seen, and is within the
bound that was asked for; what is unknown satisfies nothing; and where any node is allowed, one is chosen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from atelier.lsn import Lsn
from atelier.settings import Strategy, WhenFull
from atelier.token import CausalToken, Standing
from atelier.topology.state import ClusterSnapshot, NodeState

Consistency = Literal["eventual", "bounded", "causal", "strong"]

# What the primary is to a read: who is asked when no replica may be; who is asked first, because replicas have failed
# this read before; or, where it takes no more reads, nobody, with what the settings say of that.
PrimaryUse = Literal["fallback", "first"] | WhenFull

STALE = "stale-replica"
_FULL = "primary-full"
# Averages of answer times this close say nothing about which node is the faster one.
_NEAR = 1.25


@dataclass(frozen=True, slots=True)
class Policy:
    """What one read asks of the node that answers it.

    Attributes:
        consistency: the rung of the ladder.
        max_lag_ms: for `bounded` the client's bound; for `eventual` the limit while a better node can be had.
        strategy: how to choose among several allowed replicas.
    """

    consistency: Consistency
    max_lag_ms: float
    strategy: Strategy = "least-outstanding"


@dataclass(slots=True)
class Load:
    """What this process knows of a node beside its position; the caller keeps it up to date.

    Attributes:
        in_flight: reads that it runs for this process now.
        ewma_ms: a moving average of its answer times, less and less the longer it has not answered; 0 when it has not
            answered yet.
        ejected: taken out of routing for a while because it failed or does not answer; asked only if nobody else can.
        weight: its share relative to the others.
    """

    in_flight: int = 0
    ewma_ms: float = 0.0
    ejected: bool = False
    weight: float = 1.0


class Route(msgspec.Struct, frozen=True):
    """The decision.

    Attributes:
        node: the chosen one; None when none may answer now.
        reason: why, in a word that metrics and logs count by.
        wait_for: whose progress may bring a node that is allowed, or a better one: a replica's, within the time that
            the client gives it, or the primary's, within the whole request's. None when waiting changes nothing.
    """

    node: NodeState | None
    reason: str
    wait_for: Literal["replica", "primary"] | None = None


_NO_LOAD = Load()


def choose(
    snapshot: ClusterSnapshot,
    token: CausalToken | None,
    *,
    policy: Policy,
    now_s: float,
    loads: Mapping[str, Load],
    turn: int,
    primary_use: PrimaryUse = "fallback",
) -> Route:
    """Chooses a node.

    Args:
        snapshot: what is known of the nodes.
        token: what the client has seen; None when it sent none. An `eventual` read does not wait for it.
        policy: what the read asks for.
        now_s: on the clock of the observations.
        loads: what this process knows of each node; a missing one has no load.
        turn: a number that the caller raises with every choice: it breaks ties, and stands in for chance.
        primary_use: what the primary is to this read.

    Returns:
        The node, or none with the reason. A replica is preferred; the primary is the fallback; a node that was
        ejected is asked when there is no other.
    """
    if policy.consistency == "strong":
        return _choose_primary(snapshot, token, now_s=now_s, primary_use=primary_use)
    needed = None if policy.consistency == "eventual" else token
    if primary_use == "first":
        primary = _choose_primary(snapshot, needed, now_s=now_s, primary_use=primary_use)
        if _is_in(primary.node, loads):
            return Route(primary.node, "replicas-failed")
    fresh, allowed, healthy = [], [], []
    for node in snapshot.replicas:  # one pass: this is on the path of every read
        if node.is_fresh(now_s):
            fresh.append(node)
            if allows(snapshot, node, token, policy=policy, now_s=now_s):
                allowed.append(node)
                if not _load(loads, node).ejected:
                    healthy.append(node)
    if healthy:
        return Route(_pick(healthy, policy.strategy, loads, turn), "replica")
    primary = _choose_primary(snapshot, needed, now_s=now_s, primary_use=primary_use)
    if allowed and not _is_in(primary.node, loads):
        return Route(_pick(allowed, policy.strategy, loads, turn), "ejected-replica")
    return _fall_back(primary, fresh, allowed, policy=policy, loads=loads, primary_use=primary_use)


def allows(
    snapshot: ClusterSnapshot, node: NodeState, token: CausalToken | None, *, policy: Policy, now_s: float
) -> bool:
    """Whether a fresh node of the present history keeps the token and the bound of a read."""
    if policy.consistency in ("eventual", "bounded"):
        lag_ms = node.lag_ms_at(now_s)
        if lag_ms is None or lag_ms > policy.max_lag_ms:
            return False
    return policy.consistency == "eventual" or covers(snapshot, node, token)


def covers(snapshot: ClusterSnapshot, node: NodeState, token: CausalToken | None) -> bool:
    """Whether a node shows everything that a token has seen."""
    if token is None:
        return True
    if node.observation is None or snapshot.judge(token) is not Standing.GOOD:
        return False
    shown = _shown_lsn(node, token)
    return shown is not None and shown >= token.lsn


def _shown_lsn(node: NodeState, token: CausalToken) -> Lsn | None:
    """Up to where a node shows all commits to the holder of a token.

    A replica can show a commit that the primary has written and does not show yet, so what a replica minted waits
    until the primary has settled. What the primary minted, it had shown.
    """
    seen = node.observation
    if seen is None:
        return None
    return seen.settled_lsn if node.role == "primary" and token.minted_by_replica else seen.replayed_lsn


def _choose_primary(
    snapshot: ClusterSnapshot, token: CausalToken | None, *, now_s: float, primary_use: PrimaryUse
) -> Route:
    primary = snapshot.primary
    if primary is None or not primary.is_fresh(now_s):
        return Route(None, "no-primary")
    if primary_use in ("refuse", "stalest"):
        return Route(None, _FULL)
    if not covers(snapshot, primary, token):
        return Route(None, "primary-unsettled", wait_for="primary")
    return Route(primary, "strong")


def _is_in(node: NodeState | None, loads: Mapping[str, Load]) -> bool:
    return node is not None and not _load(loads, node).ejected


def _fall_back(
    primary: Route,
    fresh: Sequence[NodeState],
    allowed: Sequence[NodeState],
    *,
    policy: Policy,
    loads: Mapping[str, Load],
    primary_use: PrimaryUse,
) -> Route:
    """The primary in the replicas' place; with none, the freshest of those that lag, or nobody yet."""
    if policy.consistency != "eventual":
        reason = _why_not_a_replica(fresh, allowed) if primary.node else primary.reason
        return Route(primary.node, reason, "replica" if fresh and not allowed else primary.wait_for)
    if primary.node:
        return Route(primary.node, _why_not_a_replica(fresh, allowed))
    is_full = primary.reason == _FULL
    if not fresh or (is_full and primary_use != "stalest"):
        return Route(None, _FULL if is_full else "no-node")
    return Route(_find_freshest(fresh, loads), STALE if is_full else "freshest-replica")


def _find_freshest(fresh: Sequence[NodeState], loads: Mapping[str, Load]) -> NodeState:
    """The one that has replayed most; ejected ones last."""
    return max(fresh, key=lambda node: (not _load(loads, node).ejected, _replayed_bytes(node)))


def _why_not_a_replica(fresh: Sequence[NodeState], allowed: Sequence[NodeState]) -> str:
    if allowed:
        return "replicas-ejected"
    return "replicas-behind" if fresh else "no-replica"


def _pick(candidates: list[NodeState], strategy: Strategy, loads: Mapping[str, Load], turn: int) -> NodeState:
    """Chooses among equals, of which there is at least one; where nothing tells them apart, they take turns."""
    if len(candidates) == 1:
        return candidates[0]
    match strategy:
        case "least-outstanding":
            candidates = _find_least_busy(candidates, loads)
        case "random-two-choices":
            return _find_least_busy(_draw_two(candidates, loads, turn), loads)[0]
        case "latency-ewma":
            candidates = _find_fastest(candidates, loads)
        case "round-robin":
            pass
    return candidates[_whose_turn(candidates, loads, turn)]


def _find_least_busy(candidates: list[NodeState], loads: Mapping[str, Load]) -> list[NodeState]:
    """Those that have least to do for their weight."""
    least, found = math.inf, candidates
    for node in candidates:
        load = loads.get(node.address.name, _NO_LOAD)
        cost = load.in_flight / load.weight
        if cost < least:
            least, found = cost, [node]
        elif cost == least:
            found.append(node)
    return found


def _find_fastest(candidates: list[NodeState], loads: Mapping[str, Load]) -> list[NodeState]:
    """Those that will answer first, by their averages and by what they have to do for their weight; or nearly so."""
    costs = []
    for node in candidates:
        load = _load(loads, node)
        costs.append(load.ewma_ms * (1 + load.in_flight / load.weight))
    limit = min(costs) * _NEAR
    return [node for node, cost in zip(candidates, costs, strict=True) if cost <= limit]


def _draw_two(candidates: list[NodeState], loads: Mapping[str, Load], turn: int) -> list[NodeState]:
    """The one whose turn it is, which is taken unless the other one has less to do, and any other."""
    first = _whose_turn(candidates, loads, turn)
    step = 1 + (turn // len(candidates)) % (len(candidates) - 1)
    return [candidates[first], candidates[(first + step) % len(candidates)]]


def _whose_turn(candidates: list[NodeState], loads: Mapping[str, Load], turn: int) -> int:
    """Goes round, staying at each node for as many turns as its weight."""
    count = len(candidates)
    if count == 1:
        return 0
    weights = [loads.get(node.address.name, _NO_LOAD).weight for node in candidates]
    total = sum(weights)
    place = turn % total
    if total == count:  # no weights: the usual case
        return int(place)
    for number, weight in enumerate(weights):
        if place < weight:
            return number
        place -= weight
    return 0


def _load(loads: Mapping[str, Load], node: NodeState) -> Load:
    return loads.get(node.address.name, _NO_LOAD)


def _replayed_bytes(node: NodeState) -> int:
    return node.observation.replayed_lsn.bytes if node.observation else -1
