"""Chooses the node that may answer a read. Pure: no clock, no random, no asyncio.

The invariant, whatever the snapshot: the chosen node has replayed everything that the token has seen, and is within the
bound that was asked for; what is unknown satisfies nothing; and where any node is allowed, one is chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from atelier.settings import Strategy
from atelier.token import CausalToken, Standing
from atelier.topology.state import ClusterSnapshot, NodeState

Consistency = Literal["eventual", "bounded", "causal", "strong"]


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


@dataclass(frozen=True, slots=True)
class Load:
    """What this process knows of a node beside its position.

    Attributes:
        in_flight: reads that it runs for this process now.
        ewma_ms: a moving average of its answer times; 0 when it has not answered yet.
        ejected: taken out of routing for a while because it failed.
        weight: its share relative to the others.
    """

    in_flight: int = 0
    ewma_ms: float = 0.0
    ejected: bool = False
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """The decision.

    Attributes:
        node: the chosen one; None when none may answer now.
        reason: why, in a word that metrics and logs count by.
        may_wait: no replica may answer yet, but one may after it has replayed more.
    """

    node: NodeState | None
    reason: str
    may_wait: bool = False


_NO_LOAD = Load()


def choose(
    snapshot: ClusterSnapshot,
    token: CausalToken | None,
    *,
    policy: Policy,
    now_s: float,
    loads: Mapping[str, Load],
    turn: int,
) -> Route:
    """Chooses a node.

    Args:
        snapshot: what is known of the nodes.
        token: what the client has seen; None when it sent none. An `eventual` read does not wait for it.
        policy: what the read asks for.
        now_s: on the clock of the observations.
        loads: what this process knows of each node; a missing one has no load.
        turn: a number that the caller raises with every choice: it breaks ties, and stands in for chance.

    Returns:
        The node, or none with the reason. A replica is preferred; the primary is the fallback.
    """
    usable = [node for node in snapshot.replicas if node.is_fresh(now_s)]
    primary = _usable_primary(snapshot, token, policy=policy, now_s=now_s)
    if policy.consistency == "strong":
        return Route(primary, "strong") if primary else Route(None, "no-primary")
    allowed = [node for node in usable if allows(snapshot, node, token, policy=policy, now_s=now_s)]
    chosen = _pick([n for n in allowed if not _load(loads, n).ejected] or allowed, policy.strategy, loads, turn)
    if chosen:
        return Route(chosen, "replica")
    if policy.consistency != "eventual":
        return Route(primary, "primary-ahead" if primary else "no-node-allowed", may_wait=bool(usable))
    if primary:
        return Route(primary, "replicas-lag" if usable else "no-replica")
    freshest = max(usable, key=_replayed_bytes, default=None)
    return Route(freshest, "freshest-replica" if freshest else "no-node")


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
    """Whether a node has replayed everything that a token has seen."""
    if token is None:
        return True
    if snapshot.judge(token) is not Standing.GOOD or node.observation is None:
        return False
    return node.observation.replayed_lsn >= token.lsn


def _usable_primary(
    snapshot: ClusterSnapshot, token: CausalToken | None, *, policy: Policy, now_s: float
) -> NodeState | None:
    primary = snapshot.primary
    if primary is None or not primary.is_fresh(now_s):
        return None
    return primary if policy.consistency == "eventual" or covers(snapshot, primary, token) else None


def _pick(
    candidates: list[NodeState], strategy: Strategy, loads: Mapping[str, Load], turn: int
) -> NodeState | None:
    """Chooses among equals; the turn rotates them first, so that ties go round."""
    if not candidates:
        return None
    start = turn % len(candidates)
    rotated = candidates[start:] + candidates[:start]
    match strategy:
        case "round-robin":
            return rotated[0]
        case "random-two-choices":
            second = 1 + (turn // len(rotated)) % max(1, len(rotated) - 1)
            return min(rotated[0], *rotated[second : second + 1], key=lambda node: _busyness(node, loads))
        case "latency-ewma":
            return min(rotated, key=lambda node: _load(loads, node).ewma_ms * (1 + _load(loads, node).in_flight))
        case "least-outstanding":
            return min(rotated, key=lambda node: _busyness(node, loads))


def _busyness(node: NodeState, loads: Mapping[str, Load]) -> float:
    load = _load(loads, node)
    return (load.in_flight + 1) / load.weight


def _load(loads: Mapping[str, Load], node: NodeState) -> Load:
    return loads.get(node.name, _NO_LOAD)


def _replayed_bytes(node: NodeState) -> int:
    return node.observation.replayed_lsn.bytes if node.observation else -1
