"""What was observed of the nodes: frozen values, no I/O, no clock."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Literal

from atelier.lsn import Lsn
from atelier.settings import NodeAddress
from atelier.token import CausalToken, History, Standing

NodeRole = Literal["primary", "replica", "deposed", "unknown"]

# An observation older than this satisfies nothing: a frozen node must drop out of routing within a second or so.
OBSERVATION_EXPIRES_S = 1.5


@dataclass(frozen=True, slots=True)
class Observation:
    """What one probe of one node saw. Holds for one start of that server only.

    Attributes:
        observed_at_s: monotonic time **before** the probe was sent, so that everything is at least this fresh.
        in_recovery: True for a standby.
        system_id: the database system.
        timeline: the one that is written, or streamed; None while a standby has never streamed.
        started_at: when this server was started; a restarted standby can stand further back than it did.
        received_lsn: on a standby, what it has received; None when it has streamed nothing since its start.
        replayed_lsn: on a standby what it has replayed; on a primary what it has flushed.
        streaming: on a standby, whether its WAL receiver is streaming now.
        resting: on a standby, that no record beyond `replayed_lsn` was being replayed, so that nothing beyond it could
            be seen. False where this is not certain.
        rested_at_s: on a standby, the last moment, on the same clock, when certainly no record beyond `replayed_lsn`
            was being replayed, as this look proves, or together with the one before it. None when they do not.
        settled_lsn: on a primary, the position up to which every commit is visible; None before one is known.
    """

    observed_at_s: float
    in_recovery: bool
    system_id: int
    timeline: int | None
    started_at: datetime
    received_lsn: Lsn | None
    replayed_lsn: Lsn
    streaming: bool
    resting: bool = False
    rested_at_s: float | None = None
    settled_lsn: Lsn | None = None


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as the monitor knows it.

    Attributes:
        address: its name and where it listens.
        observation: the newest one; None when there is none, or the node stopped answering.
        role: derived from all nodes' observations together.
        lag_ms: upper bound of how far its data is behind the primary's, as of `observation`; None when unknown.
        reason: why the node does not count, for a person; None when it does.
    """

    address: NodeAddress
    observation: Observation | None = None
    role: NodeRole = "unknown"
    lag_ms: float | None = None
    reason: str | None = "not observed yet"

    @property
    def name(self) -> str:
        """The node's name."""
        return self.address.name

    def is_fresh(self, now_s: float) -> bool:
        """Whether the node was observed a short while ago."""
        return self.observation is not None and now_s - self.observation.observed_at_s <= OBSERVATION_EXPIRES_S

    def lag_ms_at(self, now_s: float) -> float | None:
        """The bound on its lag now: what it was when observed, and the time since; 0 for the primary."""
        if self.role == "primary":
            return 0.0
        if self.lag_ms is None or self.observation is None:
            return None
        return self.lag_ms + max(0.0, now_s - self.observation.observed_at_s) * 1000


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All nodes at one moment, judged together.

    Attributes:
        nodes: in the order of the settings.
        history: the history of the newest primary ever observed; None before there was one.
        generation: rises when another server, or another start of it, becomes the primary, and when nodes join or
            leave.
        primary: the primary; None when no node is known to be it.
        replicas: the standbys that lie on the primary's history.
    """

    nodes: tuple[NodeState, ...] = ()
    history: History | None = None
    generation: int = 0
    primary: NodeState | None = field(init=False, repr=False, compare=False)
    replicas: tuple[NodeState, ...] = field(init=False, repr=False, compare=False)
    _by_name: dict[str, NodeState] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sorts the nodes once, because every read asks for them."""
        set_once = partial(object.__setattr__, self)
        set_once("primary", next((node for node in self.nodes if node.role == "primary"), None))
        set_once("replicas", tuple(node for node in self.nodes if node.role == "replica"))
        set_once("_by_name", {node.name: node for node in self.nodes})

    def node(self, name: str) -> NodeState | None:
        """The node of that name; None when it is not (or no longer) in the list."""
        return self._by_name.get(name)

    def judge(self, token: CausalToken) -> Standing:
        """How a token stands to the history that is known."""
        return self.history.judge(token) if self.history else Standing.UNKNOWN

    def reaches(self, token: CausalToken) -> bool:
        """Whether a token lies on the history that is known, and some node is known to have written or received it."""
        if self.history is None or self.history.judge(token) is not Standing.GOOD:
            return False
        return token.timeline < self.history.timeline or any(_has(node, token.lsn) for node in self.nodes)

    def position(self) -> CausalToken | None:
        """Where the primary stood when it was last observed; None when there is none."""
        seen = self.primary.observation if self.primary else None
        if seen is None or seen.timeline is None:
            return None
        return CausalToken(seen.system_id, seen.timeline, seen.replayed_lsn)


def _has(node: NodeState, lsn: Lsn) -> bool:
    seen = node.observation
    if seen is None or node.role not in ("primary", "replica"):
        return False
    return seen.replayed_lsn >= lsn or (seen.received_lsn is not None and seen.received_lsn >= lsn)


def judge_nodes(
    observed: tuple[NodeState, ...], known: History | None
) -> tuple[tuple[NodeState, ...], NodeState | None]:
    """Derives every node's role from what was seen of all of them.

    Of the nodes out of recovery only the one on the highest timeline is primary; the others are deposed. A standby
    counts when it streams that timeline, or when it follows an ancestor and has replayed no further than the fork.

    Args:
        observed: the nodes with their newest observations; their roles are ignored.
        known: the newest history known; a node of an older timeline is never the primary again.

    Returns:
        The nodes with roles and reasons, and the primary (None when there is none).
    """
    writable = [n for n in observed if n.observation and not n.observation.in_recovery and _belongs(n, known)]
    primary = max(writable, key=lambda n: (n.observation.timeline or 0) if n.observation else 0, default=None)
    return tuple(_judge_node(node, primary, known) for node in observed), primary


def _belongs(node: NodeState, known: History | None) -> bool:
    seen = node.observation
    if known is None or seen is None:
        return seen is not None
    return seen.system_id == known.system_id and (seen.timeline or 0) >= known.timeline


def _judge_node(node: NodeState, primary: NodeState | None, known: History | None) -> NodeState:
    seen = node.observation
    if seen is None:
        return replace(node, role="unknown")
    if not seen.in_recovery:
        if primary is not None and node.name == primary.name:
            return replace(node, role="primary", reason=None)
        return replace(node, role="deposed", reason="out of recovery on an older timeline")
    reason = _why_not_a_replica(seen, known)
    return replace(node, role="unknown" if reason else "replica", reason=reason)


def _why_not_a_replica(seen: Observation, known: History | None) -> str | None:
    if known is None:
        return None
    if seen.system_id != known.system_id:
        return "belongs to another database system"
    if seen.timeline is None:
        return "has not streamed since it was first seen, so its timeline is unknown"
    if seen.timeline > known.timeline:
        return "follows a timeline that no known primary is on"
    if seen.timeline < known.timeline:
        fork = known.fork_of(seen.timeline)
        if fork is None or seen.replayed_lsn > fork:
            return "has replayed beyond the fork: its history is lost"
    return None
