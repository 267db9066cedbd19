"""Who is what, by what was seen of all nodes together."""

from datetime import UTC, datetime

import pytest

from atelier.lsn import Lsn
from atelier.settings import NodeAddress
from atelier.token import CausalToken, History
from atelier.topology.probe import parse_history
from atelier.topology.state import ClusterSnapshot, NodeState, Observation, judge_nodes

START = datetime(2026, 1, 1, tzinfo=UTC)


def seen(
    name: str, *, standby: bool, timeline: int | None, replayed: int = 10, system: int = 7, received: int | None = None
) -> NodeState:
    """A node as one probe saw it."""
    observation = Observation(
        observed_at_s=1,
        in_recovery=standby,
        system_id=system,
        timeline=timeline,
        started_at=START,
        received_lsn=None if received is None else Lsn(received),
        replayed_lsn=Lsn(replayed),
        streaming=standby,
    )
    return NodeState(NodeAddress(name, "h", 1), observation)


def roles(*nodes: NodeState, history: History | None) -> dict[str, str]:
    """Every node's role by its name."""
    judged, primary = judge_nodes(nodes, history)
    assert (primary.name if primary else None) == next((n.name for n in judged if n.role == "primary"), None)
    return {node.name: node.role for node in judged}


def test_of_two_writable_nodes_the_higher_timeline_is_primary() -> None:
    """The other one was left behind, and serves nothing."""
    history = History(7, 2, ((1, Lsn(10)),))
    old, new = seen("old", standby=False, timeline=1), seen("new", standby=False, timeline=2)
    assert roles(old, new, history=history) == {"old": "deposed", "new": "primary"}
    assert roles(old, history=history) == {"old": "deposed"}


def test_a_standby_that_replayed_beyond_the_fork_is_no_replica() -> None:
    """By its number alone it looks perfect."""
    history = History(7, 2, ((1, Lsn(10)),))
    at_fork, beyond = seen("a", standby=True, timeline=1, replayed=10), seen("b", standby=True, timeline=1, replayed=11)
    assert roles(at_fork, beyond, history=history) == {"a": "replica", "b": "unknown"}


@pytest.mark.parametrize(("timeline", "system"), [(None, 7), (3, 7), (1, 8)])
def test_a_standby_of_unknown_history_is_no_replica(timeline: int | None, system: int) -> None:
    """No timeline, one that no primary is known to be on, another system."""
    assert roles(seen("a", standby=True, timeline=timeline, system=system), history=History(7, 2)) == {"a": "unknown"}


def test_a_node_of_another_system_is_never_the_primary() -> None:
    """However high its timeline."""
    assert roles(seen("a", standby=False, timeline=9, system=8), history=History(7, 2)) == {"a": "deposed"}


def test_a_token_is_reached_by_what_a_replica_has_received() -> None:
    """It will be replayed: with the primary gone it is waited for, not refused."""
    nodes, _ = judge_nodes((seen("a", standby=True, timeline=1, replayed=10, received=20),), History(7, 1))
    snapshot = ClusterSnapshot(nodes, History(7, 1))
    assert snapshot.reaches(CausalToken(7, 1, Lsn(20)))
    assert not snapshot.reaches(CausalToken(7, 1, Lsn(21)))


def test_a_history_file_of_two_failovers_is_read() -> None:
    """As PostgreSQL writes it: tabs, reasons, blank lines."""
    text = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000A0\tno recovery target specified\n# a comment\n"
    assert parse_history(text) == ((1, Lsn.parse("0/3000148")), (2, Lsn.parse("0/5000A0")))
