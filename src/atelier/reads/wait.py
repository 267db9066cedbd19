"""What a read waits for before it is answered: a token that can be judged, a node that has come up to it."""

from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError, HistoryLostError, PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.reads.position import PositionMovedError
from atelier.token import CausalToken, Standing
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState

# A look at the primary takes milliseconds; a primary that does not answer within this is gone.
_LOOK_S = 1.0
# A token of a history that nobody here knows yet: another process has seen a promotion first. It is learned by and by,
# also while the old primary still answers; the rest of a request's time is for the read itself.
_LEARN_S = 3.0
# Whoever switches the log early (a base backup does) leaves the rest of a segment unused. A standby that has replayed
# the switch stands at the segment's end, or a byte into what follows, while the primary still fills the rest and says
# less, for some 10 or 100 ms. All segment sizes are multiples of this.
_SEGMENT_BYTES = 1024 * 1024
_LARGEST_SEGMENT_BYTES = 1024 * 1024 * 1024


async def admit(monitor: TopologyMonitor, token: CausalToken, deadline: Deadline, *, beyond: bool) -> None:
    """Lets a token pass that lies on the present history, and refuses others before anybody waits for them.

    Args:
        monitor: looks at the primary again, once for all who need it, before anything is refused.
        token: what the client sent.
        deadline: of the request.
        beyond: also let one pass whose position no node is known to have written yet: an eventual read does not wait
            for it, and goes on with no primary to ask.

    Raises:
        HistoryLostError: its history is not that of this database, or reaches further than this database does.
        PrimaryUnavailableError: only the primary could tell, and it does not answer.
    """
    snapshot = monitor.snapshot
    if _passes(snapshot, token, beyond=beyond):
        return
    if snapshot.judge(token) is not Standing.LOST:
        is_fresh = monitor.is_fresh_from_now()

        def is_settled(now: ClusterSnapshot) -> bool:
            return _passes(now, token, beyond=beyond) or (is_fresh(now) and _is_refused(now, token))

        bound_s = _LEARN_S if snapshot.judge(token) is Standing.UNKNOWN else _LOOK_S
        try:
            snapshot = await monitor.wait_until(is_settled, deadline.sooner(bound_s))
        except DeadlineExceededError as error:
            snapshot = monitor.snapshot
            if not is_fresh(snapshot) or snapshot.judge(token) is Standing.UNKNOWN:
                raise PrimaryUnavailableError("the token cannot be judged while no primary answers") from error
    if _passes(snapshot, token, beyond=beyond):
        return
    raise HistoryLostError


async def merge(monitor: TopologyMonitor, sent: CausalToken, seen: CausalToken, deadline: Deadline) -> CausalToken:
    """Merges the token of an answer with one that was sent and that the answer did not have to cover.

    Raises:
        HistoryLostError: the answer is of a history in which what the client had seen is lost.
        PositionMovedError: the answer is of a history that was thrown away, or that nobody knows yet.
    """
    snapshot = monitor.snapshot
    if snapshot.judge(seen) is Standing.UNKNOWN:
        try:
            snapshot = await monitor.wait_until(
                lambda now: now.judge(seen) is not Standing.UNKNOWN, deadline.sooner(_LOOK_S)
            )
        except DeadlineExceededError as error:
            raise PositionMovedError from error
    if snapshot.judge(seen) is not Standing.GOOD:
        raise PositionMovedError
    if snapshot.judge(sent) is Standing.LOST:
        raise HistoryLostError
    return sent.merge(seen)


async def place_later(
    monitor: TopologyMonitor, node: NodeState, reached: Lsn, came_at_s: float, deadline: Deadline, *, rested: bool
) -> tuple[int, Lsn]:
    """The place of a standby's answer, by looks at it that began after the answer came.

    What the node had replayed then lies on the timeline that it is seen on, or on the part of an ancestor that it
    shares.

    Args:
        monitor: looks.
        node: as it was known before it was asked.
        reached: what it had replayed by its answer.
        came_at_s: when the answer came.
        deadline: of the request.
        rested: also find out whether the answer may have seen a record beyond that: one that the node has replayed
            since counts as seen; with its replay at rest there was none.

    Returns:
        The timeline, and the position beyond which the answer shows nothing.

    Raises:
        PositionMovedError: the node has started again since, or does not answer, or its replay never rests.
    """

    def is_later(snapshot: ClusterSnapshot) -> bool:
        now = snapshot.node(node.name)
        seen = now.observation if now else None
        if seen is None or seen.observed_at_s < came_at_s:
            return False
        is_open = rested and seen.replayed_lsn == reached
        return not is_open or (seen.rested_at_s is not None and seen.rested_at_s >= came_at_s)

    try:
        snapshot = await monitor.wait_until(is_later, deadline.sooner(_LOOK_S))
    except DeadlineExceededError as error:
        raise PositionMovedError from error
    now = snapshot.node(node.name)
    before, after = node.observation, now.observation if now else None
    if before is None or after is None or after.timeline is None or after.started_at != before.started_at:
        raise PositionMovedError
    return after.timeline, reached.next() if rested and after.replayed_lsn != reached else reached


def _is_refused(snapshot: ClusterSnapshot, token: CausalToken) -> bool:
    """Whether a token that does not pass after a fresh look never will."""
    standing = snapshot.judge(token)
    return standing is Standing.LOST or (standing is Standing.GOOD and not _ends_segment(snapshot, token))


def _ends_segment(snapshot: ClusterSnapshot, token: CausalToken) -> bool:
    """Whether a position may be the end of the segment that the primary is filling: it will be there in a moment."""
    primary = snapshot.position()
    if primary is None or token.lsn.bytes % _SEGMENT_BYTES > 1:
        return False
    return token.lsn.bytes - primary.lsn.bytes <= _LARGEST_SEGMENT_BYTES


def _passes(snapshot: ClusterSnapshot, token: CausalToken, *, beyond: bool) -> bool:
    return snapshot.reaches(token) or (beyond and snapshot.judge(token) is Standing.GOOD)
