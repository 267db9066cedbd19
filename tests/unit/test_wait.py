"""Which tokens a read lets pass, which it refuses, and whom it asks before that: over looks that a test chooses."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError, HistoryLostError, PrimaryUnavailableError
from atelier.lsn import Lsn
from atelier.reads.position import PositionMovedError
from atelier.reads.wait import admit, merge, place_later
from atelier.settings import NodeAddress
from atelier.token import CausalToken, History, Standing
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState, Observation

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW_S = 1000.0
FIRST = History(7, 1)
# A promotion at 50; another one at 80.
SECOND = History(7, 2, ((1, Lsn(50)),))
THIRD = History(7, 3, ((1, Lsn(50)), (2, Lsn(80))))
SEGMENT = 16 * 1024 * 1024
BUDGET_S = 60.0


@dataclass
class Monitor:
    """Shows one snapshot, and others when somebody waits: one every 10 ms, until there are no more."""

    snapshot: ClusterSnapshot
    to_come: list[ClusterSnapshot] = field(default_factory=list)
    now_s: float = NOW_S
    waits_s: list[float] = field(default_factory=list)
    """For how long each wait was ready to wait."""

    def clock(self) -> float:
        """The test's own time."""
        return self.now_s

    is_fresh_from_now = TopologyMonitor.is_fresh_from_now
    _clock = clock

    async def wait_until(
        self, predicate: Callable[[ClusterSnapshot], bool], deadline: Deadline, **_: str
    ) -> ClusterSnapshot:
        """As the real one, over the snapshots to come."""
        self.waits_s.append(deadline.remaining_s())
        while not predicate(self.snapshot):
            if not self.to_come:
                self.now_s = deadline.ends_at_s
                raise DeadlineExceededError
            self.now_s += 0.01
            self.snapshot = self.to_come.pop(0)
        return self.snapshot

    def admit(self, token: CausalToken, *, beyond: bool = False) -> None:
        """Asks whether a token may pass."""
        asyncio.run(admit(self, token, Deadline.after(BUDGET_S, self.clock), beyond=beyond))


def node(
    name: str,
    at: int,
    *,
    role: str = "replica",
    received: int | None = None,
    seen_s: float = NOW_S + 1,
    timeline: int = 1,
) -> NodeState:
    """A node, already judged; it was looked at after the read began, unless told otherwise."""
    seen = Observation(
        observed_at_s=seen_s,
        in_recovery=role == "replica",
        system_id=7,
        timeline=timeline,
        started_at=START,
        received_lsn=None if received is None else Lsn(received),
        replayed_lsn=Lsn(at),
        streaming=role == "replica",
    )
    return NodeState(NodeAddress(name, "h", 1), seen, role)


def primary(at: int, *, seen_s: float = NOW_S + 1) -> NodeState:
    """The primary, which has flushed so much."""
    return node("p", at, role="primary", seen_s=seen_s)


def cluster(*nodes: NodeState, history: History | None = FIRST) -> ClusterSnapshot:
    """What the monitor knows."""
    return ClusterSnapshot(nodes, history, 1)


def token(at: int, timeline: int = 1) -> CausalToken:
    """What a client has seen."""
    return CausalToken(7, timeline, Lsn(at))


OLD_LOOK = NOW_S - 0.1


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(cluster(primary(40, seen_s=OLD_LOOK)), id="the primary has written it"),
        pytest.param(cluster(node("a", 40)), id="a replica has replayed it, and the primary is gone"),
        pytest.param(cluster(node("a", 10, received=40)), id="a replica has received it, and the primary is gone"),
        pytest.param(cluster(history=SECOND), id="it lies before a fork, and nobody answers"),
    ],
)
def test_token_of_the_known_history_passes_without_a_look(known: ClusterSnapshot) -> None:
    """Who is asked then is the router's business."""
    monitor = Monitor(known)
    monitor.admit(token(40))
    assert monitor.waits_s == []


