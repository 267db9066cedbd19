"""What the change feed of one node has told so far: up to which position the answers it gave are known to stand. Pure.

A source belongs to one start of one server. As long as that runs, the order of its outbox is the order in which
commits become visible on it, whatever promotions happen elsewhere; so nothing here compares positions of two servers.
"""

from dataclasses import dataclass
from datetime import datetime

from atelier.lsn import Lsn
from atelier.token import CausalToken, Standing
from atelier.topology.state import OBSERVATION_EXPIRES_S, ClusterSnapshot

# A feed that was not heard for so long vouches for nothing.
COHERENCE_EXPIRES_S = 1.0


@dataclass(frozen=True, slots=True)
class News:
    """What one look at a node's feed brought.

    Attributes:
        head: the outbox position up to which the node's changes are known now.
        changed: products of which more than the stock changed, were made or deleted.
        stocked: products of which the stock changed.
        replaced: the whole catalogue is another one.
        coherent: a position that the node had replayed before this look, when this look has told everything since the
            one before; None when there is more to tell, or when it is not known which history the position lies on.
    """

    head: int
    changed: tuple[int, ...] = ()
    stocked: tuple[int, ...] = ()
    replaced: bool = False
    coherent: CausalToken | None = None


@dataclass(slots=True, eq=False)
class Source:
    """One start of one node, as its feed tells of it.

    Attributes:
        node: the node's name.
        started_at: when that server was started.
        head: the outbox position up to which its changes have been taken in.
        coherent: all changes up to here have been taken in; None before that is known of any position.
        coherent_bytes: the same, to compare.
        fresh_at_s: everything that was committed before this time has been taken in; None when that is not known.
        heard_at_s: when the last look at the feed began.
        observed_at_s: when the node was last observed as a replica of the present history; None while it is not.
        ended: it vouches for nothing any more.
    """

    node: str
    started_at: datetime
    head: int
    heard_at_s: float
    observed_at_s: float | None = None
    coherent: CausalToken | None = None
    coherent_bytes: int = -1
    fresh_at_s: float | None = None
    ended: bool = False

    def vouches(self, now_s: float) -> bool:
        """Whether answers of this node may be given from memory now."""
        return (
            not self.ended
            and now_s - self.heard_at_s <= COHERENCE_EXPIRES_S
            and self.observed_at_s is not None
            and now_s - self.observed_at_s <= OBSERVATION_EXPIRES_S
        )

    def advance(self, coherent: CausalToken) -> None:
        """Notes that all changes up to a position have been taken in; a replica never goes back while it runs."""
        if coherent.lsn.bytes >= self.coherent_bytes:
            self.coherent = coherent
            self.coherent_bytes = coherent.lsn.bytes

    def compare(self, snapshot: ClusterSnapshot) -> bool:
        """Takes in what is known of the nodes now; False when the source is of a server or a history that is over."""
        node = snapshot.node(self.node)
        seen = node.observation if node is not None else None
        if seen is not None and (seen.started_at != self.started_at or not seen.in_recovery):
            return False
        if self.coherent is not None and snapshot.judge(self.coherent) is Standing.LOST:
            return False
        is_replica = node is not None and node.role == "replica" and seen is not None
        self.observed_at_s = seen.observed_at_s if is_replica and seen is not None else None
        return True

    def lag_ms_at(self, now_s: float) -> float | None:
        """The bound on how old what this node's answers show may be; None when it is not known."""
        return None if self.fresh_at_s is None else max(0.0, now_s - self.fresh_at_s) * 1000

    def lsn(self) -> Lsn | None:
        """The position up to which changes have been taken in."""
        return None if self.coherent is None else self.coherent.lsn