@pytest.mark.parametrize(
    ("sent", "history"),
    [
        pytest.param(CausalToken(8, 1, Lsn(1)), FIRST, id="another system"),
        pytest.param(token(51), SECOND, id="beyond the fork"),
        pytest.param(token(81, 2), THIRD, id="beyond the second fork"),
        pytest.param(token(1), History(7, 2), id="a timeline that is no ancestor"),
    ],
)
@pytest.mark.parametrize("beyond", [False, True])
def test_token_of_lost_history_is_refused_without_a_look(sent: CausalToken, history: History, beyond: bool) -> None:
    """With or without a primary: no look could bring it back."""
    for known in (cluster(history=history), cluster(primary(100), history=history)):
        monitor = Monitor(known)
        with pytest.raises(HistoryLostError):
            monitor.admit(sent, beyond=beyond)
        assert monitor.waits_s == []


def test_position_beyond_the_primary_is_refused_after_one_look_and_not_before() -> None:
    """A look that began before the read came says nothing about what was written since."""
    stale = cluster(primary(40, seen_s=OLD_LOOK))
    monitor = Monitor(stale, [stale, cluster(primary(40)), cluster(primary(60))])
    with pytest.raises(HistoryLostError):
        monitor.admit(token(41))
    assert len(monitor.to_come) == 1
    assert monitor.waits_s == [1.0]


def test_position_that_the_next_look_shows_passes() -> None:
    """Another process's write, of a moment ago."""
    monitor = Monitor(cluster(primary(40, seen_s=OLD_LOOK)), [cluster(primary(41))])
    monitor.admit(token(41))


def test_position_beyond_all_is_unavailable_and_not_lost_while_the_primary_is_gone() -> None:
    """Only the primary could tell; a second later it is 503, never 409."""
    monitor = Monitor(cluster(node("a", 40)), [cluster(node("a", 40))] * 3)
    with pytest.raises(PrimaryUnavailableError):
        monitor.admit(token(41))
    assert monitor.waits_s == [1.0]


def test_primary_that_dies_before_its_look_refuses_nobody() -> None:
    """Its last look was before the read came."""
    monitor = Monitor(cluster(primary(40, seen_s=OLD_LOOK)), [cluster(node("a", 40))])
    with pytest.raises(PrimaryUnavailableError):
        monitor.admit(token(41))


def test_position_that_comes_while_the_primary_is_looked_for_passes() -> None:
    """By a replica that receives it late."""
    monitor = Monitor(cluster(node("a", 40)), [cluster(node("a", 40)), cluster(node("a", 40, received=41))])
    monitor.admit(token(41))


def test_eventual_read_does_not_wait_for_a_position_of_the_known_history() -> None:
    """Its token is merged, not waited for; with no primary to ask, too."""
    monitor = Monitor(cluster(node("a", 40)))
    monitor.admit(token(41), beyond=True)
    assert monitor.waits_s == []


@pytest.mark.parametrize("beyond", [False, True])
def test_token_newer_than_the_known_history_has_the_history_learned_first(beyond: bool) -> None:
    """Another process has seen a promotion first; the old primary's fresh look does not refuse it."""
    still_old = cluster(primary(100))
    learned = cluster(primary(90), history=SECOND)
    monitor = Monitor(still_old, [still_old, still_old, learned])
    monitor.admit(token(60, 2), beyond=beyond)
    assert monitor.waits_s == [3.0]
    assert monitor.to_come == []


def test_token_newer_than_the_known_history_is_lost_when_the_new_one_says_so() -> None:
    """It was beyond a fork that nobody here had heard of."""
    monitor = Monitor(cluster(primary(100)), [cluster(primary(100)), cluster(primary(90), history=THIRD)])
    with pytest.raises(HistoryLostError):
        monitor.admit(token(85, 2))


@pytest.mark.parametrize("known", [cluster(), cluster(primary(100)), cluster(node("a", 100)), cluster(history=None)])
@pytest.mark.parametrize("beyond", [False, True])
def test_token_of_a_timeline_that_nobody_tells_of_is_unavailable_and_never_lost(
    known: ClusterSnapshot, beyond: bool
) -> None:
    """The old primary answers, or no one does."""
    monitor = Monitor(known, [known] * 5)
    with pytest.raises(PrimaryUnavailableError):
        monitor.admit(token(1, 2), beyond=beyond)


def test_nothing_waits_longer_than_the_request_may() -> None:
    """The deadline is the request's, whatever a look may take."""
    monitor = Monitor(cluster(node("a", 40)))
    with pytest.raises(PrimaryUnavailableError):
        asyncio.run(admit(monitor, token(41), Deadline.after(0.2, monitor.clock), beyond=False))
    assert monitor.waits_s == [pytest.approx(0.2)]


@pytest.mark.parametrize("ahead", [0, 1])
def test_end_of_the_segment_that_is_being_filled_is_waited_for(ahead: int) -> None:
    """A standby that has replayed a switch of the log stands there before the primary does."""
    filling = cluster(primary(SEGMENT - 500))
    monitor = Monitor(filling, [filling, filling, cluster(primary(SEGMENT + 200))])
    monitor.admit(token(SEGMENT + ahead))
    assert monitor.to_come == []


@pytest.mark.parametrize(
    ("at", "far"), [(SEGMENT + 2, 0), (SEGMENT - 1, 0), (SEGMENT, 70 * SEGMENT)], ids=["behind", "before", "far away"]
)
def test_other_positions_beyond_the_primary_are_not(at: int, far: int) -> None:
    """An invented one shall cost one look."""
    filling = cluster(primary(SEGMENT - 500))
    monitor = Monitor(filling, [filling, cluster(primary(at + far))])
    with pytest.raises(HistoryLostError):
        monitor.admit(token(at + far))
    assert len(monitor.to_come) == 2


def test_end_of_a_segment_that_never_comes_is_refused_in_the_end() -> None:
    """By the looks that were had meanwhile."""
    filling = cluster(primary(SEGMENT - 500))
    monitor = Monitor(filling, [filling] * 3)
    with pytest.raises(HistoryLostError):
        monitor.admit(token(SEGMENT))


def possible_snapshots() -> list[ClusterSnapshot]:
    """Every cluster that a token can be judged by differently."""
    nodes = [
        (),
        (primary(40),),
        (primary(100),),
        (primary(40, seen_s=OLD_LOOK),),
        (node("a", 40),),
        (node("a", 40, received=100),),
        (node("a", 100), primary(40)),
    ]
    return [cluster(*some, history=history) for some in nodes for history in (None, FIRST, SECOND, THIRD)]


def test_no_token_is_called_lost_unless_history_or_a_fresh_look_at_the_primary_says_so() -> None:
    """Over every pair of snapshots, one known and one to come: 409 is a proof, 503 is all the rest."""
    tokens = [token(at, timeline) for at in (40, 60, 90) for timeline in (1, 2, 3, 4)]
    lost = unavailable = 0
    for known, next_one in itertools.product(possible_snapshots(), repeat=2):
        if known.history and (not next_one.history or next_one.history.timeline < known.history.timeline):
            continue  # a history that was learned stays
        for sent, beyond in itertools.product(tokens, (False, True)):
            monitor = Monitor(known, [next_one])
            try:
                monitor.admit(sent, beyond=beyond)
            except HistoryLostError:
                lost += 1
                assert is_proof(monitor.snapshot, sent)
            except PrimaryUnavailableError:
                unavailable += 1
            else:
                assert monitor.snapshot.judge(sent) is Standing.GOOD
                assert beyond or monitor.snapshot.reaches(sent)
    assert min(lost, unavailable) > 1000


def is_proof(snapshot: ClusterSnapshot, sent: CausalToken) -> bool:
    """Whether what is known in the end shows that a token's history is not this one."""
    if snapshot.judge(sent) is Standing.LOST:
        return True
    seen = snapshot.primary.observation if snapshot.primary else None
    is_beyond = seen is not None and seen.observed_at_s >= NOW_S and seen.replayed_lsn < sent.lsn
    return is_beyond and snapshot.judge(sent) is Standing.GOOD


def merged(monitor: Monitor, sent: CausalToken, seen: CausalToken) -> CausalToken:
    """The token that goes back to a client who did not wait for its own."""
    return asyncio.run(merge(monitor, sent, seen, Deadline.after(BUDGET_S, monitor.clock)))


def test_merged_token_is_the_later_one() -> None:
    """Whichever that is."""
    monitor = Monitor(cluster(primary(100)))
    assert merged(monitor, token(40), token(30)) == token(40)
    assert merged(monitor, token(40), token(50)) == token(50)
    assert monitor.waits_s == []


def test_answer_of_a_history_that_nobody_knows_yet_is_merged_when_it_is_known() -> None:
    """And given up when it does not become known."""
    learned = cluster(primary(90), history=SECOND)
    assert merged(Monitor(cluster(primary(100)), [learned]), token(40), token(60, 2)) == token(60, 2)
    with pytest.raises(PositionMovedError):
        merged(Monitor(cluster(primary(100))), token(40), token(60, 2))


def test_answer_of_history_that_was_thrown_away_does_not_go_out() -> None:
    """Another node is asked; and a token that was thrown away is said to be."""
    monitor = Monitor(cluster(primary(100), history=SECOND))
    with pytest.raises(PositionMovedError):
        merged(monitor, token(40), token(60))
    with pytest.raises(HistoryLostError):
        merged(monitor, token(60), token(60, 2))


def later(asked: NodeState, *snapshots: ClusterSnapshot, rested: bool = False) -> tuple[int, int]:
    """The timeline and position of an answer that came now from a node that had replayed 40, its receiver away."""
    monitor = Monitor(cluster(asked), list(snapshots))
    deadline = Deadline.after(BUDGET_S, monitor.clock)
    timeline, reached = asyncio.run(place_later(monitor, asked, Lsn(40), NOW_S, deadline, rested=rested))
    return timeline, reached.bytes


def test_timeline_is_told_by_a_look_that_began_after_the_answer() -> None:
    """One that began before may be older than what the answer shows."""
    asked = node("a", 40, seen_s=OLD_LOOK)
    assert later(asked, cluster(asked), cluster(node("a", 60, timeline=2))) == (2, 40)


def resting(at: int, *, at_s: float | None, timeline: int = 1) -> ClusterSnapshot:
    """The node as seen now; its replay was last known to rest at a time."""
    seen = node("a", at, timeline=timeline)
    assert seen.observation
    return cluster(replace(seen, observation=replace(seen.observation, rested_at_s=at_s)))


def test_record_that_the_node_has_replayed_since_counts_as_seen_and_one_that_never_came_does_not() -> None:
    """Half a record stays at the end of what a dead primary has sent: the look decides whether that is all it was."""
    asked = node("a", 40, seen_s=OLD_LOOK)
    busy, rested_before = resting(40, at_s=None), resting(40, at_s=NOW_S - 0.001)
    assert later(asked, busy, rested_before, resting(40, at_s=NOW_S), rested=True) == (1, 40)
    assert later(asked, busy, rested_before, resting(48, at_s=None), rested=True) == (1, 41)
    assert later(asked, busy, resting(40, at_s=NOW_S + 1, timeline=2), rested=True) == (2, 40)
    with pytest.raises(PositionMovedError):
        later(asked, busy, rested_before, rested=True)


def test_timeline_is_not_told_by_another_start_or_by_silence() -> None:
    """The read goes to another node."""
    asked = node("a", 40, seen_s=OLD_LOOK)
    seen = node("a", 60, timeline=2).observation
    assert seen
    restarted = replace(asked, observation=replace(seen, started_at=START + timedelta(seconds=1)))
    nameless = replace(asked, observation=replace(seen, timeline=None))
    for snapshots in ([], [cluster(restarted)], [cluster(nameless)], [cluster(node("b", 60))]):
        with pytest.raises(PositionMovedError):
            later(asked, *snapshots)
